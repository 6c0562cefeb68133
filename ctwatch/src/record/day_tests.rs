//! What a day of a busy machine takes: a series with the noise of real counts, through the real writer.

use std::collections::BTreeMap;

use ctwatch_ebpf::{AF_INET, AF_INET6, Counters, Event, FlowType};

use super::*;
use crate::model::ranking::{By, Losses, Top};
use crate::model::{Cost, Report, Sample, Table, Tracker};

/// Random numbers that are the same in every run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Between 0 and 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Of mean 0 and deviation 1, nearly normal.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// How many of many independent flows came, where `mean` come on average.
    fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 50.0 {
            return rounded(mean.sqrt().mul_add(self.normal(), mean));
        }
        let (mut count, mut left) = (0, self.unit());
        while left > (-mean).exp() {
            left *= self.unit();
            count += 1;
        }
        count
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
fn rounded(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

/// New flows a second of TCP, UDP and ICMP over IPv4, of TCP and UDP over IPv6, in four namespaces: 20 flow types.
const RATES: [(u32, [f64; 5]); 4] = [
    (4_026_531_840, [120.0, 60.0, 1.0, 30.0, 15.0]),
    (4_026_532_281, [20.0, 10.0, 0.2, 2.0, 1.0]),
    (4_026_532_402, [5.0, 3.0, 0.05, 0.5, 0.3]),
    (4_026_532_513, [1.0, 0.5, 0.01, 0.1, 0.1]),
];
const KINDS: [(u8, u8); 5] = [(AF_INET, 6), (AF_INET, 17), (AF_INET, 1), (AF_INET6, 6), (AF_INET6, 17)];
/// Ports and their shares of new flows.
const TCP: [(u16, f64); 5] = [(443, 0.6), (80, 0.2), (5432, 0.1), (6379, 0.08), (22, 0.02)];
const UDP: [(u16, f64); 4] = [(53, 0.8), (443, 0.15), (123, 0.04), (514, 0.01)];

/// A machine whose counts rise.
struct Machine {
    random: Random,
    rows: BTreeMap<FlowType, Counters>,
    top: BTreeMap<(FlowType, u16), u64>,
    live: BTreeMap<u32, u64>,
    mono_ns: u64,
    cost: Cost,
    own_ns: u64,
}

impl Machine {
    fn new() -> Self {
        Self {
            random: Random(1),
            rows: BTreeMap::new(),
            top: BTreeMap::new(),
            live: RATES.into_iter().map(|(netns, rates)| (netns, rounded(rates[0] * 300.0))).collect(),
            mono_ns: 3_600_000_000_000,
            cost: Cost { run_ns: 0, runs: 0 },
            own_ns: 0,
        }
    }

    /// One second on; `busy` is the time of day's share of the mean rates.
    fn second(&mut self, at: u64, busy: f64) -> Sample {
        let mut runs = 0;
        for (netns, rates) in RATES {
            for ((family, proto), rate) in KINDS.into_iter().zip(rates) {
                let key = FlowType { netns, family, proto };
                let new = self.new_flows(key, rate * busy);
                // The collector removes more in one second and less in another.
                let waves = 0.5 + self.random.unit();
                let closed = if proto == 6 { self.random.poisson(rate * busy * 0.1) } else { 0 };
                let timeout = self.random.poisson(rate * busy * waves).saturating_sub(closed);
                let invalid = if proto == 6 { self.random.poisson(rate * 0.002) } else { 0 };
                let row = self.rows.entry(key).or_default();
                for (event, count) in [
                    (Event::Insert, new),
                    (Event::DeleteTimeout, timeout),
                    (Event::DeleteClosed, closed),
                    (Event::InvalidOutOfWindow, invalid),
                ] {
                    row.0[event as usize] += count;
                }
                let live = self.live.entry(netns).or_default();
                *live = (*live + new).saturating_sub(timeout + closed);
                runs += 2 * (new + timeout + closed) + self.random.poisson(0.3);
            }
        }
        // A timer is late by some 50 us; a program takes 130 ns, ctwatch 3 ms.
        let jitter = rounded(self.random.normal().mul_add(20_000.0, 80_000.0));
        self.mono_ns = 3_600_000_000_000 + at * SECOND + jitter / 1000 * 1000;
        self.cost.runs += runs;
        self.cost.run_ns += rounded(self.random.normal().mul_add(6.0, 130.0) * runs as f64);
        self.own_ns += rounded(self.random.normal().mul_add(200.0, 3000.0)) * 1000;
        self.sample()
    }

    fn new_flows(&mut self, key: FlowType, mean: f64) -> u64 {
        let ports: &[(u16, f64)] = match key.proto {
            6 => &TCP,
            17 => &UDP,
            _ => return self.random.poisson(mean),
        };
        ports
            .iter()
            .map(|(port, share)| {
                let count = self.random.poisson(mean * share);
                *self.top.entry((key, *port)).or_default() += count;
                count
            })
            .sum()
    }

    fn sample(&mut self) -> Sample {
        let tables = self.live.iter().map(|(netns, live)| Table {
            netns: *netns,
            name: format!("ns-{netns}"),
            // It is read a moment later than the counts.
            count: Some(live + self.random.poisson(0.2)),
            max: Some(262_144),
        });
        let tables = tables.collect();
        let top = self.top.iter().map(|((key, port), insert)| Top {
            by: By::Dport,
            netns: key.netns,
            family: key.family,
            proto: key.proto,
            key: port.to_string(),
            insert: *insert,
            early_drop: 0,
            drop: 0,
            invalid: 0,
        });
        let skew = self.random.next() % 2 * 1000;
        Sample {
            wall_ns: 1_790_000_000_000_000_000 + i128::from(self.mono_ns + skew),
            mono_ns: self.mono_ns,
            rows: self.rows.clone(),
            tables,
            namespaces_left_out: 0,
            lost: 0,
            cost: Some(self.cost),
            own_ns: Some(self.own_ns),
            top: Some(top.collect()),
            losses: Some(Losses::default()),
        }
    }
}

/// The reports of so many seconds in the middle of a day.
fn reports(seconds: u64) -> impl Iterator<Item = Report> {
    let mut machine = Machine::new();
    let mut tracker = Tracker::new(machine.mono_ns);
    (1..=seconds).map(move |at| {
        let busy = 0.5f64.mul_add((at as f64 / 13_750.0).sin(), 1.0);
        tracker.advance(machine.second(at, busy))
    })
}

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// Bytes that a day takes, from so many seconds of it.
fn a_day(seconds: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording");
    let mut writer = Writer::open(&path, Limits::default()).unwrap();
    let session = tests::session();
    let mut last = None;
    for (at, report) in (1..).zip(reports(seconds)) {
        writer.append(&session, &report, false, at * SECOND).unwrap();
        last = Some(report);
    }
    drop(writer);
    let mut reader = Reader::open(&path).unwrap();
    let mut read = 0;
    let mut report = None;
    while let Some(step) = reader.next_step().unwrap() {
        read += 1;
        report = Some(step.report);
    }
    let last = last.unwrap();
    assert_eq!(last.flows.len(), 20);
    assert_eq!((read, report), (seconds, Some(last)));
    std::fs::metadata(&path).unwrap().len() * DAY / seconds
}

#[test]
fn a_day_of_twenty_flow_types_takes_less_than_3_mb() {
    // A whole day takes 2.74 MB; in two hours there is less time to learn.
    let bytes = a_day(2 * 3600);
    assert!(bytes < 3_000_000, "{bytes} bytes a day");
}

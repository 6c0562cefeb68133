//! The difference of two samples: counts of the interval, rates by the time that really passed, totals and peaks.

use std::collections::BTreeMap;
use std::time::Duration;

use ctwatch_ebpf::{Counters, FlowType, Group};

use super::ranking::{self, Losses, Top};
use super::sample::{Cost, Sample, Table};
use super::{family_name, protocol_name};

/// Below this a single event would read as a peak of hundreds a second.
pub(super) const SHORTEST_FOR_PEAK: Duration = Duration::from_millis(50);

/// Events per second, of each group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates([f64; Group::COUNT]);

impl Rates {
    /// The rates of counts that took `elapsed`; all 0 where no time passed.
    pub fn new(counts: &Counters, elapsed: Duration) -> Self {
        Self(Group::ALL.map(|group| per_second(group.of(counts), elapsed)))
    }

    /// Each group's rate as a function gives it.
    pub fn from_fn(rate: impl Fn(Group) -> f64) -> Self {
        Self(Group::ALL.map(rate))
    }

    /// The rate of one group.
    pub const fn get(&self, group: Group) -> f64 {
        self.0[group as usize]
    }

    /// The rates of all groups, in their order.
    pub const fn all(&self) -> &[f64; Group::COUNT] {
        &self.0
    }

    /// Raises peaks to the rates of an interval; one that is too short for a peak changes nothing.
    pub fn raise_after(&mut self, other: &Self, elapsed: Duration) {
        if elapsed >= SHORTEST_FOR_PEAK {
            self.raise(other);
        }
    }

    fn raise(&mut self, other: &Self) {
        for (rate, other) in self.0.iter_mut().zip(other.0) {
            *rate = rate.max(other);
        }
    }
}

/// A count over a time, 0 where no time passed.
pub fn per_second(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

/// One flow type over one interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// Which flow type.
    pub key: FlowType,
    /// Counts of the interval.
    pub counts: Counters,
    /// Rates of the interval.
    pub rates: Rates,
    /// Counts since the start.
    pub total: Counters,
    /// The highest rates of any interval so far.
    pub peak: Rates,
}

/// What watching cost in the interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostReport {
    /// Share of one CPU, in per cent.
    pub cpu_pct: f64,
    /// How often a program ran.
    pub events: u64,
    /// Mean time of one run; `None` where none ran.
    pub ns_per_event: Option<u64>,
}

/// Everything a view shows of one interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Wall clock at the interval's end, nanoseconds since the Unix epoch.
    pub wall_ns: i128,
    /// How long the interval really was.
    pub elapsed: Duration,
    /// Time watched since the start.
    pub watched: Duration,
    /// Every flow type seen since the start, sorted by namespace, family name and protocol name.
    pub flows: Vec<Flow>,
    /// Tables as the sample had them.
    pub tables: Vec<Table>,
    /// Names of all namespaces in `flows` and `tables`, ended ones too.
    pub names: BTreeMap<u32, String>,
    /// How many network namespaces the source did not look at.
    pub namespaces_left_out: u64,
    /// What the source knows it missed since the start.
    pub lost: u64,
    /// What watching cost, where the source can tell.
    pub cost: Option<CostReport>,
    /// Processor time of our own process in it, where the source can tell.
    pub own: Option<Duration>,
    /// Ports and addresses ranked over the interval, worst first, where the source ranks them.
    pub top: Option<Vec<Top>>,
    /// Single losses of the interval, where the source tells them.
    pub losses: Option<Losses>,
}

/// The totals are the highest counts seen: a source may read a counter that it corrects a moment later (an insert that
/// turns out to be ctnetlink's), so a count that falls is no news, and neither is a row missing from one sample.
#[derive(Debug, Default)]
struct Row {
    total: Counters,
    peak: Rates,
}

/// Turns a run of samples into reports.
#[derive(Debug)]
pub struct Tracker {
    rows: BTreeMap<FlowType, Row>,
    names: BTreeMap<u32, String>,
    mono_ns: u64,
    watched: Duration,
    lost: u64,
    cost: Option<Cost>,
    own_ns: Option<u64>,
    top: Option<Vec<Top>>,
}

impl Tracker {
    /// Starts the first interval at this moment of the monotonic clock: all that the first sample holds is new.
    pub fn new(start_mono_ns: u64) -> Self {
        Self {
            rows: BTreeMap::new(),
            names: BTreeMap::new(),
            mono_ns: start_mono_ns,
            watched: Duration::ZERO,
            lost: 0,
            cost: None,
            own_ns: None,
            top: None,
        }
    }

    /// Lets the next interval begin now: time in which nothing could be watched thins no rate.
    pub const fn restart_interval(&mut self, mono_ns: u64) {
        self.mono_ns = mono_ns;
    }

    /// The report of the interval that ends with this sample.
    pub fn advance(&mut self, sample: Sample) -> Report {
        let elapsed = Duration::from_nanos(sample.mono_ns.saturating_sub(self.mono_ns));
        self.mono_ns = sample.mono_ns;
        self.watched = self.watched.saturating_add(elapsed);
        self.lost = self.lost.max(sample.lost);
        let cost = sample.cost.map(|now| self.cost_since(now, elapsed));
        self.cost = sample.cost;
        // The first interval has our start in it.
        let own = sample.own_ns.map(|now| now.saturating_sub(self.own_ns.unwrap_or(0)));
        self.own_ns = sample.own_ns;
        let top =
            sample.top.as_deref().map(|now| ranking::since(self.top.as_deref().unwrap_or_default(), now));
        self.top = sample.top;

        let counts = self.take_rows(&sample.rows, elapsed);
        self.keep_names(&sample.tables);

        let mut flows: Vec<Flow> = self
            .rows
            .iter()
            .map(|(key, row)| {
                let counts = counts.get(key).copied().unwrap_or_default();
                let rates = Rates::new(&counts, elapsed);
                Flow { key: *key, counts, rates, total: row.total, peak: row.peak }
            })
            .collect();
        flows.sort_by_cached_key(|flow| {
            (flow.key.netns, family_name(flow.key.family), protocol_name(flow.key), flow.key.family)
        });
        Report {
            wall_ns: sample.wall_ns,
            elapsed,
            watched: self.watched,
            flows,
            tables: sample.tables,
            names: self.names.clone(),
            namespaces_left_out: sample.namespaces_left_out,
            lost: self.lost,
            cost,
            own: own.map(Duration::from_nanos),
            top,
            losses: sample.losses,
        }
    }

    fn cost_since(&self, now: Cost, elapsed: Duration) -> CostReport {
        let before = self.cost.unwrap_or_default();
        let run_ns = now.run_ns.saturating_sub(before.run_ns);
        let events = now.runs.saturating_sub(before.runs);
        CostReport {
            cpu_pct: per_second(run_ns, elapsed) / 1e9 * 100.0,
            events,
            ns_per_event: run_ns.checked_div(events),
        }
    }

    fn take_rows(
        &mut self,
        now: &BTreeMap<FlowType, Counters>,
        elapsed: Duration,
    ) -> BTreeMap<FlowType, Counters> {
        now.iter()
            .map(|(key, counters)| {
                let row = self.rows.entry(*key).or_default();
                let counts = Counters(std::array::from_fn(|event| {
                    counters.0[event].saturating_sub(row.total.0[event])
                }));
                row.total.add(&counts);
                row.peak.raise_after(&Rates::new(&counts, elapsed), elapsed);
                (*key, counts)
            })
            .collect()
    }

    fn keep_names(&mut self, tables: &[Table]) {
        for table in tables {
            self.names.insert(table.netns, table.name.clone());
        }
        let rows = &self.rows;
        self.names.retain(|netns, _| {
            tables.iter().any(|table| table.netns == *netns)
                || rows
                    .range(FlowType { netns: *netns, family: 0, proto: 0 }..)
                    .next()
                    .is_some_and(|(key, _)| key.netns == *netns)
        });
        for key in rows.keys().filter(|key| **key != FlowType::OVERFLOW) {
            self.names.entry(key.netns).or_insert_with(|| key.netns.to_string());
        }
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;

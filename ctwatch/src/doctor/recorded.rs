//! What a recording says of the machine that made it, as facts for the checks. Pure.
//!
//! A recording holds counts, tables and limits. It holds no rules, no settings but the limit, no contents of tables and no
//! kernel log: where a check needs these, the facts say that they are not there.

use std::collections::BTreeMap;
use std::time::Duration;

use ctwatch_ebpf::{Counters, Event, FlowType};

use super::Facts;
use super::facts::{FORMAT, Listing, ListingState, Live, LiveFlow, Namespace, TableView};
use super::way::Way;
use crate::kernel::facts::Presence;
use crate::model::{Report, SourceInfo, Table, family_name};

/// More flow types and tables than a machine has; a stranger's recording may name new ones in each report. What comes
/// beyond is counted on the overflow row, or left out.
const MOST_FLOWS: usize = 1 << 17;
const MOST_TABLES: usize = 1 << 12;
const NOT_RECORDED: &str = "a recording does not hold it";

/// Adds up reports.
#[derive(Debug, Default)]
pub struct Recorded {
    release: String,
    info: Option<SourceInfo>,
    unknown: BTreeMap<Event, String>,
    run: Option<u64>,
    /// Missed by the runs before this one, and by this one.
    lost_before: u64,
    lost: u64,
    elapsed: Duration,
    flows: BTreeMap<FlowType, Counters>,
    tables: BTreeMap<u32, Fill>,
    namespaces_left_out: u64,
}

/// A table at its fullest, and at the end.
#[derive(Debug)]
struct Fill {
    name: String,
    worst: (u64, u64),
    last: Option<u64>,
}

impl Recorded {
    /// Takes in a report of a run.
    pub fn add(&mut self, run: u64, release: &str, info: &SourceInfo, report: &Report) {
        if self.run.replace(run) != Some(run) {
            self.lost_before = self.lost_before.saturating_add(std::mem::take(&mut self.lost));
        }
        self.lost = report.lost;
        release.clone_into(&mut self.release);
        if self.info.as_ref() != Some(info) {
            self.unknown.extend(info.unknown.clone());
            self.info = Some(info.clone());
        }
        self.elapsed = self.elapsed.saturating_add(report.elapsed);
        self.namespaces_left_out = self.namespaces_left_out.max(report.namespaces_left_out);
        for flow in &report.flows {
            let known = self.flows.len() < MOST_FLOWS || self.flows.contains_key(&flow.key);
            let key = if known { flow.key } else { FlowType::OVERFLOW };
            let sum = self.flows.entry(key).or_default();
            for (sum, count) in sum.0.iter_mut().zip(flow.counts.0) {
                *sum = sum.saturating_add(count);
            }
        }
        for table in &report.tables {
            self.table(table);
        }
    }

    fn table(&mut self, table: &Table) {
        if self.tables.len() >= MOST_TABLES && !self.tables.contains_key(&table.netns) {
            self.namespaces_left_out = self.namespaces_left_out.max(1);
            return;
        }
        let fill = self.tables.entry(table.netns).or_insert_with(|| Fill {
            name: table.name.clone(),
            worst: (0, 0),
            last: None,
        });
        fill.last = table.count;
        let (Some(count), Some(max)) = (table.count, table.max) else { return };
        let share = |(count, max): (u64, u64)| if max == 0 { 0.0 } else { count as f64 / max as f64 };
        // The limit of a calm table may change without a count: the last of equals.
        if share((count, max)) >= share(fill.worst) {
            fill.worst = (count, max);
        }
    }

    /// The facts of the whole time; `None` where there was no report.
    pub fn facts(self) -> Option<Facts> {
        let info = self.info?;
        let seconds = self.elapsed.as_secs_f64();
        let live = Live {
            seconds,
            around_s: seconds,
            source: Some(info.kind),
            why: info.why,
            unknown: self.unknown,
            flows: self.flows.into_iter().filter_map(|(flow, counts)| live_flow(flow, &counts)).collect(),
            lost: self.lost_before.saturating_add(self.lost),
            ..Live::default()
        };
        let mut namespaces: Vec<Namespace> =
            self.tables.into_iter().map(|(netns, fill)| namespace(netns, fill)).collect();
        // The first namespace is the one that the checks know most of.
        namespaces.sort_by_key(|namespace| !namespace.own);
        Some(Facts {
            format: FORMAT,
            release: self.release,
            conntrack: Presence::Module,
            root: true,
            namespaces,
            namespaces_left_out: self.namespaces_left_out,
            live,
            ..Facts::default()
        })
    }
}

fn namespace(netns: u32, fill: Fill) -> Namespace {
    let own = fill.name == "init";
    let listing = || Listing { state: ListingState::Unreadable(NOT_RECORDED.into()), ..Listing::default() };
    let (count, max) = fill.worst;
    Namespace {
        netns,
        own,
        enter: if own { Way::Own } else { Way::Unknown },
        count: (max > 0).then_some(count).or(fill.last),
        // What it grew from the fullest moment on is no forecast.
        count_after: fill.last,
        limit_writable: own,
        sysctls: (max > 0).then(|| ("nf_conntrack_max".to_owned(), max)).into_iter().collect(),
        nft: listing(),
        iptables: listing(),
        ip6tables: listing(),
        table: TableView { unseen: Some(NOT_RECORDED.into()), ..TableView::default() },
        name: fill.name,
        ..Namespace::default()
    }
}

fn live_flow(flow: FlowType, counts: &Counters) -> Option<LiveFlow> {
    let counts: BTreeMap<Event, u64> = Event::ALL
        .into_iter()
        .map(|event| (event, counts.get(event)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let family = family_name(flow.family).to_owned();
    (!counts.is_empty()).then_some(LiveFlow { netns: flow.netns, family, proto: flow.proto, counts })
}

#[cfg(test)]
mod tests {
    use ctwatch_ebpf::AF_INET;

    use super::*;
    use crate::doctor::{Status, diagnose};
    use crate::model::{Sample, SourceKind, Tracker};

    const UDP: FlowType = FlowType { netns: 7, family: AF_INET, proto: 17 };

    /// Reports of a second each: entries in a table of 1000, and flows refused in that second.
    fn facts(seconds: &[(u64, u64)]) -> Facts {
        let info = SourceInfo { kind: SourceKind::Fexit, why: None, unknown: [].into() };
        let mut recorded = Recorded::default();
        let mut tracker = Tracker::new(0);
        let mut counters = Counters::default();
        for (at, (count, refused)) in (1..).zip(seconds) {
            counters.0[Event::Insert as usize] += 10;
            counters.0[Event::DropTableFull as usize] += refused;
            let report = tracker.advance(Sample {
                mono_ns: at * 1_000_000_000,
                rows: [(UDP, counters)].into(),
                tables: vec![Table { netns: 7, name: "init".into(), count: Some(*count), max: Some(1000) }],
                lost: 2,
                ..Sample::default()
            });
            recorded.add(at / 3, "6.12.1", &info, &report);
        }
        recorded.facts().unwrap()
    }

    #[test]
    fn counts_are_those_of_the_whole_time() {
        let facts = facts(&[(10, 0), (1000, 5), (20, 0), (10, 7)]);
        assert_eq!(facts.live.sum(7, &[Event::DropTableFull]), Some(12));
        assert_eq!(facts.live.sum(7, &[Event::Insert]), Some(40));
        assert!((facts.live.seconds - 4.0).abs() < 1e-9);
        assert_eq!(facts.live.lost, 4, "two runs, two lost in each");
        assert_eq!(facts.namespaces[0].peak(), Some(1000));
    }

    #[test]
    fn a_flood_that_is_over_is_still_found() {
        let diagnosis = diagnose(&facts(&[(10, 0), (1000, 500), (20, 0)]));
        assert_eq!(diagnosis.status, Status::Critical);
        assert_eq!(diagnosis.findings[0].id, "table-full");
        let calm = diagnose(&facts(&[(10, 0), (12, 0)]));
        assert_eq!(calm.status, Status::Ok, "{}", calm.verdict);
        assert!(calm.verdict.contains("12 of 1,000"), "{}", calm.verdict);
        // Nearly full for a moment, and nothing lost.
        let near = diagnose(&facts(&[(10, 0), (900, 0), (20, 0)]));
        assert_eq!((near.status, near.findings[0].id), (Status::Warning, "table-near-full"));
    }

    #[test]
    fn nothing_gives_no_facts() {
        assert!(Recorded::default().facts().is_none());
    }
}

//! What is exported as time series: a bounded number of them, each with counts that never go down.
//!
//! A monitoring system keeps every series that it has met, and takes a count that falls for a restart. So a row that
//! has series keeps them while there is room, and rows that end in the same labels are added up.

use std::collections::{BTreeMap, BTreeSet};

use ctwatch_ebpf::{Event, FlowType};

use super::diff::{Flow, Report};
use super::ranking::{By, Top};
use super::sample::{Sample, SourceInfo};
use super::{family_name, protocol_name};

/// Series that there are whatever happens: of the source, the build, losses, cost and these bounds.
const FIXED: usize = 16;
/// Series of one flow type at most.
const OF_ROW: usize = Event::COUNT;
/// Series of one namespace's table: entries, limit, name.
const OF_TABLE: usize = 3;
/// Series of one line of the ranking.
const OF_TOP: usize = 3;
/// Tables take this share of all series at most, so that flow types keep theirs: one in so many.
const TABLES_SHARE: usize = 4;

/// How many series there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Lines of the ranking of destination ports.
    pub top: usize,
    /// Whether each network namespace has series of its own.
    pub by_netns: bool,
    /// All series together.
    pub series: usize,
}

/// The labels that flow types have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// The network namespace: `init`, the inode of another one, `any` for what is counted without one; `None` where
    /// namespaces are summed.
    pub netns: Option<String>,
    /// Address family.
    pub family: &'static str,
    /// L4 protocol.
    pub proto: String,
}

/// The table of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupation {
    /// As in [`Labels`].
    pub netns: Option<String>,
    /// What people call it; anybody who can start a process may have chosen it.
    pub name: String,
    /// Entries.
    pub count: Option<u64>,
    /// Limit.
    pub max: Option<u64>,
}

/// One line of the ranking, totals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// Of the flows.
    pub labels: Labels,
    /// Destination port of the original direction.
    pub dport: String,
    /// Entries from the packet path.
    pub insert: u64,
    /// Live entries evicted.
    pub early_drop: u64,
    /// New flows refused.
    pub drop: u64,
}

/// Everything that is exported at one moment; counts are totals since the start.
#[derive(Clone, Debug, PartialEq)]
pub struct Exposition {
    /// Flow types. A count is there only where the source reports it.
    pub flows: BTreeMap<Labels, BTreeMap<Event, u64>>,
    /// Tables; where namespaces are summed, the fullest one.
    pub tables: Vec<Occupation>,
    /// The ranking, worst first; empty where the source has none.
    pub top: Vec<Ranked>,
    /// What the source knows it missed.
    pub lost: u64,
    /// Processor time of the programs and of our own process, nanoseconds.
    pub cpu_ns: u64,
    /// The mechanism.
    pub kind: &'static str,
    /// What kept a better one from running.
    pub why: Option<String>,
    /// Whether connection tracking is there to be watched.
    pub watching: bool,
    /// Series left out because there was no room for them.
    pub left_out: usize,
    /// Lines of the ranking beyond those that were asked for.
    pub top_left_out: usize,
    /// Network namespaces that the source does not look at.
    pub namespaces_left_out: u64,
}

/// Chooses what has series.
#[derive(Debug)]
pub struct Series {
    bounds: Bounds,
    /// Rows that have series, and when their namespace was seen last, in readings.
    admitted: BTreeMap<FlowType, u64>,
    readings: u64,
    /// The first namespace, once it was found.
    init: Option<u32>,
}

impl Series {
    /// Nothing has any yet.
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, admitted: BTreeMap::new(), readings: 0, init: None }
    }

    /// What is exported of a reading and of the report that was made from it.
    pub fn expose(
        &mut self,
        report: &Report,
        sample: &Totals,
        info: &SourceInfo,
        watching: bool,
    ) -> Exposition {
        self.readings += 1;
        self.init = self.init.or_else(|| first_namespace(report));
        let names = Names { by_netns: self.bounds.by_netns, init: self.init };
        let (tables, tables_left) = self.tables(report, &names);
        let (top, top_left_out) = self.top(sample.top.as_deref().unwrap_or_default(), &names);
        let places =
            self.bounds.series.saturating_sub(FIXED + OF_TABLE * tables.len() + OF_TOP * self.bounds.top)
                / OF_ROW;
        let rows_left = self.admit(report, if self.bounds.by_netns { places } else { usize::MAX });
        let mut flows: BTreeMap<Labels, BTreeMap<Event, u64>> = BTreeMap::new();
        for flow in report.flows.iter().filter(|flow| self.admitted.contains_key(&flow.key)) {
            let series = flows.entry(names.labels(flow.key)).or_default();
            for event in Event::ALL.into_iter().filter(|event| info.tells(flow.key, *event)) {
                let sum = series.entry(event).or_default();
                *sum = sum.saturating_add(flow.total.get(event));
            }
        }
        Exposition {
            flows,
            tables,
            top,
            top_left_out,
            namespaces_left_out: report.namespaces_left_out,
            lost: report.lost,
            cpu_ns: sample.cpu_ns,
            kind: info.kind.name(),
            why: info.why.clone(),
            watching,
            left_out: rows_left * OF_ROW + tables_left * OF_TABLE,
        }
    }

    /// Lets rows in while there is room; then those give way whose namespace was not seen for the longest time. Says
    /// how many are left out.
    fn admit(&mut self, report: &Report, places: usize) -> usize {
        let seen: BTreeSet<u32> = report.tables.iter().map(|table| table.netns).collect();
        for (key, last) in &mut self.admitted {
            // Of no namespace: it never ends.
            if *key == FlowType::OVERFLOW || seen.contains(&key.netns) {
                *last = self.readings;
            }
        }
        let mut waiting: Vec<&Flow> =
            report.flows.iter().filter(|flow| !self.admitted.contains_key(&flow.key)).collect();
        // What can still happen comes before what can not.
        waiting.sort_by_key(|flow| !(flow.key == FlowType::OVERFLOW || seen.contains(&flow.key.netns)));
        let mut ended: Vec<(u64, FlowType)> = self
            .admitted
            .iter()
            .filter(|(_, last)| **last < self.readings)
            .map(|(key, last)| (*last, *key))
            .collect();
        ended.sort_unstable_by(|a, b| b.cmp(a));
        while self.admitted.len() > places {
            let Some(key) =
                ended.pop().map(|(_, key)| key).or_else(|| self.admitted.keys().next_back().copied())
            else {
                break;
            };
            self.admitted.remove(&key);
        }
        for flow in waiting {
            let lives = flow.key == FlowType::OVERFLOW || seen.contains(&flow.key.netns);
            if self.admitted.len() >= places {
                // Only for one that lives: else two that have ended would take each other's place for ever.
                let Some((_, key)) = ended.pop().filter(|_| lives) else { continue };
                self.admitted.remove(&key);
            }
            if self.admitted.len() < places {
                self.admitted.insert(flow.key, self.readings);
            }
        }
        report.flows.len() - report.flows.iter().filter(|flow| self.admitted.contains_key(&flow.key)).count()
    }

    fn tables(&self, report: &Report, names: &Names) -> (Vec<Occupation>, usize) {
        let occupation = |table: &super::Table| Occupation {
            netns: names.netns(table.netns),
            name: table.name.clone(),
            count: table.count,
            max: table.max,
        };
        if !self.bounds.by_netns {
            let fullest = report.tables.iter().max_by(|a, b| {
                let filled = |table: &super::Table| super::verdict::filled_pct(table).unwrap_or(-1.0);
                filled(a).total_cmp(&filled(b))
            });
            return (fullest.map(occupation).into_iter().collect(), 0);
        }
        let places = self.bounds.series / TABLES_SHARE / OF_TABLE;
        let tables: Vec<Occupation> = report.tables.iter().take(places).map(occupation).collect();
        let left = report.tables.len() - tables.len();
        (tables, left)
    }

    /// The first lines, and how many more there are.
    fn top(&self, ranking: &[Top], names: &Names) -> (Vec<Ranked>, usize) {
        let mut sums: BTreeMap<(Labels, &str), [u64; 3]> = BTreeMap::new();
        for top in ranking.iter().filter(|top| top.by == By::Dport) {
            let flow = FlowType { netns: top.netns, family: top.family, proto: top.proto };
            let sum = sums.entry((names.labels(flow), &top.key)).or_default();
            for (sum, count) in sum.iter_mut().zip([top.insert, top.early_drop, top.drop]) {
                *sum = sum.saturating_add(count);
            }
        }
        let mut top: Vec<Ranked> = sums
            .into_iter()
            .map(|((labels, dport), [insert, early_drop, drop])| Ranked {
                labels,
                dport: dport.to_owned(),
                insert,
                early_drop,
                drop,
            })
            .collect();
        // Stable: what weighs the same stays in the order of its labels.
        top.sort_by_key(|top| std::cmp::Reverse((top.drop.saturating_add(top.early_drop), top.insert)));
        let left = top.len().saturating_sub(self.bounds.top);
        top.truncate(self.bounds.top);
        (top, left)
    }
}

/// What an exposition needs of a sample beside the report that is made from it: the totals that a report has not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    top: Option<Vec<Top>>,
    cpu_ns: u64,
}

impl Totals {
    /// Taken before the sample goes into its report.
    pub fn of(sample: &Sample) -> Self {
        let programs = sample.cost.map_or(0, |cost| cost.run_ns);
        Self { top: sample.top.clone(), cpu_ns: programs.saturating_add(sample.own_ns.unwrap_or(0)) }
    }
}

/// The namespace called `init`, where one alone is.
fn first_namespace(report: &Report) -> Option<u32> {
    let mut called_init = report.names.iter().filter(|(_, name)| *name == "init").map(|(netns, _)| *netns);
    called_init.next().filter(|_| called_init.next().is_none())
}

/// Namespaces as labels. An inode is a number that differs from machine to machine, so the first namespace, which all
/// have, goes by its name. Other names may be shared, or change while the namespace lives, and a label may do neither.
struct Names {
    by_netns: bool,
    init: Option<u32>,
}

impl Names {
    fn netns(&self, netns: u32) -> Option<String> {
        self.by_netns.then(|| match netns {
            0 => "any".into(),
            netns if Some(netns) == self.init => "init".into(),
            netns => netns.to_string(),
        })
    }

    fn labels(&self, flow: FlowType) -> Labels {
        Labels {
            netns: self.netns(flow.netns),
            family: family_name(flow.family),
            proto: protocol_name(flow).into_owned(),
        }
    }
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;

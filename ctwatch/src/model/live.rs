//! How many entries of each flow type are in the table now: what a dump found once, and what came and went since.

use std::collections::{BTreeMap, BTreeSet};

use ctwatch_ebpf::{Counters, Event, FlowType, Group};

use super::diff::Report;
use super::sample::Sample;

/// Entries that a count read a moment later may have and ours not: the kernel counts an entry before it is in the table.
const UNCONFIRMED: u64 = 64;

/// What a dump found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// The namespaces that were read to the end.
    pub namespaces: BTreeSet<u32>,
    /// Entries of each flow type in them.
    pub entries: BTreeMap<FlowType, u64>,
    /// Whether a filter left some of them out.
    pub filtered: bool,
}

/// A number that is known to lie between two others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// It is no less.
    pub least: u64,
    /// It is no more.
    pub most: u64,
}

/// Where counting entries starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    namespaces: BTreeSet<u32>,
    /// What to add to what entered less what left since the source started: at least, at most.
    base: BTreeMap<FlowType, (i128, i128)>,
    filtered: bool,
    /// Events missed by then.
    lost: u64,
}

/// Entries that entered the table.
pub fn entered(counts: &Counters) -> u64 {
    // A clash may be resolved by an entry that is in the table for its replies only.
    [Event::Insert, Event::InsertNetlink, Event::ClashReplyOnly]
        .iter()
        .fold(0, |sum, event| sum.saturating_add(counts.get(*event)))
}

/// Entries that left it.
pub fn left(counts: &Counters) -> u64 {
    Group::Delete.of(counts)
}

fn net(counts: &Counters) -> i128 {
    i128::from(entered(counts)) - i128::from(left(counts))
}

fn at_least_none(number: i128) -> u64 {
    u64::try_from(number.max(0)).unwrap_or(u64::MAX)
}

impl Baseline {
    /// From a dump, and what the source had counted before it began and after it ended.
    ///
    /// An entry that came or went during the dump may be in it or not: so many more or less there may be.
    pub fn new(dump: &Dump, before: &Sample, after: &Sample) -> Self {
        let nothing = Counters::default();
        let flows: BTreeSet<FlowType> = dump.entries.keys().chain(after.rows.keys()).copied().collect();
        let base = flows
            .into_iter()
            .filter(|flow| dump.namespaces.contains(&flow.netns))
            .map(|flow| {
                let found = dump.entries.get(&flow).copied().unwrap_or(0);
                let (before, after) =
                    (before.rows.get(&flow).unwrap_or(&nothing), after.rows.get(&flow).unwrap_or(&nothing));
                let came = entered(after).saturating_sub(entered(before));
                let went = left(after).saturating_sub(left(before));
                let (least, most) = (found.saturating_sub(went), found.saturating_add(came));
                (flow, (i128::from(least) - net(after), i128::from(most) - net(after)))
            })
            .collect();
        let namespaces = dump.namespaces.clone();
        Self { namespaces, base, filtered: dump.filtered, lost: after.lost }
    }

    /// Entries of a flow type now, from its counts since the source started; `None` where nobody can tell.
    pub fn entries(&self, flow: FlowType, total: &Counters) -> Option<Range> {
        if flow.family == 0 || !self.namespaces.contains(&flow.netns) {
            return None;
        }
        // The dump saw none of a flow type that appeared later.
        let (least, most) = self.base.get(&flow).copied().unwrap_or((0, 0));
        Some(Range { least: at_least_none(least + net(total)), most: at_least_none(most + net(total)) })
    }

    /// Gives up what a report contradicts: events were missed, or the kernel's own count of a table is another.
    pub fn reconcile(&mut self, report: &Report) {
        if report.lost > self.lost {
            self.namespaces.clear();
        }
        for table in &report.tables {
            let Some(count) = table.count.filter(|_| self.namespaces.contains(&table.netns)) else {
                continue;
            };
            // The count is read a moment after the events: as many as an interval has may lie between.
            let (mut least, mut most, mut meanwhile) = (0_u64, 0_u64, 0_u64);
            for flow in report.flows.iter().filter(|flow| flow.key.netns == table.netns) {
                let Some(range) = self.entries(flow.key, &flow.total) else { continue };
                least = least.saturating_add(range.least);
                most = most.saturating_add(range.most);
                meanwhile =
                    meanwhile.saturating_add(entered(&flow.counts)).saturating_add(left(&flow.counts));
            }
            // Flow types that nothing happened to since the start are in no report.
            let silent = |(flow, _): &(&FlowType, &(i128, i128))| {
                flow.netns == table.netns && report.flows.iter().all(|other| other.key != **flow)
            };
            for (_, (low, high)) in self.base.iter().filter(silent) {
                least = least.saturating_add(at_least_none(*low));
                most = most.saturating_add(at_least_none(*high));
            }
            let slack = meanwhile.saturating_add(UNCONFIRMED).saturating_add(count / 50);
            let too_many = least > count.saturating_add(slack);
            let too_few = !self.filtered && count > most.saturating_add(slack);
            if too_many || too_few {
                self.namespaces.remove(&table.netns);
            }
        }
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;

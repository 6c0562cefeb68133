//! When the hooks that wait for something are due, and what was missed until then: pure.

use std::collections::BTreeMap;

use ctwatch_ebpf::{Counters, Event, FlowType};

use super::proc_stat::Statistics;
use crate::model::Table;

/// A table with no more free places than this is near its limit whatever its size: a flood fills so
/// many between two looks.
const RESERVE: u64 = 65_536;
/// How many looks ahead the growth since the last one must fit.
const LOOKS: u64 = 8;

/// Whether any table may be full before the next look.
///
/// Where a table cannot be read, it may.
pub(super) fn near_full(before: &[Table], now: &[Table]) -> bool {
    let near = |table: &Table| {
        let (Some(count), Some(max)) = (table.count, table.max) else { return true };
        // A limit of 0 means none.
        if max == 0 {
            return false;
        }
        let old = before.iter().find(|old| old.netns == table.netns).and_then(|old| old.count);
        let growth = old.map_or(0, |old| count.saturating_sub(old));
        let free = max.saturating_sub(count);
        free <= RESERVE || free < max / 4 || free < growth.saturating_mul(LOOKS)
    };
    now.is_empty() || now.iter().any(near)
}

/// The kernel's counters of failures and evictions, all CPUs of a namespace together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Failures {
    /// Entries that could not enter the table at confirmation.
    pub(super) insert_failed: u64,
    /// Packets dropped: refused flows, clashes that were not resolved, what a tracker drops itself.
    pub(super) drop: u64,
    /// Entries that it evicted for new flows.
    pub(super) early_drop: u64,
    /// Invalid packets; ICMP messages have a counter of their own (`icmp_error`).
    pub(super) invalid: u64,
}

impl Failures {
    /// From the kernel's statistics, where these have all.
    pub(super) fn of(statistics: &Statistics<'_>) -> Option<Self> {
        let get = |title| statistics.get(title);
        Some(Self {
            insert_failed: get("insert_failed")?,
            drop: get("drop")?,
            early_drop: get("early_drop")?,
            invalid: get("invalid")?.saturating_add(get("icmp_error")?),
        })
    }
}

/// What the kernel's `insert_failed` counts.
pub(super) const FAILED: [Event; 3] = [Event::FailedClash, Event::FailedChaintoolong, Event::FailedDying];
/// What its `drop` counts; a clash is in both.
pub(super) const DROPPED: [Event; 3] = [Event::FailedClash, Event::DropTableFull, Event::DropNoMemory];

/// How often these events were counted.
fn sum<'a>(rows: impl Iterator<Item = &'a Counters>, events: &[Event]) -> u64 {
    rows.map(|row| events.iter().map(|event| row.get(*event)).sum::<u64>()).sum()
}

/// Compares the kernel's counters with what the hooks saw.
#[derive(Debug, Default)]
pub(super) struct Reckoning {
    /// Each namespace's counters when it was first seen.
    first: BTreeMap<u32, Failures>,
    /// What namespaces that are gone had counted since.
    gone: Failures,
    last: BTreeMap<u32, Failures>,
    /// The refusals that were counted for each namespace when it was first seen, …
    first_refused: BTreeMap<u32, u64>,
    /// … and at the last look.
    last_refused: BTreeMap<u32, u64>,
}

impl Reckoning {
    /// Takes in the kernel's counters as they are now.
    pub(super) fn follow(&mut self, kernel: &BTreeMap<u32, Failures>) {
        for (netns, now) in kernel {
            self.first.entry(*netns).or_insert(*now);
        }
        let ended: Vec<u32> = self.last.keys().filter(|netns| !kernel.contains_key(netns)).copied().collect();
        for netns in ended {
            let since = since(self.first.remove(&netns), self.last.remove(&netns));
            self.gone.insert_failed += since.insert_failed;
            self.gone.drop += since.drop;
            self.gone.early_drop += since.early_drop;
        }
        self.last.clone_from(kernel);
    }

    /// How many failures the kernel has counted since the start that no hook has told of.
    ///
    /// `kernel` must have been read before `rows`, so that what happens in between cannot look unexplained.
    /// `refused` are refusals whose flow nobody looked at, which are known to be lost already.
    pub(super) fn unexplained(
        &mut self,
        kernel: &BTreeMap<u32, Failures>,
        rows: &BTreeMap<FlowType, Counters>,
        refused: u64,
    ) -> u64 {
        self.follow(kernel);
        let mut told = self.gone;
        for (netns, now) in kernel {
            let since = since(self.first.get(netns).copied(), Some(*now));
            told.insert_failed += since.insert_failed;
            told.drop += since.drop;
        }
        let failed = sum(rows.values(), &FAILED);
        let dropped = sum(rows.values(), &DROPPED) + refused;
        told.insert_failed.saturating_sub(failed) + told.drop.saturating_sub(dropped)
    }

    /// Refusals that were counted for namespaces that do not exist, or that have refused fewer, if another one has fewer
    /// than the kernel counted: a wrong place was read for the right one. `rows` were read after what [`Self::follow`]
    /// took in.
    ///
    /// A namespace that came and went between two readings is unknown too; it takes nothing from another one.
    pub(super) fn contradiction(&mut self, rows: &BTreeMap<FlowType, Counters>) -> BTreeMap<FlowType, u64> {
        let mut refused: BTreeMap<u32, u64> = self.last.keys().map(|netns| (*netns, 0)).collect();
        for (flow, row) in rows {
            if let Some(refused) = refused.get_mut(&flow.netns) {
                *refused += row.get(Event::DropTableFull);
            }
        }
        let dropped = |netns: &u32| since(self.first.get(netns).copied(), self.last.get(netns).copied()).drop;
        // What was counted at the last look, the kernel has counted by now.
        let surplus = |netns: &u32| {
            let first = self.first_refused.get(netns);
            let seen = self
                .last_refused
                .get(netns)
                .zip(first)
                .map_or(0, |(last, first)| last.saturating_sub(*first));
            seen > dropped(netns)
        };
        let strange: BTreeMap<FlowType, u64> = rows
            .iter()
            .filter(|(flow, _)| flow.family != 0)
            .filter(|(flow, _)| !self.first.contains_key(&flow.netns) || surplus(&flow.netns))
            .map(|(flow, row)| (*flow, row.get(Event::DropTableFull)))
            .filter(|(_, refused)| *refused > 0)
            .collect();
        let lacks = |netns: &u32| {
            let here = rows.iter().filter(|(flow, _)| flow.netns == *netns).map(|(_, row)| row);
            dropped(netns) > sum(here, &DROPPED)
        };
        let contradicts = !strange.is_empty() && self.last.keys().any(lacks);
        self.first_refused.retain(|netns, _| refused.contains_key(netns));
        for (netns, refused) in &refused {
            self.first_refused.entry(*netns).or_insert(*refused);
        }
        self.last_refused = refused;
        if contradicts { strange } else { BTreeMap::new() }
    }

    /// How many entries the kernel has evicted since the start, by what [`Self::follow`] took in.
    pub(super) fn evicted(&self) -> u64 {
        let here = self.last.iter().map(|(netns, now)| since(self.first.get(netns).copied(), Some(*now)));
        self.gone.early_drop + here.map(|since| since.early_drop).sum::<u64>()
    }
}

fn since(first: Option<Failures>, now: Option<Failures>) -> Failures {
    let (first, now) = (first.unwrap_or_default(), now.unwrap_or_default());
    Failures {
        insert_failed: now.insert_failed.saturating_sub(first.insert_failed),
        drop: now.drop.saturating_sub(first.drop),
        early_drop: now.early_drop.saturating_sub(first.early_drop),
        invalid: now.invalid.saturating_sub(first.invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(netns: u32, count: u64, max: u64) -> Table {
        Table { netns, name: netns.to_string(), count: Some(count), max: Some(max) }
    }

    #[test]
    fn a_small_table_is_always_near_its_limit_and_a_large_empty_one_is_not() {
        assert!(near_full(&[], &[table(1, 0, 65_536)]));
        assert!(!near_full(&[], &[table(1, 1_000, 262_144)]));
        assert!(near_full(&[], &[table(1, 1_000, 262_144), table(2, 200_000, 262_144)]));
        assert!(near_full(&[], &[table(1, 800_000, 1_000_000)]));
    }

    #[test]
    fn growth_brings_the_limit_near() {
        let before = [table(1, 100_000, 1_000_000)];
        assert!(!near_full(&before, &[table(1, 150_000, 1_000_000)]));
        assert!(near_full(&before, &[table(1, 250_000, 1_000_000)]));
        assert!(!near_full(&before, &[table(1, 50_000, 1_000_000)]), "it shrinks");
    }

    #[test]
    fn what_cannot_be_read_may_be_full() {
        assert!(near_full(&[], &[]));
        assert!(near_full(&[], &[Table { max: None, ..table(1, 0, 0) }]));
        assert!(!near_full(&[], &[table(1, 5, 0)]), "no limit");
    }

    #[test]
    fn statistics_are_summed_over_cpus() {
        let failures = |text| Statistics::parse(text).and_then(|statistics| Failures::of(&statistics));
        let text = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error\n\
                    0000000a  00000000 00000000 00000000 00000005 00000000 00000000 00000000 00000000 00000002 00000010 00000001 00000001\n\
                    0000000a  00000000 00000000 00000000 00000010 00000000 00000000 00000000 00000000 00000001 00000001 00000000 00000000\n";
        assert_eq!(failures(text), Some(Failures { insert_failed: 3, drop: 17, early_drop: 1, invalid: 22 }));
        assert_eq!(failures("entries drop\n1 1\n"), None);
    }

    #[test]
    fn refusals_of_a_namespace_that_does_not_exist_contradict_those_that_are_missing() {
        let flow = |netns| FlowType { netns, family: 2, proto: 17 };
        let refused = |count| {
            let mut counters = Counters::default();
            counters.0[Event::DropTableFull as usize] = count;
            counters
        };
        let kernel = |drop| BTreeMap::from([(1, Failures { drop, ..Failures::default() })]);
        let mut reckoning = Reckoning::default();
        reckoning.unexplained(&kernel(5), &BTreeMap::new(), 0);
        let right = BTreeMap::from([(flow(1), refused(3))]);
        reckoning.unexplained(&kernel(8), &right, 0);
        assert_eq!(reckoning.contradiction(&right), BTreeMap::new());
        let wrong = BTreeMap::from([(flow(77), refused(3))]);
        assert_eq!(reckoning.unexplained(&kernel(8), &wrong, 0), 0, "the sum alone looks right");
        assert_eq!(reckoning.contradiction(&wrong), BTreeMap::from([(flow(77), 3)]));
        let short_lived = BTreeMap::from([(flow(1), refused(3)), (flow(77), refused(9))]);
        assert_eq!(reckoning.contradiction(&short_lived), BTreeMap::new(), "the known one lacks nothing");
    }

    #[test]
    fn two_namespaces_that_are_taken_for_each_other_contradict_the_kernel() {
        let flow = |netns| FlowType { netns, family: 2, proto: 17 };
        let rows = |counts: [(u32, u64); 2]| -> BTreeMap<FlowType, Counters> {
            let refused = |count| {
                let mut counters = Counters::default();
                counters.0[Event::DropTableFull as usize] = count;
                counters
            };
            counts.into_iter().map(|(netns, count)| (flow(netns), refused(count))).collect()
        };
        let kernel = |first, second| {
            let of = |drop| Failures { drop, ..Failures::default() };
            BTreeMap::from([(1, of(first)), (2, of(second))])
        };
        let mut reckoning = Reckoning::default();
        let mut look = |first, second, counts| {
            reckoning.follow(&kernel(first, second));
            reckoning.contradiction(&rows(counts))
        };
        // What both had refused before they were first seen proves nothing.
        assert_eq!(look(50, 50, [(1, 3), (2, 40)]), BTreeMap::new());
        assert_eq!(look(60, 52, [(1, 13), (2, 45)]), BTreeMap::new(), "the kernel was asked before");
        assert_eq!(look(60, 55, [(1, 13), (2, 45)]), BTreeMap::new());
        // Five of the first were counted for the second.
        assert_eq!(look(65, 55, [(1, 13), (2, 50)]), BTreeMap::new(), "they may have come since");
        assert_eq!(look(65, 55, [(1, 13), (2, 50)]), BTreeMap::from([(flow(2), 50)]));
    }

    fn row(counts: &[(Event, u64)]) -> BTreeMap<FlowType, Counters> {
        let mut counters = Counters::default();
        for (event, count) in counts {
            counters.0[*event as usize] = *count;
        }
        BTreeMap::from([(FlowType { netns: 1, family: 2, proto: 17 }, counters)])
    }

    #[test]
    fn evictions_count_from_the_start_and_a_namespace_that_is_gone_keeps_its_share() {
        let kernel =
            |netns, early_drop| BTreeMap::from([(netns, Failures { early_drop, ..Failures::default() })]);
        let mut reckoning = Reckoning::default();
        reckoning.follow(&kernel(1, 100));
        assert_eq!(reckoning.evicted(), 0);
        reckoning.follow(&kernel(1, 107));
        assert_eq!(reckoning.evicted(), 7);
        reckoning.follow(&kernel(2, 50));
        reckoning.follow(&kernel(2, 53));
        assert_eq!(reckoning.evicted(), 10);
    }

    #[test]
    fn only_what_nobody_has_seen_is_unexplained() {
        let kernel = |netns, insert_failed, drop| {
            BTreeMap::from([(netns, Failures { insert_failed, drop, ..Failures::default() })])
        };
        let mut reckoning = Reckoning::default();
        assert_eq!(reckoning.unexplained(&kernel(1, 50, 70), &row(&[]), 0), 0, "from before the start");
        assert_eq!(reckoning.unexplained(&kernel(1, 53, 70), &row(&[]), 0), 3);
        let seen = row(&[(Event::FailedChaintoolong, 1), (Event::FailedDying, 2)]);
        assert_eq!(reckoning.unexplained(&kernel(1, 53, 70), &seen, 0), 0);
        let clash = row(&[(Event::FailedClash, 4), (Event::FailedDying, 3), (Event::DropTableFull, 5)]);
        assert_eq!(reckoning.unexplained(&kernel(1, 57, 79), &clash, 0), 0, "a clash counts in both");
        assert_eq!(
            reckoning.unexplained(&kernel(1, 57, 82), &clash, 2),
            1,
            "two of them are known to be lost"
        );
        assert_eq!(
            reckoning.unexplained(&kernel(2, 9, 9), &clash, 2),
            1,
            "a namespace that is gone keeps its share"
        );
        assert_eq!(reckoning.unexplained(&kernel(2, 11, 9), &clash, 2), 3);
    }
}

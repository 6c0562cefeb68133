//! Who causes it: the ports and addresses that insert, evict and are refused most, and single losses.

use std::collections::BTreeMap;

use ctwatch_ebpf::loss::has_ports;
use ctwatch_ebpf::{Counters, FlowType, Group};

use super::trace::Record;

/// What a ranking is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Destination port of the original direction.
    Dport,
    /// Source address of the original direction.
    Src,
    /// Destination address of the original direction.
    Dst,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Dport, Self::Src, Self::Dst];

    /// As JSON and flags spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dport => "dport",
            Self::Src => "src",
            Self::Dst => "dst",
        }
    }
}

/// One line of a ranking: counts of one port or address. In a sample they are totals, in a report those of the interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// What the key is.
    pub by: By,
    /// Inode of the network namespace.
    pub netns: u32,
    /// [`ctwatch_ebpf::AF_INET`] or [`ctwatch_ebpf::AF_INET6`].
    pub family: u8,
    /// L4 protocol number.
    pub proto: u8,
    /// The port in decimal, or the address.
    pub key: String,
    /// Entries from the packet path.
    pub insert: u64,
    /// Live entries evicted.
    pub early_drop: u64,
    /// New flows refused.
    pub drop: u64,
    /// Packets that belonged to no flow.
    pub invalid: u64,
}

impl Top {
    /// Its counts: inserts, evictions, refusals, invalid packets.
    pub const fn counts(&self) -> [u64; 4] {
        [self.insert, self.early_drop, self.drop, self.invalid]
    }

    /// What it counts.
    pub fn identity(&self) -> (By, u32, u8, u8, &str) {
        (self.by, self.netns, self.family, self.proto, &self.key)
    }
}

/// What of a ranking is new since the sample before, most losses first, then most inserts, then most invalid
/// packets.
///
/// The kernel's ranking is bounded: a key may leave it and come back with its counts begun anew, so a total that fell is
/// all new.
pub fn since(before: &[Top], now: &[Top]) -> Vec<Top> {
    let before: BTreeMap<_, _> = before.iter().map(|top| (top.identity(), top)).collect();
    let mut new: Vec<Top> = now
        .iter()
        .filter_map(|top| {
            let counts = match before.get(&top.identity()).map(|old| old.counts()) {
                Some(old) if old.iter().zip(top.counts()).all(|(old, now)| *old <= now) => {
                    std::array::from_fn(|which| top.counts()[which] - old[which])
                }
                _ => top.counts(),
            };
            let [insert, early_drop, drop, invalid] = counts;
            (counts != [0; 4]).then(|| Top { insert, early_drop, drop, invalid, ..top.clone() })
        })
        .collect();
    sort(&mut new);
    new
}

/// Most losses first, then most inserts, then most invalid packets.
pub fn sort(top: &mut [Top]) {
    top.sort_by(|a, b| {
        let weight = |top: &Top| (top.drop.saturating_add(top.early_drop), top.insert, top.invalid);
        (a.by, std::cmp::Reverse(weight(a)), a.identity()).cmp(&(
            b.by,
            std::cmp::Reverse(weight(b)),
            b.identity(),
        ))
    });
}

/// How many events of these flow types the ranking by one kind of key leaves out: it is bounded, and where too many keys
/// compete for its places, some are not in it. Inserts, evictions, refusals, invalid packets, in the time
/// that both tell of.
pub fn unranked<'a>(
    top: impl IntoIterator<Item = &'a Top>,
    by: By,
    flows: impl IntoIterator<Item = (&'a FlowType, &'a Counters)>,
) -> [u64; 4] {
    let mut left = [0; 4];
    // What has no port has no place in a ranking of ports, and what shares the last row is of no known kind.
    let ranked = |flow: &FlowType| flow.family != 0 && (by != By::Dport || has_ports(flow.proto));
    for (_, counts) in flows.into_iter().filter(|(flow, _)| ranked(flow)) {
        let sums = [Group::Insert, Group::EarlyDrop, Group::Drop, Group::Invalid].map(|sum| sum.of(counts));
        left = std::array::from_fn(|which| left[which] + sums[which]);
    }
    for row in top.into_iter().filter(|row| row.by == by) {
        let told = row.counts();
        left = std::array::from_fn(|which| left[which].saturating_sub(told[which]));
    }
    left
}

/// Single losses, and how many more there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Drops, evictions and failed inserts, oldest first.
    pub events: Vec<Record>,
    /// Losses of the same time that are not among them: they outran the budget.
    pub more: u64,
}

#[cfg(test)]
#[path = "ranking_tests.rs"]
mod tests;

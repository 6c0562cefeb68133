//! What the kernel counts by itself in a namespace: per-CPU statistics and the number of entries, by ctnetlink (the file
//! `/proc/net/stat/nf_conntrack` is missing without CONFIG_NF_CONNTRACK_PROCFS).

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use super::message::{CT_GET_STATS, CT_GET_STATS_CPU, Message};
use super::socket::Requests;

/// The statistics that are used, by their place in [`Sums`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Packets whose entry could not enter.
    InsertFailed,
    /// Packets refused: no room, no memory, unresolved clash, a tracker's verdict.
    Drop,
    /// Entries evicted.
    EarlyDrop,
    /// Races that both survived (5.9).
    ClashResolve,
    /// Packets whose hash chain was too long (5.15), also in [`Statistic::InsertFailed`].
    ChainTooLong,
    /// Invalid packets, all but …
    Invalid,
    /// … invalid ICMP messages.
    IcmpError,
}

/// How many there are.
const STATISTICS: usize = 7;

/// `CTA_STATS_…`, in the order of [`Statistic`].
const KINDS: [u16; STATISTICS] = [9, 10, 11, 14, 15, 4, 12];

/// Growth since the first reading, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums([u64; STATISTICS]);

impl Sums {
    /// One of them.
    pub const fn get(&self, which: Statistic) -> u64 {
        self.0[which as usize]
    }

    /// Whether entries came to grief between two readings: invalid packets belong to none.
    pub fn is_calm_since(&self, before: &Self) -> bool {
        let entries = |sums: &Self| sums.0.split_at(Statistic::Invalid as usize).0.to_vec();
        entries(self) == entries(before)
    }

    #[cfg(test)]
    pub(super) fn of(parts: &[(Statistic, u64)]) -> Self {
        let mut sums = Self::default();
        for (which, value) in parts {
            sums.0[*which as usize] = *value;
        }
        sums
    }
}

/// One CPU's values: 32 bits that wrap (`struct ip_conntrack_stat`).
type PerCpu = [u32; STATISTICS];

/// Follows one namespace's statistics.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    last: BTreeMap<u16, PerCpu>,
    sums: Sums,
    /// Whether the kernel counts chains that are too long.
    pub has_chaintoolong: bool,
    /// Whether it counts resolved clashes.
    pub has_clash_resolve: bool,
}

impl Statistics {
    /// Starts at the kernel's present values.
    pub fn start(requests: &mut Requests) -> io::Result<Self> {
        let mut statistics = Self::default();
        statistics.read(requests)?;
        statistics.sums = Sums::default();
        Ok(statistics)
    }

    /// Starts at 0, as the namespace did.
    pub fn from_birth(requests: &mut Requests) -> io::Result<Self> {
        let mut statistics = Self::default();
        statistics.read(requests)?;
        Ok(statistics)
    }

    /// Growth since the start.
    pub fn read(&mut self, requests: &mut Requests) -> io::Result<Sums> {
        requests.dump(CT_GET_STATS_CPU, 0, |message| {
            self.take(message);
            ControlFlow::Continue(())
        })?;
        Ok(self.sums)
    }

    fn take(&mut self, message: &Message<'_>) {
        let Some(cpu) = message.resource() else { return };
        let mut values: PerCpu = [0; STATISTICS];
        for attribute in message.attributes() {
            if let Some(place) = KINDS.iter().position(|kind| *kind == attribute.kind) {
                values[place] = attribute.u32().unwrap_or(0);
                self.has_clash_resolve |= place == Statistic::ClashResolve as usize;
                self.has_chaintoolong |= place == Statistic::ChainTooLong as usize;
            }
        }
        // CPUs are the possible ones (`for_each_possible_cpu`): none joins later.
        let before = self.last.insert(cpu, values).unwrap_or_default();
        for ((sum, now), before) in self.sums.0.iter_mut().zip(values).zip(before) {
            *sum += u64::from(now.wrapping_sub(before));
        }
    }
}

/// The number of entries in the namespace, those not yet confirmed included.
pub fn entries(requests: &mut Requests) -> io::Result<u64> {
    /// `CTA_STATS_GLOBAL_ENTRIES`.
    const ENTRIES: u16 = 1;
    let mut count = None;
    requests.get(CT_GET_STATS, |message| {
        count = message.attributes().find(ENTRIES).and_then(|entries| entries.u32());
    })?;
    count
        .map(u64::from)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "ctnetlink gave no count of entries"))
}

#[cfg(test)]
mod tests {
    use super::super::message::Messages;
    use super::super::message::build::{attribute, message};
    use super::*;

    fn cpu(number: u16, values: &[(u16, u32)]) -> Vec<u8> {
        let parts: Vec<Vec<u8>> =
            values.iter().map(|(kind, value)| attribute(*kind, &value.to_be_bytes())).collect();
        let mut bytes = message(CT_GET_STATS_CPU, 0, 0, &parts);
        bytes[18..20].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    #[test]
    fn growth_is_summed_over_cpus_and_over_wraps() {
        let mut statistics = Statistics::default();
        let mut take = |bytes: Vec<u8>| {
            statistics.take(&Messages::new(&bytes).next().unwrap());
            statistics.sums
        };
        take(cpu(0, &[(10, u32::MAX - 1), (11, 5)]));
        let start = take(cpu(1, &[(10, 7)]));
        take(cpu(0, &[(10, 3), (11, 6)]));
        let now = take(cpu(1, &[(10, 8)]));
        assert_eq!(now.get(Statistic::Drop) - start.get(Statistic::Drop), 6);
        assert_eq!(now.get(Statistic::EarlyDrop) - start.get(Statistic::EarlyDrop), 1);
        assert!(!statistics.has_chaintoolong && !statistics.has_clash_resolve);
    }

    #[test]
    fn invalid_packets_are_no_unrest() {
        let before = Sums::of(&[(Statistic::Drop, 4)]);
        let invalid = [(Statistic::Drop, 4), (Statistic::Invalid, 9), (Statistic::IcmpError, 2)];
        assert!(Sums::of(&invalid).is_calm_since(&before));
        assert!(!Sums::of(&[(Statistic::ChainTooLong, 1), (Statistic::Drop, 4)]).is_calm_since(&before));
    }

    #[test]
    fn what_the_kernel_does_not_count_is_seen() {
        let mut statistics = Statistics::default();
        let bytes = cpu(0, &[(14, 2), (15, 0)]);
        statistics.take(&Messages::new(&bytes).next().unwrap());
        assert!(statistics.has_chaintoolong && statistics.has_clash_resolve);
    }
}

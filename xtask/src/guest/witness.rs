//! What the kernel itself says, read with its own tools and never through ctwatch.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Context;

use super::space::{Space, checked};
use super::wait;

/// The per-CPU statistics of one namespace, summed: `conntrack -S`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats(BTreeMap<String, u64>);

impl Stats {
    /// Reads them.
    pub(super) fn read(space: &Space) -> anyhow::Result<Self> {
        Self::parse(&checked(space.command("conntrack").arg("-S"))?)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut sums = BTreeMap::new();
        for word in text.split_whitespace() {
            let (name, value) = word.split_once('=').with_context(|| format!("conntrack -S: {word}"))?;
            let value: u64 = value.parse().with_context(|| format!("conntrack -S: {word}"))?;
            if name != "cpu" {
                *sums.entry(name.to_owned()).or_default() += value;
            }
        }
        anyhow::ensure!(sums.contains_key("drop"), "conntrack -S printed no counters: {text}");
        Ok(Self(sums))
    }

    /// One counter; `None` where this kernel has none of that name.
    pub(super) fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// What was counted since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let grown = |(name, value): (&String, &u64)| {
            (name.clone(), value.wrapping_sub(before.get(name).unwrap_or_default()))
        };
        Self(self.0.iter().map(grown).collect())
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, count) in self.0.iter().filter(|(_, count)| **count > 0) {
            write!(f, "{name}={count} ")?;
        }
        Ok(())
    }
}

/// The same counters from `/proc/net/stat/nf_conntrack`; `None` on kernels built without it.
pub(super) fn proc_stats(space: &Space) -> anyhow::Result<Option<Stats>> {
    space.enter(|| {
        // `/proc/net` is the namespace of the process's first thread, so the thread's own path is read.
        let Ok(text) = fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack") else { return Ok(None) };
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        let mut sums = BTreeMap::new();
        for line in lines {
            for (name, value) in names.iter().zip(line.split_whitespace()) {
                let value = u64::from_str_radix(value, 16).with_context(|| format!("{name}: {value}"))?;
                *sums.entry((*name).to_owned()).or_default() += value;
            }
        }
        Ok(Some(Stats(sums)))
    })
}

/// `conntrack -C`: the namespace's own count, unconfirmed and reply-only entries included.
pub(super) fn count(space: &Space) -> anyhow::Result<u64> {
    checked(space.command("conntrack").arg("-C"))?.trim().parse().context("conntrack -C")
}

/// `conntrack -L` counted by protocol number. A dump also removes entries whose time is over.
pub(super) fn listed(space: &Space, family: &str) -> anyhow::Result<BTreeMap<u8, u64>> {
    let text = checked(space.command("conntrack").args(["-L", "-f", family]))?;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let proto = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        let proto: u8 = proto.with_context(|| format!("conntrack -L: {line}"))?;
        *counts.entry(proto).or_default() += 1;
    }
    Ok(counts)
}

/// All entries that `conntrack -L` shows, both families.
pub(super) fn listed_total(space: &Space) -> anyhow::Result<u64> {
    let v4: u64 = listed(space, "ipv4")?.values().sum();
    let v6: u64 = listed(space, "ipv6")?.values().sum();
    Ok(v4 + v6)
}

/// Packets that opened a flow, as the rule of [`super::state::RULES`] counted them.
pub(super) fn new_packets(space: &Space) -> anyhow::Result<u64> {
    let text = checked(space.command("nft").args(["list", "chain", "inet", "watched", "out"]))?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|word| word.parse().ok()).with_context(|| format!("nft counter: {text}"))
}

/// Waits until `entries` are in the table.
pub(super) fn wait_count(space: &Space, entries: u64, limit: Duration) -> anyhow::Result<()> {
    wait::until(&format!("{entries} entries"), limit, || {
        // The dump is what makes the kernel look at timeouts now instead of at the collector's next round.
        listed_total(space)?;
        let count = count(space)?;
        Ok(if count == entries { Ok(()) } else { Err(format!("{count} in {}", space.label())) })
    })
}

#[cfg(test)]
mod tests {
    use super::Stats;

    #[test]
    fn sums_cpus() {
        let text = "cpu=0 found=1 invalid=0 insert=2 drop=3 early_drop=4\ncpu=1 found=1 invalid=5 insert=0 drop=4 early_drop=1\n";
        let stats = Stats::parse(text).expect("parses");
        assert_eq!(stats.get("drop"), Some(7));
        assert_eq!(stats.get("early_drop"), Some(5));
        assert_eq!(stats.get("cpu"), None);
        assert_eq!(stats.get("chaintoolong"), None);
    }

    #[test]
    fn refuses_what_is_no_statistic() {
        assert!(Stats::parse("").is_err());
        assert!(Stats::parse("cpu=0 drop=x").is_err());
    }
}

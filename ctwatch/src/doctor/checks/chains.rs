//! The limit against the buckets, and what it does to each look-up; memory.

use super::{BUCKETS, MAX, STATS, live_source, occupancy, of_namespace, per_second};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::limit;
use crate::doctor::text::{rate, sum, thousands};

/// Above this mean length a look-up costs several cache misses more than it need.
const LONG: f64 = 4.0;
/// The kernel makes the limit so many times the buckets where `hashsize` is given, and did so by itself before 5.15
/// (`nf_conntrack_init_start`, 5.10 to 7.3).
const OLD_ADVICE: u64 = 8;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    // There is one hash table for all namespaces.
    let Some(namespace) = facts.namespaces.first() else { return Vec::new() };
    let mut findings = Vec::new();
    findings.extend(chains(facts, namespace));
    findings.extend(too_long(facts));
    findings.extend(occupancy::memory(facts));
    findings
}

fn chains(facts: &Facts, namespace: &Namespace) -> Option<Finding> {
    let (max, buckets) = (namespace.max()?, namespace.sysctl("buckets").filter(|buckets| *buckets > 0)?);
    let entries = sum(facts.namespaces.iter().filter_map(Namespace::peak));
    // An entry is hashed twice, once for each direction.
    let mean = |entries: u64| 2.0 * entries as f64 / buckets as f64;
    let (now, at_limit) = (mean(entries), mean(max));
    if at_limit <= LONG {
        return None;
    }
    let old = max >= buckets.saturating_mul(OLD_ADVICE);
    let advice = if old {
        " The advice “buckets = limit / 8” is from the time before 5.15, when memory was dear; since then the kernel itself \
         makes as many buckets as entries, unless the module is given `hashsize=`: its limit is still 8 times that."
    } else {
        ""
    };
    let status = if now > LONG { Status::Warning } else { Status::Ok };
    let finding = Finding::new(
        "long-chains",
        status,
        format!(
            "{} buckets for a limit of {}: chains of {now:.1} on average now, {at_limit:.0} when full",
            thousands(buckets),
            thousands(max)
        ),
        format!(
            "Each packet walks a chain to find its entry, so long chains cost CPU for every packet and more buckets cost \
             only 8 bytes each.{advice}"
        ),
    )
    .seen("buckets", buckets, BUCKETS)
    .seen("max", max, MAX)
    .seen("mean_chain_now", tenths(now), "2 × entries / buckets")
    .seen("mean_chain_at_limit", tenths(at_limit), "2 × limit / buckets")
    .seen("worst_chain_at_limit", worst(at_limit, buckets), "expected by Poisson's distribution, for evenly spread hashes");
    Some(finding.cure(limit::more_buckets(facts, namespace)))
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The longest chain to expect: the shortest length that less than one of the buckets should reach.
fn worst(mean: f64, buckets: u64) -> u64 {
    let mut term = (-mean).exp();
    let mut reached = 1.0;
    let mut length = 0u64;
    // e^-mean is 0 in f64 above about 745; such chains are far beyond what the kernel accepts.
    while reached * buckets as f64 >= 1.0 && length < 1000 && term > 0.0 {
        reached -= term;
        length += 1;
        term *= mean / length as f64;
    }
    length.saturating_sub(1)
}

/// Packets dropped because their chain was too long (5.15).
fn too_long(facts: &Facts) -> Option<Finding> {
    let namespace = facts.namespaces.iter().find(|namespace| lost(facts, namespace) > 0).or_else(|| {
        facts
            .namespaces
            .iter()
            .find(|namespace| namespace.stats.get("chainlength").is_some_and(|lost| *lost > 0))
    })?;
    let live = lost(facts, namespace);
    let buckets = namespace.sysctl("buckets");
    let since_boot =
        namespace.stats_after.get("chainlength").or_else(|| namespace.stats.get("chainlength")).copied();
    let entries = sum(facts.namespaces.iter().filter_map(Namespace::peak));
    // Entries that wait for others to go prove how far chains reach; a table with room says nothing of it.
    let end = namespace.max().filter(|max| live > 0 && entries < *max);
    let what = if live > 0 {
        let end = end.map_or_else(String::new, |max| {
            format!(
                ": with these buckets the table ends at about {} entries, not at {}",
                thousands(entries),
                thousands(max)
            )
        });
        format!(
            "{} packets a second dropped because their hash chain was too long{}{end}",
            rate(per_second(facts, counted(facts, namespace), live)),
            of_namespace(facts, namespace)
        )
    } else {
        format!(
            "{} packets were dropped since boot because their hash chain was too long; none now",
            thousands(since_boot.unwrap_or(0))
        )
    };
    // Nothing has changed where the buckets are still too few for the limit.
    let again = namespace
        .max()
        .zip(buckets)
        .is_some_and(|(max, buckets)| max.saturating_mul(2) as f64 > LONG * buckets as f64);
    let status = if live > 0 || (again && facts.since_ms.is_none()) { Status::Warning } else { Status::Ok };
    let from = if counted(facts, namespace) == Some(live) { live_source(facts) } else { STATS.into() };
    let finding = Finding::new(
        "chain-too-long",
        status,
        what,
        "Since 5.15 a new entry is refused where its chain is very long already. Either there are too few buckets, or many \
         flows differ in nothing that the hash sees, such as one address scanning. Where there are too few buckets, chains \
         and not nf_conntrack_max are the limit, and a higher limit changes nothing.",
    )
    .seen("chaintoolong", live, from)
    .seen("entries", entries, super::COUNT)
    .seen_if("max", namespace.max(), MAX)
    .seen_if("since_boot", since_boot, "/proc/net/stat/nf_conntrack, column chainlength")
    .seen_if("buckets", buckets, BUCKETS);
    Some(if status == Status::Ok { finding } else { finding.cure(limit::more_buckets(facts, namespace)) })
}

fn counted(facts: &Facts, namespace: &Namespace) -> Option<u64> {
    facts.live.sum(namespace.netns, &[ctwatch_ebpf::Event::FailedChaintoolong])
}

/// The probes of rare failures are attached once the kernel's counters rise, so that a burst may be over by then. The
/// kernel's own counter has it all the same.
fn lost(facts: &Facts, namespace: &Namespace) -> u64 {
    counted(facts, namespace).unwrap_or(0).max(namespace.grown("chainlength").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_chain_follows_the_mean() {
        assert_eq!(worst(0.0, 1 << 18), 0);
        // Poisson(2): P(X >= 11) is 8.3e-6 and P(X >= 12) is 1.4e-6; of 262,144 buckets 2.2 and 0.4.
        assert_eq!(worst(2.0, 1 << 18), 11);
        assert!(worst(16.0, 1 << 15) > 30);
    }
}

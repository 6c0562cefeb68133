//! From facts to findings. Pure: the same facts give the same findings.

mod chains;
pub mod configured;
mod counters;
pub mod early;
mod expectations;
mod held;
mod invalid;
mod latency;
mod left_out;
mod occupancy;
mod overflowed;
mod presence;
mod probes;
mod snat;
mod stale;
mod timeouts;

use super::facts::{Facts, Filler, Namespace};
use super::finding::{Diagnosis, Finding, Status};
use super::text::{percent, rate, share, thousands};
use crate::kernel::facts::Presence;
use ctwatch_ebpf::Event;

/// Every check, in the order in which equally bad findings are told.
const CHECKS: [fn(&Facts) -> Vec<Finding>; 15] = [
    held::check,
    occupancy::check,
    overflowed::check,
    configured::check,
    snat::check,
    stale::check,
    expectations::check,
    left_out::check,
    latency::check,
    presence::check,
    timeouts::check,
    chains::check,
    counters::check,
    invalid::check,
    probes::check,
];

/// All findings, and what they come to.
pub fn diagnose(facts: &Facts) -> Diagnosis {
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(|check| check(facts)).collect();
    if findings.iter().all(|finding| finding.status == Status::Ok) {
        findings.extend(invalid::innocent(facts));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.status.weight()));
    let worst = findings.first().map_or(Status::Ok, |finding| finding.status);
    let acute = findings.iter().filter(|finding| finding.status != Status::Ok).count();
    let verdict = match (findings.first(), worst) {
        (Some(first), Status::Warning | Status::Critical | Status::Unknown) => match acute {
            1 => first.what.clone(),
            2 => format!("{} (and one more finding)", first.what),
            more => format!("{} (and {} more findings)", first.what, more - 1),
        },
        _ => calm(facts),
    };
    Diagnosis { status: worst, verdict, findings }
}

/// The one line of a machine that nothing ails.
fn calm(facts: &Facts) -> String {
    if facts.conntrack == Presence::Absent {
        return "connection tracking is not loaded: nothing is tracked, and nothing can be dropped by it"
            .into();
    }
    let fullest = facts
        .namespaces
        .iter()
        .filter_map(|namespace| Some((namespace, namespace.fill()?)))
        // The first of equals.
        .reduce(|most, next| if next.1 > most.1 { next } else { most });
    let Some((namespace, fill)) = fullest else { return "connection tracking does no harm".into() };
    let others = if facts.namespaces.len() > 1 && fill == 0.0 {
        " in each namespace".to_owned()
    } else if facts.namespaces.len() > 1 {
        format!(" in the fullest namespace, {}", namespace.name)
    } else {
        String::new()
    };
    let refused = match refused(facts, namespace) {
        Some(0) => {
            let invalid = if invalid::is_innocent(facts) { " and no packet invalid" } else { "" };
            format!(", no new flow refused{invalid} in {} s", rate(facts.live.seconds))
        }
        _ => String::new(),
    };
    format!(
        "connection tracking does no harm: {} of {} entries ({}){others}{refused}",
        thousands(namespace.peak().unwrap_or(0)),
        thousands(namespace.max().unwrap_or(0)),
        percent(fill)
    )
}

/// New flows refused for want of room during the sample.
fn refused(facts: &Facts, namespace: &Namespace) -> Option<u64> {
    let counted = facts.live.sum(namespace.netns, &[Event::DropTableFull]);
    // The kernel's `drop` holds other losses too, but where a table is full it is this one.
    counted
        .or_else(|| namespace.grown("drop").filter(|_| namespace.fill().is_some_and(|fill| fill >= 0.95)))
        .or_else(|| namespace.grown("drop").filter(|drop| *drop == 0))
}

/// Live entries evicted for want of room during the sample.
fn evicted(facts: &Facts, namespace: &Namespace) -> Option<u64> {
    facts.live.sum(namespace.netns, &[Event::DeleteEarlyDrop]).or_else(|| namespace.grown("early_drop"))
}

/// Whether something done so many milliseconds ago came after what was logged so long ago. The two clocks differ by tens of
/// milliseconds, so a smaller difference gives no order.
fn after_loss(done_ms: Option<u64>, logged_ms: u64) -> bool {
    const ORDER: u64 = 200;
    done_ms.is_some_and(|done| done.saturating_add(ORDER) < logged_ms)
}

/// What at least half of a table's entries have in common: a port, else a protocol.
fn culprit(namespace: &Namespace) -> Option<Filler> {
    let table = &namespace.table;
    let most = |count: u64| count > 0 && count.saturating_mul(2) >= table.total;
    if let Some(port) = table.ports.first().filter(|port| most(port.count)) {
        return Some(port.into());
    }
    let mut by_proto: std::collections::BTreeMap<u8, Filler> = std::collections::BTreeMap::new();
    for group in &table.groups {
        let sum = by_proto.entry(group.proto).or_insert(Filler {
            proto: group.proto,
            port: None,
            count: 0,
            unreplied: 0,
        });
        sum.count = sum.count.saturating_add(group.count);
        sum.unreplied = sum.unreplied.saturating_add(group.unreplied);
    }
    by_proto.into_values().find(|sum| most(sum.count))
}

/// By the time in which it was counted: the sample, or the longer one between the readings of the kernel's counters.
fn per_second(facts: &Facts, in_sample: Option<u64>, count: u64) -> f64 {
    if in_sample == Some(count) || facts.live.around_s <= 0.0 {
        facts.live.per_second(count)
    } else {
        count as f64 / facts.live.around_s
    }
}

/// ` of NAME`, where there is more than one namespace to speak of.
fn of_namespace(facts: &Facts, namespace: &Namespace) -> String {
    if facts.namespaces.len() > 1 { format!(" of namespace {}", namespace.name) } else { String::new() }
}

/// `udp port 6881, 98 % of the entries`; `icmpv6, …` where it is a whole protocol.
fn named(filler: &Filler, total: u64) -> String {
    let port = filler.port.map_or_else(String::new, |port| format!(" port {port}"));
    format!(
        "{}{port}, {} of the entries",
        crate::model::protocol::name(filler.proto),
        percent(share(filler.count, total))
    )
}

const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";
const STATS: &str = "the kernel's counters, as conntrack -S shows them";
const LOG: &str = "/dev/kmsg";

/// Where the live sample's figures come from.
fn live_source(facts: &Facts) -> String {
    match facts.live.source {
        Some(kind) => format!("live sample of {:.1} s by {}", facts.live.seconds, kind.name()),
        None => format!("{STATS}, over {:.1} s", facts.live.around_s),
    }
}

#[cfg(test)]
mod configured_tests;
#[cfg(test)]
mod early_tests;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;

//! How close each table is to its limit, and what happens there.

use ctwatch_ebpf::Event;

use super::early::{self, Early};
use super::{COUNT, LOG, MAX, culprit, evicted, held, live_source, named, of_namespace, refused};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::{Finding, Remedy, Status};
use crate::doctor::remedies::{early as before, limit, notrack, timeouts};
use crate::doctor::text::{bytes, duration, percent, rate, share, sum, thousands};

/// From here on `gc_worker` evicts entries that are not assured (4.20 to 7.3), which no kernel counter shows.
const PRESSURE: f64 = 0.95;
/// A warning should leave time to act.
pub(super) const NEAR: f64 = 0.8;
/// A table below this has room whatever a short sample extrapolates to.
const HALF: f64 = 0.5;
/// A forecast farther than this is none.
const SOON: f64 = 600.0;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    facts.namespaces.iter().filter_map(|namespace| table(facts, namespace)).collect()
}

fn table(facts: &Facts, namespace: &Namespace) -> Option<Finding> {
    let (fill, peak, max) = (namespace.fill()?, namespace.peak()?, namespace.max()?);
    let (refused, evicted) = (refused(facts, namespace), evicted(facts, namespace));
    let lost = refused.unwrap_or(0).saturating_add(evicted.unwrap_or(0));
    let place = of_namespace(facts, namespace);
    let occupied = format!("{} of {} entries ({})", thousands(peak), thousands(max), percent(fill));
    let early = early::find(facts, namespace, refused);
    let to_full = time_to_full(facts, namespace).filter(|_| fill >= HALF);
    let finding = if fill >= 1.0 || lost > 0 {
        Finding::new(
            "table-full",
            Status::Critical,
            format!(
                "the table{place} is full: {occupied}{}{}",
                losses(facts, refused, evicted, &culprit_text(namespace)),
                early.verdict()
            ),
            format!(
                "Packets of new flows are dropped, or live flows are thrown out to make room for them. Users see connections \
                 that do not open, or that hang when they were quiet for a moment. {}",
                early.meaning()
            ),
        )
    } else if fill >= PRESSURE {
        Finding::new(
            "table-near-full",
            Status::Critical,
            format!("the table{place} is nearly full: {occupied}{}", culprit_text(namespace)),
            "Above 95 % the kernel's collector already evicts flows that are not assured, and no kernel counter shows it. A \
             little more traffic, and new flows are dropped.",
        )
    } else if fill >= NEAR {
        Finding::new(
            "table-near-full",
            Status::Warning,
            format!("the table{place} is filling up: {occupied}{}", culprit_text(namespace)),
            "Nothing is lost yet. At the limit new flows are dropped, and a burst can take it there in seconds.",
        )
    } else if let Some(seconds) = to_full {
        Finding::new(
            "table-filling",
            Status::Warning,
            format!("the table{place} grows fast: {occupied}, full in about {}", duration(seconds)),
            "Nothing is lost yet. If new flows go on to arrive at this rate, they will be dropped once the limit is reached.",
        )
    } else {
        return None;
    };
    let top = culprit(namespace);
    let at_most = if early.doubts.is_empty() { "" } else { "; at most, by the port alone" };
    let finding = finding
        .seen("netns", namespace.netns, namespace.name.clone())
        .seen("count", peak, COUNT)
        .seen("max", max, MAX)
        .seen_if("refused", refused, live_source(facts))
        .seen_if(
            "refused_that_rules_drop",
            early.refused.filter(|early| *early > 0),
            format!("{}{at_most}", live_source(facts)),
        )
        .seen_if("dropped_by_rules", early.names(), "rules of input chains that match by nothing but a port")
        .seen_if("early_drop", evicted, live_source(facts))
        .seen_if("collector_evictions", pressure(facts, namespace), live_source(facts))
        .seen_if("insert", inserted(facts, namespace), live_source(facts))
        .seen_if("drop_since_boot", namespace.since_boot("drop"), super::STATS)
        .seen_if("early_drop_since_boot", namespace.since_boot("early_drop"), super::STATS)
        .seen_if("logged_seconds_ago", facts.log.as_ref().and_then(|log| log.last_s), LOG)
        .seen_if("full_in_seconds", to_full.filter(|_| fill < PRESSURE), "growth during the sample")
        .seen_if(
            "fills_it",
            top.map(|filler| named(&filler, namespace.table.total)),
            namespace.table.from.clone(),
        )
        .seen_if("not_seen", namespace.table.unseen.clone(), "the table's composition");
    Some(finding.cure(cures(facts, namespace, &early)))
}

/// A larger table, less in it, or both.
fn cures(facts: &Facts, namespace: &Namespace, early: &Early<'_>) -> Vec<Remedy> {
    let dropped = before::drop_early(facts.tools, namespace, early);
    let untracked = culprit(namespace).map(|filler| notrack::remedies(facts.tools, namespace, &filler));
    let excesses = timeouts::excesses(namespace);
    let shorter = excesses.iter().take(2).map(|excess| timeouts::shorten(facts, namespace, excess));
    // TCP is what stateful rules are mostly written for: leaving it out comes last.
    let tcp = culprit(namespace).is_some_and(|port| port.proto == 6);
    let (early, late) = if tcp { (None, untracked) } else { (untracked, None) };
    let raised = limit::raise(facts, namespace);
    // Room takes nothing from anybody; a rule that drops may.
    let raised = raised.into_iter().chain(dropped);
    let others = early.into_iter().flatten().chain(shorter).chain(late.into_iter().flatten());
    // Held entries would fill a larger table too.
    if held::is_cause(namespace) { others.chain(raised).collect() } else { raised.chain(others).collect() }
}

fn losses(facts: &Facts, refused: Option<u64>, evicted: Option<u64>, culprit: &str) -> String {
    let part = |lost: Option<u64>, what: &str| match lost {
        Some(lost) if lost > 0 => format!(", {} {what}", rate(facts.live.per_second(lost))),
        _ => String::new(),
    };
    part(refused, "new flows a second refused") + &part(evicted, "live entries a second evicted") + culprit
}

fn culprit_text(namespace: &Namespace) -> String {
    culprit(namespace)
        .map_or_else(String::new, |filler| format!("; filled by {}", named(&filler, namespace.table.total)))
}

fn pressure(facts: &Facts, namespace: &Namespace) -> Option<u64> {
    facts.live.sum(namespace.netns, &[Event::DeletePressure]).filter(|evicted| *evicted > 0)
}

fn inserted(facts: &Facts, namespace: &Namespace) -> Option<u64> {
    facts.live.sum(namespace.netns, &[Event::Insert])
}

/// Seconds until the table is full if it goes on to grow as in the sample; `None` where that means nothing.
fn time_to_full(facts: &Facts, namespace: &Namespace) -> Option<u64> {
    let (before, after, max) = (namespace.count?, namespace.count_after?, namespace.max()?);
    let grown = after.checked_sub(before)?;
    // Below a hundredth of the limit it may as well be noise.
    if grown == 0 || grown.saturating_mul(100) < max || facts.live.around_s <= 0.0 {
        return None;
    }
    let growth = grown as f64 / facts.live.around_s;
    let seconds = max.saturating_sub(after) as f64 / growth;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below SOON, and not negative"
    )]
    (seconds <= SOON).then_some(seconds as u64)
}

/// Memory of the table as it is, at its limit, and at twice the limit.
pub(super) fn memory(facts: &Facts) -> Option<Finding> {
    let namespace = facts.namespaces.first()?;
    let (max, buckets) = (namespace.max()?, namespace.sysctl("buckets")?);
    let entries = sum(facts.namespaces.iter().filter_map(Namespace::peak));
    let at_limit = limit::table_bytes(facts, max, buckets);
    let too_much = facts.memory > 0 && at_limit > facts.memory / 2;
    let (status, meaning) = if too_much {
        (
            Status::Warning,
            "The limit allows more entries than this machine has memory for. A flood would take the memory before the limit \
             stops it.",
        )
    } else {
        (
            Status::Ok,
            "Memory is taken as entries come and given back as they go. Only the hash table's heads are always there.",
        )
    };
    let from = if facts.slab.is_some() {
        "/proc/slabinfo"
    } else {
        "256 bytes an entry and 128 for extensions; /proc/slabinfo was not readable"
    };
    Some(
        Finding::new(
            "memory",
            status,
            format!(
                "the table takes {} now, {} at its limit, {} if that were doubled ({} of memory)",
                bytes(limit::table_bytes(facts, entries, buckets)),
                bytes(at_limit),
                bytes(limit::table_bytes(facts, max.saturating_mul(2), buckets.saturating_mul(2))),
                percent(share(at_limit.saturating_mul(2), facts.memory)),
            ),
            meaning,
        )
        .seen("bytes_per_entry", limit::entry_bytes(facts), from)
        .seen("bytes_now", limit::table_bytes(facts, entries, buckets), "entries, extensions and buckets")
        .seen("bytes_at_limit", at_limit, "the same with nf_conntrack_max entries")
        .seen("memory", facts.memory, "/proc/meminfo"),
    )
}

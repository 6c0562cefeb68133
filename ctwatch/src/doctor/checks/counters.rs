//! The kernel's other counters: what each means here, and which of them mislead.

use ctwatch_ebpf::Event;

use super::{STATS, live_source, of_namespace, per_second};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::resolver;
use crate::doctor::text::{rate, sum, thousands};
use crate::model::protocol;

/// Fewer than this a second is life: two packets of one flow met.
const WORTH_A_WARNING: f64 = 1.0;
/// Chains have a check of their own.
const FAILED: [Event; 3] = [Event::FailedClash, Event::FailedDying, Event::FailedOther];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for namespace in &facts.namespaces {
        // Flows that find no port are no races, and have a finding of their own.
        if super::snat::exhausted(namespace).is_none() {
            findings.extend(insert_failed(facts, namespace));
        }
        findings.extend(no_memory(facts, namespace));
    }
    if let Some(own) = facts.namespaces.first() {
        findings.extend(harmless(facts, own));
        findings.extend(misleading(facts, own));
    }
    findings
}

fn insert_failed(facts: &Facts, namespace: &Namespace) -> Option<Finding> {
    // The kernel's insert_failed counts what long chains refused too (`__nf_conntrack_confirm`, 5.15 to 7.3).
    let grown = namespace
        .grown("insert_failed")
        .map(|failed| failed.saturating_sub(namespace.grown("chainlength").unwrap_or(0)));
    // The probes of rare failures may be attached too late for a burst.
    let counted = facts.live.sum(namespace.netns, &FAILED);
    let live = counted.max(grown)?;
    let boot = namespace
        .stats
        .get("insert_failed")
        .map(|failed| failed.saturating_sub(namespace.stats.get("chainlength").copied().unwrap_or(0)));
    if live == 0 && boot.unwrap_or(0) == 0 {
        return None;
    }
    let per_second = per_second(facts, counted, live);
    let warns = per_second >= WORTH_A_WARNING;
    let protocol = worst_protocol(facts, namespace);
    let what = if live == 0 {
        "packets were lost in races for one entry since boot; none now".to_owned()
    } else {
        format!(
            "{} packets a second lost in races for one entry{}",
            rate(per_second),
            of_namespace(facts, namespace)
        )
    };
    let finding = Finding::new(
        "insert-failed",
        if warns { Status::Warning } else { Status::Ok },
        what,
        "Two packets of one new flow, or two flows that NAT gave one tuple, raced, and the loser was dropped. On container \
         hosts this is the DNS race: a resolver sends A and AAAA queries at once from one socket, and one answer comes only \
         after a 5 s retry.",
    )
    .seen("live", live, live_source(facts))
    .seen_if("since_boot", boot, format!("{STATS}: insert_failed without chaintoolong"))
    .seen_if("clash_resolve", facts.live.sum(namespace.netns, &[Event::ClashResolve]), live_source(facts))
    .seen_if("protocol", protocol.clone(), live_source(facts));
    Some(if warns {
        finding.cure(resolver::remedies(facts, namespace, protocol.as_deref()))
    } else {
        finding
    })
}

fn worst_protocol(facts: &Facts, namespace: &Namespace) -> Option<String> {
    let failed = |counts: &std::collections::BTreeMap<Event, u64>| -> u64 {
        sum(FAILED.iter().filter_map(|event| counts.get(event).copied()))
    };
    let flows =
        facts.live.flows.iter().filter(|flow| flow.netns == namespace.netns && failed(&flow.counts) > 0);
    flows.max_by_key(|flow| failed(&flow.counts)).map(|flow| protocol::name(flow.proto).into_owned())
}

fn no_memory(facts: &Facts, namespace: &Namespace) -> Option<Finding> {
    let lost = facts.live.sum(namespace.netns, &[Event::DropNoMemory]).filter(|lost| *lost > 0)?;
    Some(
        Finding::new(
            "no-memory",
            Status::Critical,
            format!("{} new flows a second refused for want of memory", rate(facts.live.per_second(lost))),
            "The table has room, but the kernel could not allocate an entry. The whole machine is short of memory; a larger \
             table would make it worse.",
        )
        .seen("no_memory", lost, live_source(facts)),
    )
}

/// Counters that frighten people and should not.
fn harmless(facts: &Facts, own: &Namespace) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(count) = own.since_boot("clashres") {
        findings.push(
            Finding::new(
                "clash-resolve",
                Status::Ok,
                format!("{} races for one entry were resolved without loss", thousands(count)),
                "Two packets of one flow came at once, and both were let through. This is no loss and needs no care.",
            )
            .seen("clash_resolve", count, STATS),
        );
    }
    if let Some(count) = own.since_boot("invalid") {
        findings.push(
            Finding::new(
                "invalid",
                Status::Ok,
                format!("{} packets fitted no flow", thousands(count)),
                "Late resets, scans, asymmetric routes and wrong checksums all count here. It hurts only where rules drop \
                 invalid packets and somebody misses them; sysctl nf_conntrack_log_invalid shows which they are.",
            )
            .seen("invalid", count, STATS)
            .seen_if("in_sample", own.grown("invalid"), live_source(facts)),
        );
    }
    if let Some(count) = own.since_boot("search_restart") {
        findings.push(
            Finding::new(
                "search-restart",
                Status::Ok,
                format!("{} look-ups had to start again", thousands(count)),
                "An entry moved to another chain while it was read, as happens when the table is resized or busy. Only the \
                 look-up was repeated, nothing was lost.",
            )
            .seen("search_restart", count, STATS),
        );
    }
    findings
}

/// Which figures of `conntrack -S` say something other than their name.
fn misleading(facts: &Facts, own: &Namespace) -> Option<Finding> {
    let insert = *own.stats.get("insert")?;
    let live = facts.live.sum(own.netns, &[Event::Insert]);
    let pressure = facts.live.sum(own.netns, &[Event::DeletePressure]);
    let missing = if own.stats.contains_key("chainlength") {
        "counted since 5.15; conntrack -S prints it, in /proc/net/stat/nf_conntrack the column is chainlength"
    } else {
        "chains are not limited on this kernel"
    };
    Some(
        Finding::new(
            "misleading-counters",
            Status::Ok,
            "some of the kernel's counters say less than their names",
            "`insert` counts only entries made through netlink, so it stays 0 on a busy server; `drop` lacks packets lost to \
             long chains; `early_drop` lacks what the collector evicts above 95 %. ctwatch counts each of these where it \
             happens.",
        )
        .seen("insert_by_the_kernel", insert, STATS)
        .seen_if("insert_in_sample", live, live_source(facts))
        .seen_if("insert_in_sample_by_the_kernel", own.grown("insert"), STATS)
        .seen_if("collector_evictions_in_sample", pressure, live_source(facts))
        .seen_if("early_drop_in_sample_by_the_kernel", own.grown("early_drop"), STATS)
        .seen("chaintoolong", missing, STATS),
    )
}

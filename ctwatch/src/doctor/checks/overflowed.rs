//! What the kernel remembers of a table that overflowed, where there is room again.

use super::occupancy::NEAR;
use super::{LOG, MAX, STATS, after_loss, evicted, of_namespace, refused};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::limit;
use crate::doctor::text::{duration, thousands};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let past: Vec<(&Namespace, Past)> =
        facts.namespaces.iter().filter_map(|namespace| Some((namespace, past(facts, namespace)?))).collect();
    let mut findings: Vec<Finding> =
        past.iter().map(|(namespace, past)| finding(facts, namespace, past)).collect();
    if findings.is_empty() {
        findings.extend(nobody(facts));
    }
    findings
}

/// What a namespace lost before doctor looked.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    /// New flows refused since boot.
    refused: u64,
    /// Live ones evicted since boot.
    evicted: u64,
    /// When the last loss was logged.
    ago_ms: Option<u64>,
}

/// `None` where nothing was lost, or where it is full now, which has a finding of its own.
fn past(facts: &Facts, namespace: &Namespace) -> Option<Past> {
    let now = refused(facts, namespace).unwrap_or(0).max(evicted(facts, namespace).unwrap_or(0));
    if now > 0 || namespace.fill().is_some_and(|fill| fill >= NEAR) {
        return None;
    }
    let counted = |counter| namespace.since_boot(counter).unwrap_or(0);
    let evicted = counted("early_drop");
    // `drop` counts unresolved clashes too, each of which is an `insert_failed` (nf_ct_resolve_clash, 5.10 to 7.3), as is
    // each packet lost to a long chain, which is no `drop`.
    let clashes = counted("insert_failed").saturating_sub(counted("chainlength"));
    let dropped = counted("drop").saturating_sub(clashes);
    let log = facts.log.as_ref();
    // The kernel logs at least one line for a burst of refusals. Where the log is whole and has none, it was something else.
    let silent = log.is_some_and(|log| log.whole && log.lines == 0);
    let refused = if silent { 0 } else { dropped };
    if refused == 0 && evicted == 0 {
        return None;
    }
    let ago_ms = log.and_then(|log| log.ago_ms_of(namespace.netns, namespace.limit_writable));
    Some(Past { refused, evicted, ago_ms })
}

/// Whether somebody has dealt with it: set the limit after the last logged loss, or said so by `--since`.
fn dealt_with(facts: &Facts, ago_ms: Option<u64>) -> Option<String> {
    let written = facts.written_ms.get("nf_conntrack_max").copied();
    if ago_ms.is_some_and(|ago| after_loss(written, ago)) {
        let at = duration(written.unwrap_or(0) / 1000);
        return Some(format!("the limit was set {at} ago, after that"));
    }
    let since = facts.since_ms?;
    match ago_ms {
        Some(ago) if ago > since => Some("it was before --since".into()),
        Some(_) => None,
        None => Some("nothing was logged since the time given by --since, and counters have no time".into()),
    }
}

/// Why a new limit does not end the warning by itself.
fn undated(facts: &Facts, past: &Past) -> &'static str {
    match (past.ago_ms, facts.written_ms.contains_key("nf_conntrack_max"), &facts.log) {
        (None, true, None) => {
            " The limit has been set since boot, but the log, which has the times of losses, may not be read, so whether that \
             was before or after is not known."
        }
        (None, true, Some(_)) => {
            " The limit has been set since boot, but the kernel logs no time of evictions, so whether that was before or \
             after is not known."
        }
        _ => "",
    }
}

fn when(ago_ms: Option<u64>) -> String {
    ago_ms.map_or_else(|| "since boot".into(), |ago| format!("{} ago", duration(ago / 1000)))
}

/// `1,913 new flows refused and 1,187 live ones evicted`.
fn losses(past: &Past) -> String {
    match (past.refused, past.evicted) {
        (refused, 0) => format!("{} new flows refused", thousands(refused)),
        (0, evicted) => format!("{} live flows evicted", thousands(evicted)),
        (refused, evicted) => {
            format!("{} new flows refused and {} live ones evicted", thousands(refused), thousands(evicted))
        }
    }
}

fn finding(facts: &Facts, namespace: &Namespace, past: &Past) -> Finding {
    let place = of_namespace(facts, namespace);
    let dealt = dealt_with(facts, past.ago_ms);
    let room = match (namespace.peak(), namespace.max()) {
        (Some(peak), Some(max)) => format!("now {} of {}", thousands(peak), thousands(max)),
        _ => "there is room now".into(),
    };
    let what =
        format!("the table{place} overflowed {}: {} since boot; {room}", when(past.ago_ms), losses(past));
    let finding = match &dealt {
        None => Finding::new(
            "table-overflowed",
            Status::Warning,
            what,
            format!(
                "There is room now, but the limit is the one that was too small: the next burst of this size loses flows again. The \
             counters hold all losses since boot, the log has the time of the last one that was logged. {} If you know of the \
             burst and want no other limit, or took another remedy, `ctwatch \
             doctor --since 1h` warns only of losses within the last hour.{}",
                if past.ago_ms.is_some() {
                    "Once the limit is raised this warning ends."
                } else {
                    "The last one has no time, so this warning stays until reboot, also once the limit is raised."
                },
                undated(facts, past)
            ),
        ),
        Some(_) => Finding::new(
            "table-was-full",
            Status::Ok,
            what,
            "The kernel's counters never start again until reboot, so they still hold what was lost then.",
        ),
    };
    let finding = finding
        .seen("netns", namespace.netns, namespace.name.clone())
        .seen_if("max", namespace.max(), MAX)
        .seen("refused_since_boot", past.refused, format!("{STATS}: drop without clashes"))
        .seen("early_drop_since_boot", past.evicted, STATS)
        .seen_if("logged_seconds_ago", past.ago_ms.map(|ago| ago / 1000), LOG)
        .seen_if("dealt_with", dealt.clone(), "times of the log, of the sysctl and of --since")
        .seen("uptime_seconds", facts.uptime_s, "CLOCK_MONOTONIC");
    if dealt.is_some() {
        return finding;
    }
    finding
        .seen_if(
            "recommended_limit",
            limit::recommended(facts, namespace),
            "the limit and what was lost, at least twice and at most four times the limit, as a power of two",
        )
        .cure(limit::raise(facts, namespace))
}

/// The log has losses, and no namespace that can be seen has counted any.
fn nobody(facts: &Facts) -> Option<Finding> {
    let log = facts.log.as_ref().filter(|log| log.lines > 0)?;
    let full_now = |namespace: &Namespace| namespace.fill().is_some_and(|fill| fill >= NEAR);
    if facts.namespaces.iter().any(full_now) {
        return None;
    }
    let first = facts.namespaces.first()?;
    let ago_ms = log.last_ago_ms();
    // Named ones that are there have counted nothing since their counters began, so theirs is not the loss.
    let ended = !log.by_netns.is_empty();
    let dealt = dealt_with(facts, ago_ms);
    let (id, status) = if ended || dealt.is_some() {
        ("table-was-full", Status::Ok)
    } else {
        ("table-overflowed", Status::Warning)
    };
    let whose = if ended { "a namespace that has ended" } else { "a namespace that the log does not name" };
    let finding = Finding::new(
        id,
        status,
        format!("the table of {whose} overflowed {}, and no table is full now", when(ago_ms)),
        "The kernel logged that it dropped packets of new flows, and no namespace that is there now has counted such a loss. \
         Either the namespace has ended, as containers do, or its counters may not be read. One limit holds for each \
         namespace, so the next one meets the same.",
    )
    .seen("logged_lines", log.lines, LOG)
    .seen_if("logged_seconds_ago", ago_ms.map(|ago| ago / 1000), LOG)
    .seen_if("max", first.max(), MAX)
    .seen_if("dealt_with", dealt, "times of the log, of the sysctl and of --since");
    Some(if status == Status::Warning { finding.cure(limit::raise(facts, first)) } else { finding })
}

//! ctwatch itself: which source counts here, what it cannot tell, what it costs.

use super::live_source;
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, Status};
use crate::kernel::facts::Presence;
use crate::model::SourceKind;

/// Instructions for each new flow, measured in guests (`cargo xtask bench`, kept in docs/bench-baseline.json), as a
/// share of what a new flow costs without them.
const fn known_cost(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Fexit => "about 5 % more work for each new flow, nothing for other packets",
        SourceKind::Kprobe => "about 12 % more work for each new flow, nothing for other packets",
        SourceKind::Netlink => {
            "the kernel prepares an event for each new and each ended flow while it listens"
        }
        SourceKind::Replay => "nothing",
    }
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    if facts.conntrack == Presence::Absent {
        return Vec::new();
    }
    let live = &facts.live;
    let Some(kind) = live.source else {
        return vec![
            Finding::new(
                "no-source",
                Status::Ok,
                "no source could count live; the kernel's own counters were read instead",
                "Doctor still reports the table's entries and the kernel's statistics. It cannot separate what those counters mix.",
            )
            .seen_if("why", live.why.clone(), "opening the source"),
        ];
    };
    let unknown: Vec<String> = live.unknown.iter().map(|(event, why)| format!("{event:?}: {why}")).collect();
    let what = match &live.why {
        Some(_) => format!("live counts come from {} here; a better source cannot run", kind.name()),
        None => format!("live counts come by {} here", kind.name()),
    };
    let share = live.run_ns.map(|ns| {
        let percent = if live.seconds > 0.0 { ns as f64 / live.seconds / 1e7 } else { 0.0 };
        (percent * 1000.0).round() / 1000.0
    });
    vec![
        Finding::new(
            "source",
            Status::Ok,
            what,
            "It counts each event where it happens in the kernel, and says what it missed. Nothing is attached once ctwatch has \
             ended.",
        )
        .seen("source", kind.name(), "ctwatch")
        .seen_if("why_no_better", live.why.clone(), "ctwatch")
        .seen("cannot_tell", unknown, "ctwatch")
        .seen("lost", live.lost, live_source(facts))
        .seen("cost", known_cost(kind), "measured in guests, in instructions")
        .seen_if("cpu_percent", share, "the kernel's program statistics")
        .seen_if("runs", live.runs, "the kernel's program statistics"),
    ]
}

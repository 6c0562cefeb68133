//! Whether tracking costs latency: answered by timing, where it is asked.

use serde_json::{Value, json};

use super::culprit;
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, Status};
use crate::doctor::latency::{Latency, Passes};
use crate::doctor::remedies::notrack;
use crate::doctor::text::{nanoseconds, percent, thousands};
use crate::kernel::facts::Presence;

/// A packet in a hundred that waits this long is noticed: it is what a round trip within a rack takes.
const NOTICED_NS: u64 = 1 << 17;
/// With fewer passes one interrupted packet would make the hundredth.
const ENOUGH: u64 = 1000;
/// A larger part of the receive path is worth having back …
const RECEIVE_SHARE: f64 = 0.25;
/// … where that path is busy at all.
const CORE_SHARE: f64 = 0.10;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(latency) = &facts.latency else { return Vec::new() };
    vec![Finding { asked: true, ..judge(facts, latency) }]
}

fn judge(facts: &Facts, latency: &Latency) -> Finding {
    if facts.conntrack == Presence::Absent {
        return Finding::new(
            "latency",
            Status::Ok,
            "tracking costs no latency: it is not loaded",
            "No packet passes through connection tracking here. There is nothing to time.",
        );
    }
    if let Some(why) = &latency.refused {
        return Finding::new(
            "latency",
            Status::Unknown,
            "what tracking costs in latency could not be timed",
            "Timing needs programs at the entry and the return of two kernel functions, and this kernel or these rights do \
             not allow them. Everything else that doctor tells does not depend on it.",
        )
        .seen("why", why.clone(), "attaching the programs");
    }
    let packets = latency.tracking.count();
    if packets == 0 {
        return Finding::new(
            "latency",
            Status::Ok,
            "no packet passed during the measurement, so the latency is unknown",
            "Connection tracking sees packets only where some rule asks for tracking. Time it for longer, or while there is \
             traffic.",
        )
        .seen("seconds", tenths(latency.seconds), "the time asked for");
    }
    let hurts = hurts(latency);
    let (median, p99) = (latency.tracking.below_ns(50), latency.tracking.below_ns(99));
    let what = format!(
        "{}: half of {} packets spent less than {} in it, 99 % less than {}",
        if hurts { "tracking costs latency here" } else { "tracking most likely costs no latency here" },
        thousands(packets),
        nanoseconds(median.unwrap_or(0)),
        nanoseconds(p99.unwrap_or(0))
    );
    let meaning = if hurts {
        "Packets wait for connection tracking long enough to be noticed, or it takes much of the time in which this machine \
         receives them. Long hash chains, many rules that ask for state, and a flood of new flows are the usual causes."
    } else {
        "A round trip within one data centre takes some 100,000 ns, so what a packet spends in connection tracking is lost in \
         that. If connections are slow here, look elsewhere; dropped packets are another matter, and have findings of their \
         own."
    };
    let status = if hurts { Status::Warning } else { Status::Ok };
    let finding = Finding::new("latency", status, what, meaning);
    let finding = figures(finding, latency);
    let untracked = facts.namespaces.iter().filter(|_| hurts).find_map(|namespace| {
        culprit(namespace).map(|filler| notrack::remedies(facts.tools, namespace, &filler))
    });
    finding.cure(untracked.unwrap_or_default())
}

/// Whether it is worth anybody's while.
fn hurts(latency: &Latency) -> bool {
    let slow = latency.tracking.below_ns(99).is_some_and(|below| below > NOTICED_NS);
    let dear = latency.receive_share().is_some_and(|share| share >= RECEIVE_SHARE)
        && latency.core_share() >= CORE_SHARE;
    latency.tracking.count() >= ENOUGH && (slow || dear)
}

fn figures(finding: Finding, latency: &Latency) -> Finding {
    let by = latency.source.map_or("probes", |kind| kind.name());
    let from = |function: &str| format!("{function}, timed by {by} for {} s", tenths(latency.seconds));
    let finding = passes(
        finding,
        &latency.tracking,
        ["packets", "mean_ns", "99_percent_below_ns", "shortest_ns", "histogram"],
        &from("nf_conntrack_in"),
    );
    let finding = passes(
        finding,
        &latency.confirm,
        [
            "new_flows",
            "confirm_mean_ns",
            "confirm_99_percent_below_ns",
            "confirm_shortest_ns",
            "confirm_histogram",
        ],
        &from("__nf_conntrack_confirm"),
    );
    let floor = (latency.floor.count() > 0).then_some(latency.floor.min_ns);
    finding
        .seen_if(
            "measuring_ns",
            floor,
            "the shortest pass of the same programs around a system call that does next to nothing: about so much of each pass \
             is the timing itself",
        )
        .seen(
            "share_of_one_core",
            percent(latency.core_share()),
            "time in both functions / time timed; the timing itself included, so at most",
        )
        .seen_if(
            "share_of_receiving",
            latency.receive_share().map(percent),
            "the part of both inside net_rx_action, the receive softirq / all time in it; what this machine sends from a \
             process is in neither",
        )
        .seen("lost", latency.tracking.lost.saturating_add(latency.confirm.lost), "passes of which only entry or return was seen")
        .seen_if("why_no_better", latency.why.clone(), "ctwatch")
}

fn passes(finding: Finding, passes: &Passes, names: [&'static str; 5], from: &str) -> Finding {
    let [count, mean, p99, shortest, histogram] = names;
    let finding = finding.seen(count, passes.count(), from);
    if passes.count() == 0 {
        return finding;
    }
    let buckets: Vec<Value> = passes
        .histogram()
        .map(|(from, below, count)| json!({ "from_ns": from, "below_ns": below, "count": count }))
        .collect();
    finding
        .seen(mean, passes.mean_ns(), from)
        .seen_if(p99, passes.below_ns(99), from)
        .seen(shortest, passes.min_ns, from)
        .seen(histogram, buckets, from)
}

fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::latency::Receive;

    /// So many packets in one bucket.
    fn timed(bucket: usize, count: u64) -> Latency {
        let mut buckets = vec![0; bucket + 1];
        buckets[bucket] = count;
        let tracking = Passes { buckets, sum_ns: count << bucket, min_ns: 1 << bucket, lost: 0 };
        Latency { seconds: 5.0, tracking, ..Latency::default() }
    }

    #[test]
    fn what_is_lost_in_a_round_trip_does_not_hurt() {
        assert!(!hurts(&timed(9, 1_000_000)));
        assert!(!hurts(&timed(16, 1_000_000)), "below 131 us");
        assert!(hurts(&timed(17, 1_000_000)));
        assert!(!hurts(&timed(17, 999)), "too few to tell");
    }

    #[test]
    fn a_busy_receive_path_hurts_where_tracking_takes_much_of_it() {
        let mut latency = timed(9, 2_000_000);
        assert!(latency.core_share() > CORE_SHARE);
        latency.receive = Some(Receive { total_ns: 100, tracking_ns: 24 });
        assert!(!hurts(&latency));
        latency.receive = Some(Receive { total_ns: 100, tracking_ns: 25 });
        assert!(hurts(&latency));
        latency.seconds = 50.0;
        assert!(!hurts(&latency), "an idle machine");
    }

    #[test]
    fn what_could_not_be_timed_is_unknown_and_nothing_is_not_asked_for() {
        let facts = Facts { conntrack: Presence::Module, ..Facts::default() };
        assert!(check(&facts).is_empty());
        let asked = |latency: Latency| check(&Facts { latency: Some(latency), ..facts.clone() }).remove(0);
        assert_eq!(
            asked(Latency { refused: Some("no".into()), ..Latency::default() }).status,
            Status::Unknown
        );
        let quiet = asked(Latency::default());
        assert!(quiet.status == Status::Ok && quiet.asked && quiet.what.contains("no packet"));
        let absent = Facts { latency: Some(Latency::default()), ..Facts::default() };
        assert!(check(&absent)[0].what.contains("not loaded"));
    }
}

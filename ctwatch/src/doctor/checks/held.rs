//! Entries that the kernel counts and does not list: something holds them.

use super::{COUNT, of_namespace};
use crate::doctor::facts::{Facts, Namespace, Waiting};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::text::{percent, share, thousands};

/// Fewer may be on their way through the kernel, or wait where packets always wait for a moment.
const WORTH_TELLING: u64 = 16;
/// Fewer are nobody's trouble.
const MANY: u64 = 100;
/// The share of all counted entries from which on they are more than a side effect.
const SHARE: u64 = 10;
/// From here on the table is tight.
const TIGHT: f64 = 0.95;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    facts.namespaces.iter().filter_map(|namespace| held(facts, namespace)).collect()
}

/// Whether held entries are a large share of the table. Then a larger limit is not the first remedy.
pub(super) fn is_cause(namespace: &Namespace) -> bool {
    let held = namespace.table.held.unwrap_or(0);
    held >= MANY && namespace.table.counted.is_some_and(|counted| held.saturating_mul(SHARE) >= counted)
}

fn held(facts: &Facts, namespace: &Namespace) -> Option<Finding> {
    let (held, counted) = (namespace.table.held?, namespace.table.counted?);
    if held < WORTH_TELLING {
        return None;
    }
    let tight = namespace.fill().is_some_and(|fill| fill >= TIGHT);
    let status = match (is_cause(namespace), tight) {
        (true, true) => Status::Critical,
        (true, false) => Status::Warning,
        (false, _) => Status::Ok,
    };
    let waiting = waiting(&namespace.waiting);
    let next = if waiting.is_empty() {
        "No waiting packets were found here, so look for packets that a user-space program took from a queue and keeps, \
         for neighbours that do not answer (`ip neigh show nud incomplete`), and for modules that hold entries: flow \
         tables, IPVS, tc act_ct, or connections whose master (FTP, SIP) was removed."
            .to_owned()
    } else {
        format!(
            "These keep packets now: {waiting}. Let them go, or mend what they wait for, and the entries go with them."
        )
    };
    let room = namespace.max().map_or_else(String::new, |max| format!(" (the limit is {})", thousands(max)));
    Some(
        Finding::new(
            "held-entries",
            status,
            format!(
                "{} of {} counted entries{} are in no list: something holds them{room}",
                thousands(held),
                thousands(counted),
                of_namespace(facts, namespace)
            ),
            format!(
                "These entries were removed from the table, or have not entered it yet, and the kernel counts each against \
                 the limit until the last packet or module lets go of it. Flushing does not help, and a larger limit only \
                 makes room for more of them. {next}"
            ),
        )
        .seen("netns", namespace.netns, namespace.name.clone())
        .seen("counted", counted, COUNT)
        .seen("listed", namespace.table.total, namespace.table.from.clone())
        .seen("held", held, "counted and not listed, in two readings")
        .seen("share", percent(share(held, counted)), "held / counted")
        .seen_if("waiting", Some(waiting).filter(|text| !text.is_empty()), "queues of this namespace"),
    )
}

/// `netem on veth0: 1,000 packets, nfqueue 7: 20 packets`.
fn waiting(all: &[Waiting]) -> String {
    let named = all.iter().map(|one| {
        let place = one.device.as_ref().map_or_else(String::new, |device| format!(" on {device}"));
        format!("{}{place}: {} packets", one.queue, thousands(one.packets))
    });
    named.collect::<Vec<_>>().join(", ")
}

//! What fills a table, and timeouts that fit it badly. No trouble by themselves: where a table is tight, its own finding
//! has the same remedies.

use super::culprit;
use super::{named, of_namespace};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::{notrack, timeouts};
use crate::doctor::text::{percent, share, sum, thousands};
use crate::model::protocol;
use ctwatch_ebpf::loss::has_ports;

/// A table with fewer entries is nobody's trouble.
const WORTH_TELLING: u64 = 1000;
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for namespace in &facts.namespaces {
        if namespace.table.total >= WORTH_TELLING {
            findings.extend(too_long(facts, namespace));
            findings.extend(one_flow_type(facts, namespace));
        }
        findings.extend(unseen(namespace));
    }
    findings
}

fn too_long(facts: &Facts, namespace: &Namespace) -> Option<Finding> {
    let excesses = timeouts::excesses(namespace);
    let most = excesses.first()?;
    let total = namespace.table.total;
    let unreplied = sum(namespace.table.groups.iter().map(|group| group.unreplied));
    let finding = Finding::new(
        "long-timeouts",
        Status::Ok,
        format!(
            "{} of the table{} is kept only by a long timeout, {} ({} s)",
            percent(share(most.freed, total)),
            of_namespace(facts, namespace),
            most.timeout.sysctl,
            most.now
        ),
        "Entries stay this long after their last packet, whether or not another one comes. A shorter timeout makes room \
         without refusing anyone who is talking.",
    )
    .seen("entries", total, namespace.table.from.clone())
    .seen("unreplied", unreplied, namespace.table.from.clone())
    .seen("by_state", states(namespace), namespace.table.from.clone())
    .seen("would_be_gone", most.freed, format!("entries in their last {} s", most.now - most.timeout.proposed));
    Some(finding.cure(excesses.iter().map(|excess| timeouts::shorten(facts, namespace, excess))))
}

/// `udp unreplied 2,950, tcp TIME_WAIT 40`: the largest groups.
fn states(namespace: &Namespace) -> String {
    let groups = namespace.table.groups.iter().take(6);
    let named = groups
        .map(|group| format!("{} {} {}", protocol::name(group.proto), group.state, thousands(group.count)));
    named.collect::<Vec<_>>().join(", ")
}

fn one_flow_type(facts: &Facts, namespace: &Namespace) -> Option<Finding> {
    // That most of a table is TCP or UDP is no news.
    let port = culprit(namespace).filter(|filler| filler.port.is_some() || !has_ports(filler.proto))?;
    let total = namespace.table.total;
    let finding = Finding::new(
        "one-flow-type",
        Status::Ok,
        format!("one flow type fills the table{}: {}", of_namespace(facts, namespace), named(&port, total)),
        "If nothing needs these flows tracked, leaving them out empties the table and saves the work for each packet. It is \
         right for a service that takes every packet on its own, and wrong where NAT or stateful rules depend on it.",
    )
    .seen("entries", port.count, namespace.table.from.clone())
    .seen("unreplied", port.unreplied, namespace.table.from.clone())
    .seen("share", percent(share(port.count, total)), "these entries / all entries");
    Some(finding.cure(notrack::remedies(facts.tools, namespace, &port)))
}

fn unseen(namespace: &Namespace) -> Option<Finding> {
    let why = namespace.table.unseen.as_ref()?;
    Some(
        Finding::new(
            "table-unseen",
            Status::Ok,
            "the entries of the table could not be read, so the flows that fill it are unknown",
            "Count, limit and live rates are known. The protocol, port and state that fill the table are not.",
        )
        .seen("why", why.clone(), "reading the table"),
    )
}

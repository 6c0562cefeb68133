//! Source NAT that has no port left for one more flow.

use super::{STATS, of_namespace};
use crate::doctor::facts::{Facts, Namespace, Translated};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::nat::{self, ports};
use crate::doctor::remedies::snat;
use crate::doctor::text::thousands;
use crate::model::protocol;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let in_each = facts.namespaces.iter();
    in_each.filter_map(|namespace| Some(finding(facts, namespace, exhausted(namespace)?))).collect()
}

/// A rule that gives fewer ports is made for a few flows that are there for good, as `snat to 192.0.2.1:4500`.
const FEW: u64 = 8;

/// The source and destination with the fewest ports left, where hardly any is. Among many ports the kernel looks at no more
/// than 128 before it takes one that is in use (`nf_nat_l4proto_unique_tuple`, 5.10 to 7.3), so that flows fail before all
/// are taken.
pub(super) fn exhausted(namespace: &Namespace) -> Option<&Translated> {
    let now = namespace.grown("insert_failed").is_some_and(|failed| failed > 0);
    let failed = now || namespace.since_boot("insert_failed").is_some();
    let full = |translated: &&Translated| {
        let of = ports(translated.ports);
        translated.used.saturating_mul(100) >= of.saturating_mul(95) && (now || of >= FEW)
    };
    namespace.table.translated.iter().find(full).filter(|_| failed)
}

fn finding(facts: &Facts, namespace: &Namespace, full: &Translated) -> Finding {
    let to = std::net::SocketAddr::new(full.dst, full.dport);
    let proto = protocol::name(full.proto);
    let (first, last) = full.ports;
    let rules = nat::rules(namespace);
    let rule =
        rules.iter().find(|(_, sources)| sources.ports == full.ports && sources.gives(full.src, first));
    let left = if full.used < ports(full.ports) { "hardly a port" } else { "no port" };
    Finding::new(
        "snat-exhausted",
        Status::Warning,
        format!(
            "source NAT{} to {} has {left} left towards {proto} {to}: {} of {} are in use",
            of_namespace(facts, namespace),
            full.src,
            thousands(full.used),
            thousands(ports(full.ports))
        ),
        "Flows to one destination that get the same source address need different source ports. Where all ports of the rule are \
         in use, the kernel gives a new flow a port that is taken, finds the clash as the entry enters the table, and drops the \
         packet: insert_failed. Clients see connections to this destination time out, while others work. `fully-random` makes \
         no port free, and a larger table has no more ports.",
    )
    .seen("netns", namespace.netns, namespace.name.clone())
    .seen("address", full.src.to_string(), namespace.table.from.clone())
    .seen("ports", format!("{first}-{last}"), "the rule; without a range 1024-65535")
    .seen("destination", format!("{proto} {to}"), namespace.table.from.clone())
    .seen("used", full.used, namespace.table.from.clone())
    .seen("of", ports(full.ports), "the rule's range")
    .seen_if("failed_in_sample", namespace.grown("insert_failed"), STATS)
    .seen_if("failed_since_boot", namespace.since_boot("insert_failed"), STATS)
    .seen_if("rule", rule.map(|(rule, _)| rule.text.clone()), "the rules of this namespace")
    .seen_if("chain", rule.map(|(rule, _)| format!("{} {} {}", rule.family, rule.table, rule.chain)), "the same")
    .cure(snat::remedies(namespace, full, rule))
}

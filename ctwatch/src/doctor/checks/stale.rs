//! Entries that send flows where nobody is.

use super::of_namespace;
use crate::doctor::facts::{Facts, Namespace, Stale};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::stale as remedies;
use crate::doctor::text::thousands;
use crate::model::protocol;

/// Fewer than these are what any change of rules leaves for a moment.
const WORTH_TELLING: u64 = 10;
/// Modules that change destinations without a rule.
const WITHOUT_RULES: [&str; 3] = ["ip_vs", "openvswitch", "act_ct"];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let by_rules = !facts.modules.iter().any(|module| WITHOUT_RULES.contains(&module.name.as_str()));
    let in_each = facts.namespaces.iter();
    in_each.filter_map(|namespace| finding(facts, namespace, by_rules)).collect()
}

/// How many entries lead to nobody. An answered connection goes on without a rule, but not without its neighbour.
const fn lost(stale: &Stale, by_rules: bool) -> u64 {
    match (stale.silent, stale.ruled) {
        (true, _) => stale.count,
        (false, false) if by_rules => stale.unanswered,
        (false, _) => 0,
    }
}

fn finding(facts: &Facts, namespace: &Namespace, by_rules: bool) -> Option<Finding> {
    let lost = |stale: &Stale| lost(stale, by_rules);
    let all = || namespace.table.stale.iter().filter(|stale| lost(stale) >= WORTH_TELLING);
    let most = all().max_by_key(|stale| lost(stale))?;
    let (proto, to) = (protocol::name(most.proto), std::net::SocketAddr::new(most.to, most.port));
    let dst = std::net::SocketAddr::new(most.dst, most.dport);
    let why = match (most.silent, most.ruled || !by_rules) {
        (true, true) => "a neighbour that does not answer",
        (true, false) => "a neighbour that does not answer, and which no rule names",
        (false, _) => "which no rule names; none of them was answered",
    };
    let more = match all().count() {
        1 => String::new(),
        count => format!("; {} more destinations are like it", count - 1),
    };
    let what = format!(
        "{} entries{} send {proto} {dst} to {to}, {why}{more}",
        thousands(lost(most)),
        of_namespace(facts, namespace),
    );
    let from = &namespace.table.from;
    let finding = Finding::new(
        "stale-nat",
        Status::Warning,
        what,
        "Where a flow is sent is decided once, by its first packet: later changes of the rules do not change its entry. Each \
         packet of the flow keeps the entry alive and goes to the old address, where it is lost. So clients that keep one \
         port (resolvers, telephones, tunnels, loggers) do not recover by themselves, while new ports work.",
    )
    .seen("netns", namespace.netns, namespace.name.clone())
    .seen("destination", format!("{proto} {dst}"), from.clone())
    .seen("sent_to", to.to_string(), from.clone())
    .seen("entries", most.count, from.clone())
    .seen("unanswered", most.unanswered, from.clone())
    .seen("a_rule_leads_there", most.ruled, "the rules of this namespace, where all could be read")
    .seen("neighbour_failed", most.silent, "the kernel's list of neighbours");
    Some(finding.cure([remedies::remedy(facts.tools, namespace, most)]))
}

//! Packets that belong to no flow: how many, why, and which rule drops them.

use std::collections::BTreeMap;

use ctwatch_ebpf::{Event, Group};

use super::{STATS, evicted, live_source, of_namespace, refused};
use crate::doctor::facts::{Facts, Namespace, Rule, RuleKind};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::invalid as remedies;
use crate::doctor::text::{rate, short, sum, thousands};
use crate::model::protocol;
use crate::model::verdict::{INVALID_HURTS, INVALID_OF_CONNECTIONS};

/// So many a second without a known reason.
const MANY: f64 = 10.0;
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    facts.namespaces.iter().filter_map(|namespace| invalid(facts, namespace)).collect()
}

fn invalid(facts: &Facts, namespace: &Namespace) -> Option<Finding> {
    // The kernel's counters know all of them, and begin before the source is there.
    let by_kernel = match (namespace.grown("invalid"), namespace.grown("icmp_error")) {
        (Some(invalid), icmp) => Some(invalid.saturating_add(icmp.unwrap_or(0))),
        (None, icmp) => icmp,
    };
    let counted = facts.live.sum(namespace.netns, Group::Invalid.parts()).unwrap_or(0);
    let (count, seconds) = match by_kernel {
        Some(count) if count > counted => (count, facts.live.around_s.max(facts.live.seconds)),
        _ => (counted, facts.live.seconds),
    };
    if count == 0 || seconds <= 0.0 {
        return None;
    }
    let per_second = count as f64 / seconds;
    let reasons = reasons(facts, namespace);
    let known = sum(INVALID_OF_CONNECTIONS.iter().filter_map(|event| reasons.get(event).copied()));
    let of_strangers = sum(reasons.values().copied()).saturating_sub(known);
    // Those without a reason may be of connections.
    let unexplained = count.saturating_sub(known).saturating_sub(of_strangers);
    let rule = namespace.rules().find(|rule| rule.kind == RuleKind::Rule && is_of_drops(namespace, rule));
    // Whatever it accepts, a chain that drops the rest seldom accepts these.
    let by_default = namespace.listings().iter().any(|listing| listing.drops_by_default);
    let often = known as f64 / seconds >= INVALID_HURTS || unexplained as f64 / seconds >= MANY;
    let hurts = (rule.is_some() || by_default) && often;
    let fate = match rule {
        Some(rule) => format!("; a rule in chain {} drops them", short(&rule.chain)),
        None if by_default => "; a chain drops what no rule accepts".to_owned(),
        None => String::new(),
    };
    let meaning = if hurts && rule.is_none() {
        "Connection tracking could not assign these packets to a flow. A chain here drops what no rule accepts, and rules that \
         accept known connections do not accept these. Their senders see connections that stall or time out now and then, while \
         the table has room."
    } else if hurts {
        "Connection tracking could not assign these packets to a flow, and a rule drops them. Their senders see \
         connections that stall or time out now and then, while the table has room."
    } else {
        "Connection tracking could not assign these packets to a flow. It lets them pass; they are lost only where a \
         rule drops them."
    };
    let finding = Finding::new(
        "invalid-packets",
        if hurts { Status::Warning } else { Status::Ok },
        format!("{} invalid packets a second{}{fate}", rate(per_second), of_namespace(facts, namespace)),
        meaning,
    )
    .seen("in_sample", count, if by_kernel == Some(count) { STATS.into() } else { live_source(facts) })
    .seen_if("since_boot", since_boot(namespace), STATS)
    .seen_if("reasons", listed(&reasons), live_source(facts))
    .seen_if("flow_types", flow_types(facts, namespace), live_source(facts))
    .seen_if("rule", rule.map(|rule| rule.text.clone()), "the rules of this namespace");
    Some(if hurts { finding.cure(remedies::remedies(facts, namespace, &reasons)) } else { finding })
}

/// Since boot, ICMP messages included.
fn since_boot(namespace: &Namespace) -> Option<u64> {
    let get = |name| namespace.stats_after.get(name).or_else(|| namespace.stats.get(name)).copied();
    Some(get("invalid")?.saturating_add(get("icmp_error").unwrap_or(0)))
}

/// Whether a rule drops invalid packets, or leads them to a chain that lets nothing pass.
fn is_of_drops(namespace: &Namespace, rule: &Rule) -> bool {
    let chains = namespace.listings().into_iter().flat_map(|listing| &listing.drops_all);
    let chains: Vec<&str> = chains.map(String::as_str).collect();
    drops_invalid(&rule.text, &chains)
}

/// The same of a rule with this text, where these chains let nothing pass.
fn drops_invalid(text: &str, chains: &[&str]) -> bool {
    // A comment may say anything.
    let text = text.split(" comment ").next().unwrap_or_default();
    let text = text.split(" --comment ").next().unwrap_or_default();
    let lower = text.to_ascii_lowercase();
    let words: Vec<&str> =
        lower.split(|char: char| !char.is_ascii_alphanumeric() && !"!=".contains(char)).collect();
    let has = |word: &str| words.contains(&word);
    // `ct state != invalid`, `! --ctstate INVALID`.
    let about_others = has("!=") || lower.contains("! --ctstate") || lower.contains("! --state");
    let leads = text
        .split_whitespace()
        .zip(text.split_whitespace().skip(1))
        .any(|(word, chain)| ["jump", "goto", "-j", "-g"].contains(&word) && chains.contains(&chain));
    has("invalid") && !about_others && (has("drop") || has("reject") || leads)
}

fn reasons(facts: &Facts, namespace: &Namespace) -> BTreeMap<Event, u64> {
    let mut sums = BTreeMap::new();
    for flow in facts.live.flows.iter().filter(|flow| flow.netns == namespace.netns) {
        for event in Group::Invalid.parts() {
            if let Some(count) = flow.counts.get(event) {
                *sums.entry(*event).or_default() += count;
            }
        }
    }
    sums
}

/// `out_of_window 900, bad_checksum 3`, most first.
fn listed(reasons: &BTreeMap<Event, u64>) -> Option<String> {
    let mut list: Vec<_> = reasons.iter().map(|(event, count)| (*count, event.reason())).collect();
    list.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let list: Vec<String> =
        list.into_iter().map(|(count, reason)| format!("{reason} {}", thousands(count))).collect();
    (!list.is_empty()).then(|| list.join(", "))
}

fn flow_types(facts: &Facts, namespace: &Namespace) -> Option<String> {
    let mut list = Vec::new();
    for flow in facts.live.flows.iter().filter(|flow| flow.netns == namespace.netns) {
        let count = sum(Group::Invalid.parts().iter().filter_map(|event| flow.counts.get(event).copied()));
        if count > 0 && flow.family != "any" {
            list.push((
                count,
                format!("{} {} {}", flow.family, protocol::name(flow.proto), thousands(count)),
            ));
        }
    }
    list.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let list: Vec<String> = list.into_iter().map(|(_, text)| text).take(5).collect();
    (!list.is_empty()).then(|| list.join(", "))
}

/// Whether conntrack did nothing to any packet: only where everything that it can do to one was looked at.
pub(super) fn is_innocent(facts: &Facts) -> bool {
    let nothing = |namespace: &Namespace| {
        let stats = ["invalid", "icmp_error", "drop", "insert_failed"];
        stats.iter().all(|name| namespace.grown(name) == Some(0))
            && refused(facts, namespace) == Some(0)
            && evicted(facts, namespace) == Some(0)
    };
    facts.live.lost == 0 && !facts.namespaces.is_empty() && facts.namespaces.iter().all(nothing)
}

/// Says so, where nothing else is wrong either.
pub(super) fn innocent(facts: &Facts) -> Option<Finding> {
    is_innocent(facts).then(|| {
        Finding::new(
            "invalid-packets",
            Status::Ok,
            "it is not conntrack: no packet was lost to it in the sample, and none was invalid",
            "Packets that are missing in this time were lost elsewhere: look at the rules, the queues of the network card, \
             the route and the other end. A fault that comes and goes needs a longer look (--sample, or ctwatch live).",
        )
        .seen("seconds", facts.live.seconds, live_source(facts))
    })
}

#[cfg(test)]
mod tests {
    use super::drops_invalid;

    #[test]
    fn a_rule_that_drops_invalid_packets_is_known_by_its_words() {
        for text in [
            "ct state invalid drop",
            "ct state invalid,untracked counter packets 9 bytes 540 drop",
            "ct state { invalid } reject",
            "ct state vmap { established : accept, related : accept, invalid : drop }",
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A INPUT -m state --state INVALID -j REJECT --reject-with icmp-port-unreachable",
        ] {
            assert!(drops_invalid(text, &[]), "{text}");
        }
        for text in ["ct state invalid jump DROPS", "-A INPUT -m conntrack --ctstate INVALID -j DROPS"] {
            assert!(drops_invalid(text, &["DROPS"]) && !drops_invalid(text, &["drops"]), "{text}");
        }
        for text in [
            "ct state invalid counter log",
            "ct state != invalid drop",
            "-A INPUT -m conntrack ! --ctstate INVALID -j DROP",
            "ct state new drop",
            "ct state new accept comment \"never drop invalid\"",
            "-A INPUT -m conntrack --ctstate NEW -m comment --comment \"drop invalid\" -j ACCEPT",
            "ip saddr @invalidated drop",
            "",
        ] {
            assert!(!drops_invalid(text, &["DROPS"]), "{text}");
        }
    }
}

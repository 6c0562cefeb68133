//! Switching tracking off: rules first, then modules in an order that works, then what would bring it back.

use std::collections::{BTreeMap, BTreeSet};

use super::quote;
use crate::doctor::facts::{Facts, ListingState, Module, Namespace, Rule, RuleKind};
use crate::doctor::finding::Remedy;
use crate::kernel::facts::Presence;

const REFUSE: &str = "/etc/modprobe.d/ctwatch-no-conntrack.conf";

/// The order in which modules can go so that nf_conntrack can go last: users before what they use.
pub fn unload_order(modules: &[Module]) -> Vec<String> {
    fn visit<'a>(
        name: &'a str,
        users: &BTreeMap<&'a str, &'a [String]>,
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<String>,
    ) {
        if !seen.insert(name) {
            return;
        }
        for user in users.get(name).copied().unwrap_or_default() {
            visit(user, users, seen, order);
        }
        order.push(name.to_owned());
    }
    let users: BTreeMap<&str, &[String]> =
        modules.iter().map(|module| (module.name.as_str(), module.used_by.as_slice())).collect();
    let mut order = Vec::new();
    if users.contains_key("nf_conntrack") {
        visit("nf_conntrack", &users, &mut BTreeSet::new(), &mut order);
    }
    order
}

/// How to switch it off; `None` where a rule could not be listed, since half of it would not help.
pub fn remedy(facts: &Facts) -> Option<Remedy> {
    let unreadable = |namespace: &Namespace| {
        namespace.listings().iter().any(|listing| matches!(listing.state, ListingState::Unreadable(_)))
    };
    if facts.namespaces.iter().any(unreadable) {
        return None;
    }
    let mut commands = Vec::new();
    let mut undo = Vec::new();
    for namespace in &facts.namespaces {
        nft(namespace, &mut commands, &mut undo);
        legacy(namespace, &mut commands, &mut undo);
    }
    let order = unload_order(&facts.modules);
    if facts.conntrack == Presence::Module {
        let flowtable = |rule: &Rule| rule.kind == RuleKind::Flowtable;
        let late = facts.namespaces.iter().any(|namespace| namespace.rules().any(flowtable));
        commands.extend(unload(&order, late));
    }
    if commands.is_empty() {
        return None;
    }
    let persist = if facts.conntrack == Presence::Module {
        undo.insert(0, format!("rm -f {REFUSE}"));
        vec![format!("echo 'install nf_conntrack /bin/false' > {REFUSE}")]
    } else {
        Vec::new()
    };
    if facts.conntrack == Presence::Module && undo.len() == 1 {
        undo.push("modprobe nf_conntrack".into());
    }
    let mut price = "NAT and stateful rules are gone: what they let in, kept out or translated is so no longer; read each \
                     rule before you delete it, and take the same rules out of the files that load them at boot"
        .to_owned();
    if !facts.programs.is_empty() {
        let names: Vec<&str> = facts.programs.iter().map(|program| program.name.as_str()).collect();
        price.push_str("; stop first what would write such rules again: ");
        price.push_str(&names.join(", "));
    }
    Some(Remedy {
        id: "switch-off",
        what: "Switch connection tracking off".into(),
        commands,
        persist,
        undo,
        price,
        alternative: false,
    })
}

fn nft(namespace: &Namespace, commands: &mut Vec<String>, undo: &mut Vec<String>) {
    // A notrack rule holds nft_ct, and with it nf_conntrack, as any other.
    let all: Vec<&Rule> = namespace.nft.rules.iter().collect();
    if all.is_empty() {
        return;
    }
    let nft = format!("{}nft", namespace.enter);
    let saved = format!("/root/ctwatch-ruleset-{}.nft", namespace.name);
    commands.push(format!("{{ echo flush ruleset; {nft} list ruleset; }} > {}", quote(&saved)));
    let nat_chains: BTreeSet<(&str, &str, &str)> =
        all.iter().filter(|rule| rule.kind == RuleKind::NatChain).map(|rule| place(rule)).collect();
    let order = |rule: &&&Rule| match rule.kind {
        RuleKind::Rule | RuleKind::Notrack => 0,
        RuleKind::NatChain => 1,
        RuleKind::Flowtable | RuleKind::Object(_) => 2,
    };
    let mut sorted = all.clone();
    sorted.sort_by_key(|rule| order(&rule));
    for rule in sorted {
        let (family, table, chain) = place(rule);
        let (table, chain) = (quote(table), quote(chain));
        match &rule.kind {
            RuleKind::Rule | RuleKind::Notrack if nat_chains.contains(&place(rule)) => {}
            RuleKind::Rule | RuleKind::Notrack => {
                if let Some(handle) = rule.handle {
                    commands.push(format!("{nft} delete rule {family} {table} {chain} handle {handle}"));
                }
            }
            RuleKind::NatChain => {
                commands.push(format!("{nft} flush chain {family} {table} {chain}"));
                commands.push(format!("{nft} delete chain {family} {table} {chain}"));
            }
            RuleKind::Flowtable => commands.push(format!("{nft} delete flowtable {family} {table} {chain}")),
            RuleKind::Object(kind) => commands.push(format!("{nft} delete {kind} {family} {table} {chain}")),
        }
    }
    undo.push(format!("{nft} -f {}", quote(&saved)));
}

/// One command for all, in this order. A flowtable that is deleted holds its module until its own work is done, a
/// second later (seen on 5.10): `late` waits for that.
fn unload(order: &[String], late: bool) -> Vec<String> {
    let waits = |name: &&String| late && name.starts_with("nf_flow_table_");
    let (slow, rest): (Vec<&String>, Vec<&String>) = order.iter().partition(waits);
    let names: Vec<&str> = rest.into_iter().map(String::as_str).collect();
    let slow =
        slow.into_iter().map(|name| format!("timeout 30 sh -c 'until rmmod {name}; do sleep 1; done'"));
    slow.chain([format!("rmmod {}", names.join(" "))]).collect()
}

fn place(rule: &Rule) -> (&str, &str, &str) {
    (&rule.family, &rule.table, &rule.chain)
}

fn legacy(namespace: &Namespace, commands: &mut Vec<String>, undo: &mut Vec<String>) {
    for (program, listing) in
        [("iptables-legacy", &namespace.iptables), ("ip6tables-legacy", &namespace.ip6tables)]
    {
        if listing.rules.is_empty() {
            continue;
        }
        let saved = quote(&format!("/root/ctwatch-{program}-{}", namespace.name));
        commands.push(format!("{}{program}-save > {saved}", namespace.enter));
        for rule in &listing.rules {
            commands.push(format!("{}{program} -t {} -D {}", namespace.enter, rule.table, rule.text));
        }
        undo.push(format!("{}{program}-restore < {saved}", namespace.enter));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, used_by: &[&str]) -> Module {
        Module {
            name: name.into(),
            refs: used_by.len() as u64,
            used_by: used_by.iter().map(|user| (*user).to_owned()).collect(),
        }
    }

    #[test]
    fn a_flowtables_module_is_waited_for() {
        let order = ["nf_flow_table_inet", "nf_flow_table", "nf_conntrack"].map(str::to_owned);
        assert_eq!(unload(&order, false), ["rmmod nf_flow_table_inet nf_flow_table nf_conntrack"]);
        assert_eq!(
            unload(&order, true),
            [
                "timeout 30 sh -c 'until rmmod nf_flow_table_inet; do sleep 1; done'",
                "rmmod nf_flow_table nf_conntrack"
            ]
        );
    }

    #[test]
    fn users_go_before_what_they_use() {
        let modules = [
            module("nf_conntrack", &["nf_nat", "nft_ct", "nft_masq"]),
            module("nf_nat", &["nft_masq", "nft_chain_nat"]),
            module("nft_ct", &[]),
            module("nft_masq", &[]),
            module("nft_chain_nat", &[]),
            module("ext4", &[]),
        ];
        assert_eq!(unload_order(&modules), ["nft_masq", "nft_chain_nat", "nf_nat", "nft_ct", "nf_conntrack"]);
        assert!(unload_order(&modules[5..]).is_empty());
    }
}

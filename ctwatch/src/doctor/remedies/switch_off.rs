//! Switching tracking off: rules first, then modules in an order that works, then what would bring it back.

mod rules;

use std::collections::{BTreeMap, BTreeSet};

use self::rules::Steps;
use crate::doctor::command::{Arg, Call, Command, Refused};
use crate::doctor::facts::{Facts, ListingState, Module, Namespace, Rule, RuleKind};
use crate::doctor::finding::Remedy;
use crate::kernel::facts::Presence;

const REFUSE: &str = "/etc/modprobe.d/ctwatch-no-conntrack.conf";

/// The order in which modules can go so that nf_conntrack can go last: users before what they use.
pub fn unload_order(modules: &[Module]) -> Vec<String> {
    let users: BTreeMap<&str, &[String]> =
        modules.iter().map(|module| (module.name.as_str(), module.used_by.as_slice())).collect();
    let mut order = Vec::new();
    if !users.contains_key("nf_conntrack") {
        return order;
    }
    let users_of = |name: &str| users.get(name).copied().unwrap_or_default().iter();
    let mut seen = BTreeSet::from(["nf_conntrack"]);
    // Not by recursion: a captured chain of users may be of any length.
    let mut path = vec![("nf_conntrack", users_of("nf_conntrack"))];
    while let Some((name, rest)) = path.last_mut() {
        match rest.next() {
            Some(user) if seen.insert(user) => path.push((user, users_of(user))),
            Some(_) => {}
            None => {
                order.push((*name).to_owned());
                path.pop();
            }
        }
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
    let mut steps = Steps::default();
    for namespace in &facts.namespaces {
        steps.add(namespace);
    }
    let Steps { mut commands, mut undo, mut left_out } = steps;
    let mut persist: Vec<Command> = Vec::new();
    if facts.conntrack == Presence::Module {
        let flowtable = |rule: &Rule| rule.kind == RuleKind::Flowtable;
        let late = facts.namespaces.iter().any(|namespace| namespace.rules().any(flowtable));
        // With rules left the modules would stay in use.
        let unloading = if left_out.is_empty() {
            unload(&unload_order(&facts.modules), late)
        } else {
            Err(Refused("those rules keep them in use"))
        };
        match unloading {
            Ok(lines) => {
                commands.extend(lines);
                persist
                    .push(Call::new("echo").arg("install nf_conntrack /bin/false").into_file(REFUSE).into());
                if undo.is_empty() {
                    undo.push(Call::new("modprobe").arg("nf_conntrack").into());
                }
                undo.insert(0, Call::new("rm").args(["-f", REFUSE]).into());
            }
            Err(why) => left_out.push(format!("unloading the modules: {why}")),
        }
    }
    if commands.is_empty() && left_out.is_empty() {
        return None;
    }
    let mut price = String::new();
    if facts.namespaces.iter().any(|namespace| {
        namespace.listings().iter().any(|listing| listing.drops_by_default || !listing.drops_all.is_empty())
    }) {
        price.push_str(
            "rules here drop what no other one accepts: once those that accept known connections are gone, so is the one that \
             you work by, unless a rule without state accepts it; ",
        );
    }
    price.push_str("NAT and stateful rules are gone: what they let in, kept out or translated is so no longer; read each \
                     rule before you delete it, and take the same rules out of the files that load them at boot");
    if !facts.programs.is_empty() {
        let names: Vec<&str> = facts.programs.iter().map(|program| program.name.as_str()).collect();
        price.push_str("; stop first what would write such rules again: ");
        price.push_str(&names.join(", "));
    }
    let what = "Switch connection tracking off".into();
    Some(Remedy { id: "switch-off", what, commands, persist, undo, left_out, price, alternative: false })
}

/// One command for all, in this order. A flowtable that is deleted holds its module until its own work is done, a
/// second later (seen on 5.10): `late` waits for that.
fn unload(order: &[String], late: bool) -> Result<Vec<Command>, Refused> {
    let (mut slow, mut rest) = (Vec::new(), Vec::new());
    for name in order {
        let waits = late && name.starts_with("nf_flow_table_");
        if waits { &mut slow } else { &mut rest }.push(Arg::module(name)?);
    }
    let wait = |module: Arg| {
        let script = "until rmmod \"$0\"; do sleep 1; done";
        Call::new("timeout").args(["30", "sh", "-c", script]).arg(module).into()
    };
    let all_others = Call::new("rmmod").args(rest).into();
    Ok(slow.into_iter().map(wait).chain([all_others]).collect())
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
        let lines = |late| {
            let commands = unload(&order, late).unwrap();
            commands.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(lines(false), ["rmmod nf_flow_table_inet nf_flow_table nf_conntrack"]);
        assert_eq!(
            lines(true),
            [
                "timeout 30 sh -c 'until rmmod \"$0\"; do sleep 1; done' nf_flow_table_inet",
                "rmmod nf_flow_table nf_conntrack"
            ]
        );
        assert!(unload(&["x;reboot".to_owned()], false).is_err());
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

//! What the rules of a machine change in the answers: remedies that would cut somebody off, and packets that they drop.

use super::tests::{finding, machine};
use super::*;
use crate::doctor::facts::{ListingState, Program, Rule, RuleKind};
use crate::doctor::nat;

fn rule(kind: RuleKind, text: &str, need: &str) -> Rule {
    Rule {
        kind,
        family: "inet".into(),
        table: "filter".into(),
        chain: "input".into(),
        handle: Some(7),
        number: None,
        text: text.into(),
        needs: vec![need.into()],
    }
}

/// A remedy that an operator pastes must not end the connection by which it was pasted.
#[test]
fn tracking_stays_where_rules_need_it() {
    let notrack = |change: &dyn Fn(&mut Namespace)| {
        let mut facts = machine("dropping");
        facts.namespaces[0].nft.rules.clear();
        change(&mut facts.namespaces[0]);
        let diagnosis = diagnose(&facts);
        let full = finding(&diagnosis, "table-full").unwrap();
        let remedies: Vec<_> =
            full.remedies.iter().filter(|remedy| remedy.id.starts_with("notrack-")).cloned().collect();
        assert!(!remedies.is_empty());
        remedies
    };
    let stateful = |namespace: &mut Namespace| {
        namespace.nft.rules.push(rule(RuleKind::Rule, "ct state established accept", "ct state"));
    };
    let drops_all = |namespace: &mut Namespace| namespace.nft.drops_all.push("input".into());
    for change in [&(|_: &mut Namespace| {}) as &dyn Fn(&mut Namespace), &stateful, &drops_all] {
        let remedies = notrack(change);
        assert!(remedies.iter().all(|remedy| !remedy.commands.is_empty()), "{remedies:?}");
    }
    for (change, why) in [
        (
            &(|namespace: &mut Namespace| namespace.nft.drops_by_default = true) as &dyn Fn(&mut Namespace),
            "First accept",
        ),
        (&|namespace| namespace.iptables.drops_by_default = true, "First accept"),
        (
            &|namespace| {
                stateful(namespace);
                drops_all(namespace);
            },
            "could end the connection",
        ),
        (
            &|namespace| namespace.nft.rules.push(rule(RuleKind::NatChain, "post", "nat")),
            "NAT rules of this namespace may translate",
        ),
        (&|namespace| namespace.iptables.state = ListingState::Unreadable("no".into()), "not all rules"),
        (&|namespace| namespace.nft.left_out = 1, "not all rules"),
    ] {
        let remedies = notrack(change);
        assert_eq!(remedies.len(), 1, "{why}");
        let commands = [&remedies[0].commands, &remedies[0].persist, &remedies[0].undo];
        assert!(commands.iter().all(|list| list.is_empty()), "{why}");
        assert!(remedies[0].left_out.concat().contains(why), "{remedies:?}");
    }
}

#[test]
fn invalid_packets_hurt_where_anything_drops_them() {
    let told = |change: &dyn Fn(&mut Facts)| {
        let mut facts = machine("invalid");
        change(&mut facts);
        let diagnosis = diagnose(&facts);
        let found = finding(&diagnosis, "invalid-packets").unwrap();
        (found.status, found.what.clone() + " | " + &found.meaning)
    };
    let no_rule = |facts: &mut Facts| facts.namespaces[0].nft.rules.truncate(1);
    let strangers = |facts: &mut Facts| {
        for flow in &mut facts.live.flows {
            let known = [Event::InvalidOutOfWindow, Event::InvalidBadChecksum];
            let moved = known.iter().filter_map(|event| flow.counts.remove(event)).sum();
            flow.counts.insert(Event::InvalidUnrelated, moved);
        }
    };
    assert_eq!(told(&|_| {}).0, Status::Warning);
    assert_eq!(told(&no_rule).0, Status::Ok);
    let (status, text) = told(&|facts| {
        no_rule(facts);
        facts.namespaces[0].nft.drops_by_default = true;
    });
    assert_eq!(status, Status::Warning);
    assert!(
        text.contains("a chain drops what no rule accepts | ") && text.contains("do not accept these"),
        "{text}"
    );
    let (status, text) = told(&|facts| {
        facts.namespaces[0].nft.rules[1].text = "ct state invalid jump drops".into();
        facts.namespaces[0].nft.drops_all.push("drops".into());
    });
    assert_eq!(status, Status::Warning);
    assert!(text.contains("a rule in chain forward drops them"), "{text}");
    // Scans and late resets reach every machine.
    assert_eq!(told(&strangers).0, Status::Ok);
    // A source that knows no reasons.
    assert_eq!(told(&|facts| facts.live.flows.clear()).0, Status::Warning);
}

/// A rule for one flow has no port left as soon as that flow is there.
#[test]
fn a_rule_that_gives_one_port_is_not_exhausted_by_one_flow() {
    let found = |ports, now| {
        let mut facts = machine("snat-exhausted");
        let namespace = facts.namespaces.iter_mut().find(|namespace| !namespace.table.translated.is_empty());
        let namespace = namespace.unwrap();
        for translated in &mut namespace.table.translated {
            (translated.ports, translated.used) = (ports, nat::ports(ports));
        }
        let before = namespace.stats.get("insert_failed").copied().unwrap_or(0);
        namespace.stats.insert("insert_failed".into(), before.max(1));
        namespace.stats_after.insert("insert_failed".into(), before.max(1) + now);
        finding(&diagnose(&facts), "snat-exhausted").is_some()
    };
    assert!(found((1024, 1031), 0) && found((1024, 1031), 5));
    assert!(!found((4500, 4500), 0) && found((4500, 4500), 5));
}

/// Who sets a value anew at its start is named with the remedy that changes it.
#[test]
fn a_limit_that_kube_proxy_sets_again_is_told() {
    let raise = |program: &str| {
        let mut facts = machine("dropping");
        facts.programs.push(Program { name: program.into(), uses: String::new() });
        let diagnosis = diagnose(&facts);
        let full = finding(&diagnosis, "table-full").unwrap();
        full.remedies.iter().find(|remedy| remedy.id == "raise-limit").unwrap().left_out.concat()
    };
    assert!(raise("k3s-server").contains("k3s-server: its own settings"));
    assert_eq!(raise("dockerd"), "");
}

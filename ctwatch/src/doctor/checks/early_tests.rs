use super::tests::{finding, machine};
use super::*;
use crate::doctor::early::RefusedPort;
use crate::doctor::facts::{ListingState, Rule};
use crate::doctor::finding::Remedy;

/// Refused flows that the rules would drop anyway are told apart from those that somebody misses.
#[test]
fn refused_flows_that_rules_drop_are_named_where_they_are_known() {
    let full = |change: &dyn Fn(&mut Facts)| {
        let mut facts = machine("refused-anyway");
        change(&mut facts);
        let diagnosis = diagnose(&facts);
        let full = finding(&diagnosis, "table-full").unwrap().clone();
        let place = full.remedies.iter().position(|remedy| remedy.id == "drop-early");
        (full.what + " | " + &full.meaning, place)
    };
    let (told, place) = full(&|_| {});
    assert!(
        told.contains("; 1,000 of the refused flows were for udp port 9999, which the rules drop anyway |")
    );
    assert!(told.contains("Nobody misses them, except such as this machine itself opened"), "{told}");
    assert_eq!(place, Some(1), "after more room");
    // By a source that knows no ports.
    let (told, place) = full(&|facts| {
        facts.live.refused.clear();
        facts.live.ranks_ports = false;
    });
    assert!(told.contains("drops udp port 9999 and tcp port 23; this source cannot tell"), "{told}");
    assert_eq!(place, Some(1));
    // Other ports were refused, no rule drops any, or a comment could be taken for a rule.
    for change in [
        &(|facts: &mut Facts| facts.live.refused.retain(|port| port.port != 9999)) as &dyn Fn(&mut Facts),
        &|facts| facts.live.refused.clear(),
        &|facts| facts.namespaces[0].nft.dropped.clear(),
        &|facts| facts.namespaces[0].nft.unquotable = 1,
    ] {
        let (told, place) = full(change);
        assert!(
            told.contains("among the refused flows may be such as the rules would drop anyway"),
            "{told}"
        );
        assert!(!told.contains("9999"), "{told}");
        assert_eq!(place, None);
    }
}

/// That nobody misses a flow is said only where nothing but the rule that drops can have had a say in it.
#[test]
fn refused_flows_may_be_missed_where_more_than_one_rule_has_a_say() {
    let told = |change: &dyn Fn(&mut Facts)| {
        let mut facts = machine("refused-anyway");
        change(&mut facts);
        let diagnosis = diagnose(&facts);
        let full = finding(&diagnosis, "table-full").unwrap();
        full.what.clone() + " | " + &full.meaning
    };
    let answers = |facts: &mut Facts, before, expectations| {
        let first = &mut facts.namespaces[0];
        (first.nft.dropped[0].before, first.nft.dropped[0].answers) = (before, 1);
        first.expectations = expectations;
    };
    assert!(told(&|facts| answers(facts, 1, Some(0))).contains("Nobody misses them"));
    for (change, why) in [
        (
            &(|facts: &mut Facts| facts.namespaces[0].forwards = Some(true)) as &dyn Fn(&mut Facts),
            "this machine forwards",
        ),
        (&|facts| facts.namespaces[0].forwards = None, "it is not known whether this machine forwards"),
        (
            &|facts| facts.modules[0].name = "openvswitch".into(),
            "packets pass through a bridge, Open vSwitch",
        ),
        (&|facts| nat_rule(facts, "masquerade", "masquerade"), "NAT leads flows"),
        (
            &|facts| facts.namespaces[0].iptables.state = ListingState::Unreadable("no".into()),
            "not all rules are known",
        ),
        (&|facts| facts.namespaces[0].nft.dropped[0].before = 1, "rules come before the one that drops"),
        (&|facts| answers(facts, 2, Some(0)), "rules come before the one that drops"),
        (&|facts| answers(facts, 1, Some(3)), "rules come before the one that drops"),
        (&|facts| answers(facts, 1, None), "rules come before the one that drops"),
    ] {
        let told = told(change);
        assert!(!told.contains("Nobody misses") && !told.contains("which the rules drop anyway"), "{told}");
        assert!(told.contains("which the rules may drop anyway | ") && told.contains(why), "{told}");
    }
}

/// What ctwatch has no room for may change the picture, so it is told.
#[test]
fn ports_that_were_not_kept_are_told() {
    let mut facts = machine("refused-anyway");
    let netns = facts.namespaces[0].netns;
    facts.namespaces[0].nft.dropped_left_out = 1_200;
    facts.live.refused_left_out = [(netns, 3_000)].into();
    let told = finding(&diagnose(&facts), "table-full").unwrap().meaning.clone();
    let words = "this leaves out 1,200 more ports that rules drop and 3,000 refused flows to more ports.";
    assert!(told.ends_with(words), "{told}");
}

fn nat_rule(facts: &mut Facts, need: &str, text: &str) {
    let rules = &mut facts.namespaces[0].nft.rules;
    let rule = Rule { needs: vec![need.into()], text: text.into(), ..rules[0].clone() };
    rules.push(rule);
}

/// A rule before tracking must not drop what the input chain lets in: translated packets, and answers to this machine's own
/// flows.
#[test]
fn no_command_drops_what_is_not_for_the_port() {
    let remedy = |change: &dyn Fn(&mut Facts)| {
        let mut facts = machine("refused-anyway");
        change(&mut facts);
        let full = finding(&diagnose(&facts), "table-full").unwrap().clone();
        full.remedies.into_iter().find(|remedy| remedy.id == "drop-early").unwrap()
    };
    let rules = |remedy: &Remedy| -> Vec<String> {
        let commands = remedy.commands.iter().map(ToString::to_string);
        commands.filter_map(|command| Some(command.split_once("prerouting fib ")?.1.to_owned())).collect()
    };
    let usual = "daddr type local udp dport 9999 counter drop";
    assert_eq!(rules(&remedy(&|_| {})), [usual]);
    let after = |facts: &mut Facts, ports, bound| {
        let first = &mut facts.namespaces[0];
        (first.nft.dropped[0].before, first.nft.dropped[0].bound, first.local_ports) = (1, bound, ports);
    };
    let far = Some((32_768, 60_999));
    assert_eq!(rules(&remedy(&|facts| after(facts, far, Some(false)))), [usual]);
    for (change, why) in [
        (
            &(|facts: &mut Facts| nat_rule(facts, "masquerade", "masquerade")) as &dyn Fn(&mut Facts),
            "source NAT may give it",
        ),
        (&|facts| nat_rule(facts, "dnat", "dnat to 10.0.0.1"), "destination NAT"),
        (&|facts| facts.namespaces[0].nft.cut = true, "not all rules are known"),
        (&|facts| after(facts, Some((9_000, 9_999)), Some(false)), "ip_local_port_range"),
        (&|facts| after(facts, None, Some(false)), "ip_local_port_range"),
        (&|facts| after(facts, far, Some(true)), "a program may have it open"),
        (&|facts| after(facts, far, None), "a program may have it open"),
        (&|facts| facts.namespaces[0].nft.dropped[0].family = "bridge".into(), "a family that"),
    ] {
        let remedy = remedy(change);
        assert!(
            remedy.commands.is_empty() && remedy.persist.is_empty() && remedy.undo.is_empty(),
            "{remedy:?}"
        );
        assert!(remedy.left_out.concat().contains(why), "{remedy:?}");
    }
    // What opens a connection of TCP is no answer, whatever port this machine opens its own from.
    let tcp = |facts: &mut Facts| {
        (facts.live.refused[0].proto, facts.live.refused[0].port) = (6, 23);
        nat_rule(facts, "masquerade", "masquerade");
    };
    let syn = "daddr type local tcp dport 23 tcp flags '& (fin|syn|rst|ack) == syn' counter drop";
    let commands: Vec<String> = remedy(&tcp).commands.iter().map(ToString::to_string).collect();
    assert!(commands.iter().any(|command| command.ends_with(syn)), "{commands:?}");
    // One port may have its rule where another has none.
    let both = |facts: &mut Facts| {
        facts.live.refused[1] = RefusedPort { proto: 6, port: 23, ..facts.live.refused[0] };
        nat_rule(facts, "masquerade", "masquerade");
    };
    let both = remedy(&both);
    assert_eq!((both.commands.len(), both.left_out.len()), (3, 1), "{both:?}");
}

use super::*;
use crate::doctor::facts::Listing;
use crate::doctor::nat;

fn rule(kind: RuleKind, text: &str, number: Option<u64>) -> Rule {
    Rule {
        kind,
        family: "ip".into(),
        table: "nat".into(),
        chain: if number.is_some() { "POSTROUTING" } else { "post" }.into(),
        handle: number.is_none().then_some(5),
        number,
        text: text.into(),
        needs: vec!["snat".into()],
    }
}

/// A namespace with this rule, and what nothing is left of.
fn exhausted(text: &str, number: Option<u64>) -> (Namespace, Translated) {
    let rules = vec![rule(RuleKind::Rule, text, number), rule(RuleKind::NatChain, "post", None)];
    let namespace =
        Namespace { own: true, nft: Listing { rules, ..Listing::default() }, ..Namespace::default() };
    let full = Translated {
        proto: 6,
        src: "192.0.2.1".parse().unwrap(),
        ports: (1024, 1031),
        dst: "198.51.100.9".parse().unwrap(),
        dport: 443,
        used: 8,
    };
    (namespace, full)
}

fn wider_by(text: &str, number: Option<u64>) -> Remedy {
    let (namespace, full) = exhausted(text, number);
    let rules = nat::rules(&namespace);
    remedies(&namespace, &full, rules.first()).remove(0)
}

fn lines(commands: &[Command]) -> Vec<String> {
    commands.iter().map(ToString::to_string).collect()
}

#[test]
fn the_rule_is_given_once_more_with_all_ports() {
    for (text, expected) in [
        (
            "oifname \"eth0\" ip saddr { 10.0.0.0/8, 192.168.1.1 } counter packets 3 bytes 180 snat to 192.0.2.1:1024-1031 \
             fully-random,persistent comment \"random\"",
            "oifname '\"eth0\"' ip saddr '{' 10.0.0.0/8, 192.168.1.1 '}' ip daddr 198.51.100.9 tcp dport 443 snat ip to \
             192.0.2.1:1024-65535",
        ),
        (
            "masquerade to :1024-1031 random",
            "ip daddr 198.51.100.9 tcp dport 443 masquerade to :1024-65535 random",
        ),
        (
            "ip saddr 10.0.0.1 snat to 192.0.2.1-192.0.2.4:1024-1031 persistent",
            "ip saddr 10.0.0.1 ip daddr 198.51.100.9 tcp dport 443 snat ip to 192.0.2.1-192.0.2.4:1024-65535 persistent",
        ),
    ] {
        let remedy = wider_by(text, None);
        let expected = format!("nft add rule inet ctwatch_snat postrouting {expected}");
        assert_eq!(lines(&remedy.commands).last(), Some(&expected));
        assert_eq!(lines(&remedy.undo)[0], "nft delete table inet ctwatch_snat");
    }
}

#[test]
fn iptables_gets_it_ahead_of_the_rule() {
    let remedy = wider_by(
        "POSTROUTING -s 10.0.0.0/8 -o eth0 -p tcp -m tcp --dport 80 -j SNAT --to-source 192.0.2.1:1024-1031 --random",
        Some(3),
    );
    let spec =
        "-s 10.0.0.0/8 -o eth0 -p tcp -m tcp --dport 80 -j SNAT --to-source 192.0.2.1:1024-65535 --random";
    assert_eq!(lines(&remedy.commands), [format!("iptables-legacy -t nat -I POSTROUTING 3 {spec}")]);
    assert_eq!(lines(&remedy.undo)[0], format!("iptables-legacy -t nat -D POSTROUTING {spec}"));
    let remedy = wider_by("POSTROUTING ! -d 10.0.0.0/8 -p udp -j MASQUERADE --to-ports 1024-1031", Some(1));
    assert_eq!(
        lines(&remedy.commands),
        [
            "iptables-legacy -t nat -I POSTROUTING 1 '!' -d 10.0.0.0/8 -p udp -j MASQUERADE --to-ports 1024-65535"
        ]
    );
}

#[test]
fn what_a_stranger_may_have_written_is_in_no_command() {
    for (text, number) in [
        ("oifname \"e;reboot\" snat to 192.0.2.1:1024-1031", None),
        ("oifname \"eth0;reboot\" snat to 192.0.2.1:1024-1031", None),
        ("ip saddr @clients snat to 192.0.2.1:1024-1031", None),
        ("log prefix \"a b\" snat to 192.0.2.1:1024-1031", None),
        ("POSTROUTING -o $(reboot) -j SNAT --to-source 192.0.2.1:1024-1031", Some(1)),
        ("POSTROUTING -o -j -j SNAT --to-source 192.0.2.1:1024-1031", Some(1)),
        ("POSTROUTING -m comment --comment \"x y\" -j SNAT --to-source 192.0.2.1:1024-1031", Some(1)),
    ] {
        let remedy = wider_by(text, number);
        assert!(
            remedy.commands.is_empty() && remedy.undo.is_empty(),
            "{text}: {:?}",
            lines(&remedy.commands)
        );
        assert_eq!(remedy.left_out.len(), 1, "{text}");
    }
}

#[test]
fn a_rule_that_others_lead_to_is_left_to_its_author() {
    let (mut namespace, full) = exhausted("snat to 192.0.2.1:1024-1031", None);
    namespace.nft.rules[0].chain = "clients".into();
    let rules = nat::rules(&namespace);
    let [wider, addresses] = remedies(&namespace, &full, rules.first()).try_into().unwrap();
    assert!(wider.commands.is_empty() && wider.left_out[0].contains("other rules lead to its chain"));
    assert!(!addresses.left_out.is_empty() && addresses.commands.is_empty());
    let all = Translated { ports: USUAL, ..full };
    assert_eq!(remedies(&namespace, &all, None).len(), 1, "there are no more ports to give");
}

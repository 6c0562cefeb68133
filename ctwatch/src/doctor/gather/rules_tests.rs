use super::super::budget::MOST_OF_ONE;
use super::*;

fn parse_iptables(save: &str) -> Listing {
    super::parse_iptables(save, "ip", &Budget::start())
}

#[test]
fn iptables_rules_are_known_by_match_and_target() {
    let save = "# Generated\n*raw\n:PREROUTING ACCEPT [0:0]\n\
                -A PREROUTING -p udp -m udp --dport 6881 -j CT --notrack\n\
                -A PREROUTING -p udp -m udp --dport 5060 -j CT --helper sip\nCOMMIT\n\
                *filter\n:INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\n\
                -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n\
                *nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n";
    let listing = parse_iptables(save);
    assert!(listing.drops_by_default);
    let kinds: Vec<_> = listing
        .rules
        .iter()
        .map(|rule| (rule.table.as_str(), rule.kind.clone(), rule.needs.join(" ")))
        .collect();
    assert_eq!(
        kinds,
        [
            ("raw", RuleKind::Notrack, "CT".to_owned()),
            ("raw", RuleKind::Rule, "CT".to_owned()),
            ("filter", RuleKind::Rule, "conntrack".to_owned()),
            ("nat", RuleKind::Rule, "MASQUERADE".to_owned()),
        ]
    );
}

#[test]
fn a_comment_is_no_rule_and_shifts_no_number() {
    let save = "*filter\n:INPUT ACCEPT [0:0]\n\
                -A INPUT -m comment --comment \"x \\\" -m conntrack\n-A INPUT -j CT\" -j ACCEPT\n\
                -A FORWARD -j ACCEPT\n\
                -A INPUT -m state --state NEW -j ACCEPT\nCOMMIT\n";
    let listing = parse_iptables(save);
    assert_eq!(listing.rules.len(), 1, "{:?}", listing.rules);
    assert_eq!(
        (listing.rules[0].number, listing.rules[0].text.as_str()),
        (Some(2), "INPUT -m state --state NEW -j ACCEPT")
    );
    assert_eq!(listing.unquotable, 1);
}

#[test]
fn rules_beyond_the_bound_are_counted() {
    let rule = "-A INPUT -m state --state NEW -j ACCEPT\n";
    let long = format!("-A INPUT -m state -m comment --comment \"{}\"\n", "x".repeat(MOST_TEXT));
    let listing = parse_iptables(&format!("*filter\n{long}{}COMMIT\n", rule.repeat(MOST_OF_ONE + 5)));
    assert_eq!((listing.rules.len(), listing.left_out), (MOST_OF_ONE, 6));
    assert_eq!(listing.rules[0].number, Some(2));
}

#[test]
fn ports_that_input_drops_are_known() {
    let save = "*raw\n-A PREROUTING -p udp -m udp --dport 1 -j DROP\nCOMMIT\n\
                *filter\n-A FORWARD -p udp -m udp --dport 2 -j DROP\n-A INPUT -p udp -m udp --dport 9999 -j DROP\n\
                -A INPUT -s 10.0.0.0/8 -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 23 -j DROP\nCOMMIT\n\
                *security\n-A INPUT -p udp -m udp --dport 3 -j DROP\nCOMMIT\n";
    let found: Vec<_> = parse_iptables(save)
        .dropped
        .into_iter()
        .map(|port| (port.family, port.proto, port.port, port.before))
        .collect();
    assert_eq!(found, [("ip".to_owned(), 17, 9999, 0), ("ip".to_owned(), 6, 23, 1)]);
}

use super::super::budget::MOST_OF_ONE;
use super::super::rules::parse_nft;
use super::*;

fn parse(json: &str, text: &str) -> Result<Listing, String> {
    parse_nft(json.as_bytes(), text.as_bytes(), &Budget::start())
}

const JSON: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
 {"table": {"family": "ip", "name": "filter", "handle": 1}},
 {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
 {"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "handle": 2, "expr": [{"xt": {"type": "match", "name": "conntrack"}}, {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]}},
 {"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "handle": 3, "expr": [{"xt": {"type": "match", "name": "tcp"}}, {"accept": null}]}},
 {"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "handle": 4, "expr": [{"xt": {"type": "target", "name": "CT"}}]}},
 {"table": {"family": "ip", "name": "nat", "handle": 2}},
 {"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING", "handle": 1, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}},
 {"rule": {"family": "ip", "table": "nat", "chain": "POSTROUTING", "handle": 2, "expr": [{"masquerade": null}]}},
 {"table": {"family": "inet", "name": "t", "handle": 3}},
 {"flowtable": {"family": "inet", "name": "ft", "table": "t", "handle": 9, "hook": "ingress", "prio": 0}},
 {"ct helper": {"family": "inet", "name": "ftp-std", "table": "t", "handle": 10, "type": "ftp", "protocol": "tcp", "l3proto": "ip"}},
 {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 5, "expr": [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": null}]]}}}]}},
 {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 6, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 6881}}, {"notrack": null}]}},
 {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 7, "expr": [{"flow": {"op": "add", "flowtable": "@ft"}}]}}]}"#;

const TEXT: &str = "table ip filter { # handle 1
\tchain INPUT { # handle 1
\t\ttype filter hook input priority filter; policy drop;
\t\tct state new counter packets 0 bytes 0 accept # handle 2
\t\ttcp dport 22 accept # handle 3
\t\tudp dport 53 counter packets 0 bytes 0 notrack # handle 4
\t}
}
table ip nat { # handle 2
\tchain POSTROUTING { # handle 1
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmasquerade # handle 2
\t}
}
table inet t { # handle 3
\tchain c { # handle 4
\t\tct state vmap { established : accept } # handle 5
\t\tudp dport 6881 notrack # handle 6
\t\tflow add @ft # handle 7
\t}
}
";

fn told(rule: &Rule) -> (RuleKind, String, String) {
    (rule.kind.clone(), rule.text.clone(), rule.needs.join(" "))
}

#[test]
fn nft_rules_are_known_by_what_they_ask_for() {
    let listing = parse(JSON, TEXT).unwrap();
    assert!(listing.drops_by_default);
    let rules: Vec<_> = listing.rules.iter().map(told).collect();
    let rule = |kind: RuleKind, text: &str, needs: &str| (kind, text.to_owned(), needs.to_owned());
    assert_eq!(
        rules,
        [
            rule(RuleKind::Rule, "ct state new counter packets 0 bytes 0 accept", "conntrack"),
            rule(RuleKind::Notrack, "udp dport 53 counter packets 0 bytes 0 notrack", "CT"),
            rule(RuleKind::NatChain, "chain POSTROUTING", "nat"),
            rule(RuleKind::Rule, "masquerade", "masquerade"),
            rule(RuleKind::Flowtable, "ft", "flow offload"),
            rule(RuleKind::Object("ct helper".into()), "ftp-std", "ct helper"),
            rule(RuleKind::Rule, "ct state vmap { established : accept }", "ct state"),
            rule(RuleKind::Notrack, "udp dport 6881 notrack", ""),
            rule(RuleKind::Rule, "flow add @ft", "flow offload"),
        ]
    );
    assert_eq!(listing.rules[0].handle, Some(2));
    assert!(parse("no JSON", "").is_err());
}

#[test]
fn what_nft_would_not_read_back_is_counted() {
    let count = |object: &str| {
        let json = format!("{{\"nftables\": [{{\"metainfo\": {{}}}}, {object}]}}");
        parse(&json, "").unwrap().unquotable
    };
    assert_eq!(count(r#"{"table": {"family": "ip", "name": "filter", "handle": 1}}"#), 0);
    assert_eq!(count(r#"{"table": {"family": "ip", "name": "a;flush ruleset", "handle": 1}}"#), 1);
    assert_eq!(count(r#"{"chain": {"family": "ip", "table": "t", "name": "c d", "handle": 1}}"#), 1);
    assert_eq!(
        count(
            r#"{"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 1, "comment": "für \u00dc"}}"#
        ),
        0
    );
    for comment in [r#"a\"; reboot"#, r"a\nb", r"\u001b[2J", r"\u007f", r"\u009b"] {
        let rule = format!(
            r#"{{"rule": {{"family": "ip", "table": "t", "chain": "c", "handle": 1, "comment": "{comment}"}}}}"#
        );
        assert_eq!(count(&rule), 1, "{comment}");
    }
}

#[test]
fn rules_beyond_the_bound_are_counted() {
    let rule = |handle: usize| {
        format!(
            r#"{{"rule": {{"family": "ip", "table": "t", "chain": "c", "handle": {handle}, "expr": [{{"match": {{"left": {{"ct": {{"key": "state"}}}}}}}}]}}}}"#
        )
    };
    let rules: Vec<String> = (0..MOST_OF_ONE + 7).map(rule).collect();
    let listing = parse(&format!("{{\"nftables\": [{}]}}", rules.join(",")), "").unwrap();
    assert_eq!((listing.rules.len(), listing.left_out), (MOST_OF_ONE, 7));
    assert_eq!(listing.rules[0].needs, ["ct state"]);
}

#[test]
fn what_xtables_hides_is_kept_only_where_its_text_says_notrack() {
    let json = r#"{"nftables": [
        {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 1, "expr": [{"xt": null}]}},
        {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 2, "expr": [{"xt": null}]}},
        {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 3, "expr": [], "comment": "notrack"}}]}"#;
    let text = "table ip t { # handle 9\n\tCT notrack # handle 1\n\ttcp # handle 2\n\taccept comment \"notrack\" # handle 3\n";
    let listing = parse(json, text).unwrap();
    assert_eq!(listing.rules.len(), 1, "{:?}", listing.rules);
    assert_eq!((listing.rules[0].handle, listing.rules[0].kind.clone()), (Some(1), RuleKind::Notrack));
}

#[test]
fn what_came_before_the_end_of_a_cut_listing_stays() {
    let budget = Budget::start();
    let mut collector = Collector::new(&budget);
    let half = JSON.find("\"family\": \"inet\"").unwrap();
    assert!(collector.read_json(&JSON.as_bytes()[..half]).is_err());
    assert!(collector.finish().rules.len() > 2);
}

#[test]
fn a_line_without_end_is_skipped() {
    let text = format!("{}\nshort\n", "x".repeat(200_000));
    let mut lines = BufReader::new(text.as_bytes());
    assert_eq!(next_line(&mut lines).unwrap().as_deref(), Some(""));
    assert_eq!(next_line(&mut lines).unwrap().as_deref(), Some("short\n"));
    assert_eq!(next_line(&mut lines).unwrap(), None);
}

#[test]
fn ports_that_an_input_chain_drops_are_known() {
    let text = "table inet f { # handle 1
\tchain first { # handle 1
\t\ttype filter hook input priority filter; policy accept;
\t\tct state established accept # handle 2
\t\tudp dport 9999 counter packets 0 bytes 0 drop # handle 3
\t}
\tchain called { # handle 4
\t\tudp dport 1 drop # handle 5
\t}
}
table ip g { # handle 2
\tset s { # handle 1
\t}
\tchain second { # handle 2
\t\ttype filter hook input priority 10; policy accept;
\t\ttcp dport { 23, 2323 } drop # handle 3
\t}
\tchain third { # handle 4
\t\ttype filter hook forward priority filter; policy accept;
\t\ttcp dport 2 drop # handle 5
\t}
}
";
    let found: Vec<_> = parse(r#"{"nftables": []}"#, text)
        .unwrap()
        .dropped
        .into_iter()
        .map(|port| (port.family, port.port, port.before))
        .collect();
    let expected = [("inet", 9999, 1), ("ip", 23, 0), ("ip", 2323, 0)];
    assert_eq!(found, expected.map(|(family, port, before)| (family.to_owned(), port, before)));
}

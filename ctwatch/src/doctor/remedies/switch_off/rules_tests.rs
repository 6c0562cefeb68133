use super::*;
use crate::doctor::facts::{Listing, ListingState};
use crate::doctor::way::Way;

fn rule(kind: RuleKind, table: &str, chain: &str, text: &str) -> Rule {
    Rule {
        kind,
        family: "ip".into(),
        table: table.into(),
        chain: chain.into(),
        handle: Some(5),
        number: None,
        text: text.into(),
        needs: vec!["ct state".into()],
    }
}

fn namespace(rules: Vec<Rule>) -> Namespace {
    let nft = Listing { state: ListingState::Listed, rules, ..Listing::default() };
    Namespace { netns: 9, name: "web".into(), own: true, nft, ..Namespace::default() }
}

fn steps(namespace: &Namespace) -> Steps {
    let mut steps = Steps::default();
    steps.add(namespace);
    steps
}

#[test]
fn a_name_that_nft_would_parse_further_is_in_no_command() {
    for name in ["c;flush ruleset", "$(touch /tmp/x)", "a\nreboot", "a\"b", "-f", "\u{1b}[2J"] {
        for kind in
            [RuleKind::Rule, RuleKind::NatChain, RuleKind::Flowtable, RuleKind::Object("ct helper".into())]
        {
            for (table, chain) in [(name, "input"), ("filter", name)] {
                let steps = steps(&namespace(vec![rule(kind.clone(), table, chain, "ct state new")]));
                assert!(steps.commands.is_empty() && steps.undo.is_empty(), "{:?}", steps.commands);
                assert!(steps.left_out[0].contains("handle 5"), "{:?}", steps.left_out);
            }
        }
    }
    let odd = Rule { family: "ip; reboot".into(), ..rule(RuleKind::Rule, "t", "c", "x") };
    assert!(steps(&namespace(vec![odd])).commands.is_empty());
    let odd = rule(RuleKind::Object("; reboot".into()), "t", "c", "x");
    assert!(steps(&namespace(vec![odd])).commands.is_empty());
}

#[test]
fn rules_that_cannot_be_saved_are_left() {
    let mut namespace = namespace(vec![rule(RuleKind::Rule, "filter", "input", "ct state new")]);
    assert_eq!(steps(&namespace).commands.len(), 2);
    namespace.nft.unquotable = 1;
    let steps = steps(&namespace);
    assert!(steps.commands.is_empty() && steps.left_out.len() == 1);
}

#[test]
fn rules_of_the_older_interface_go_by_number_from_the_last() {
    let numbered = |number, text: &str| Rule {
        handle: None,
        number: Some(number),
        ..rule(RuleKind::Rule, "filter", "OUTPUT", text)
    };
    let mut namespace = namespace(Vec::new());
    namespace.iptables.rules = vec![
        numbered(2, "OUTPUT -m conntrack --ctstate NEW -m comment --comment \"$(reboot) it's\""),
        numbered(10, "OUTPUT -m state --state NEW"),
    ];
    let lines: Vec<String> = steps(&namespace).commands.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "iptables-legacy-save > /root/ctwatch-iptables-legacy-web",
            "if [ \"$(iptables-legacy -t filter -S OUTPUT 10)\" = '-A OUTPUT -m state --state NEW' ]; then \
             iptables-legacy -t filter -D OUTPUT 10; else echo 'this is another rule now' >&2; false; fi",
            "if [ \"$(iptables-legacy -t filter -S OUTPUT 2)\" = '-A OUTPUT -m conntrack --ctstate NEW -m comment \
             --comment \"$(reboot) it'\\''s\"' ]; then iptables-legacy -t filter -D OUTPUT 2; else echo \
             'this is another rule now' >&2; false; fi",
        ]
    );
    namespace.iptables.rules[0].number = None;
    assert!(steps(&namespace).commands.is_empty(), "an old capture has no numbers");
    namespace.iptables.rules = vec![numbered(1, "OUTPUT -m comment --comment \"a\nb\"")];
    let left = steps(&namespace);
    assert!(left.commands.is_empty() && left.left_out[0].contains("rule 1 of a chain of table filter"));
}

#[test]
fn a_namespace_without_a_safe_way_is_left() {
    let mut namespace = namespace(vec![rule(RuleKind::Rule, "filter", "input", "ct state new")]);
    namespace.own = false;
    namespace.enter = Way::from("touch /tmp/x; ".to_owned());
    let left = steps(&namespace);
    assert!(left.commands.is_empty() && left.left_out.len() == 1, "{:?}", left.commands);
}

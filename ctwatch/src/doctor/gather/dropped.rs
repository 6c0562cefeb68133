//! Which ports an input chain drops whatever else a packet is. Only rules that say nothing but this are known: all others
//! may depend on more than a port.

use crate::doctor::early::DroppedPort;
use crate::doctor::facts::Listing;

/// Ports kept of one listing; the rest is counted.
const MOST: usize = 64;
const PROTOCOLS: [(&str, u8); 4] = [("udp", 17), ("tcp", 6), ("sctp", 132), ("udplite", 136)];

/// What filters packets of IP; bridges and interfaces have families of their own.
pub const FAMILIES: [&str; 3] = ["ip", "ip6", "inet"];
/// Packets of flows that are known already, and such as a helper expects.
const STATES: [&str; 2] = ["established", "related"];

/// What a rule has to do with ports that are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It drops these ports of a protocol, and asks nothing else.
    Drops(u8, Vec<u16>),
    /// It accepts answers, and asks nothing else.
    Answers,
    /// It may do anything.
    Other,
}

/// A chain as its lines are read.
#[derive(Debug, Default)]
pub struct Chain {
    input: bool,
    before: u64,
    answers: u64,
}

impl Chain {
    /// A line of nft's text that has no handle: it may say what kind of chain this is.
    pub fn line(&mut self, line: &str) {
        self.input |= line.trim_start().starts_with("type filter hook input ");
    }

    /// The chain of this name of iptables' table `filter`.
    pub fn of_xtables(table: &str, name: &str) -> Self {
        Self { input: table == "filter" && name == "INPUT", ..Self::default() }
    }

    /// A rule, and the ports that it drops, as far as there is room for them. What bridges and interfaces drop never asks
    /// for a place.
    pub fn rule(&mut self, family: &str, rule: Rule, listing: &mut Listing) {
        if !self.input || !FAMILIES.contains(&family) {
            return;
        }
        let (proto, ports) = match rule {
            Rule::Drops(proto, ports) => (proto, ports),
            Rule::Answers | Rule::Other => {
                self.before = self.before.saturating_add(1);
                self.answers = self.answers.saturating_add(u64::from(rule == Rule::Answers));
                return;
            }
        };
        let room = MOST.saturating_sub(listing.dropped.len());
        let left_out = ports.len().saturating_sub(room) as u64;
        listing.dropped_left_out = listing.dropped_left_out.saturating_add(left_out);
        let (before, answers) = (self.before, self.answers);
        let port =
            |port| DroppedPort { family: family.to_owned(), proto, port, before, answers, bound: None };
        listing.dropped.extend(ports.into_iter().take(room).map(port));
    }
}

/// A rule as nft prints it.
pub fn by_nft(rule: &str) -> Rule {
    match drops_by_nft(rule) {
        Some((proto, ports)) => Rule::Drops(proto, ports),
        None if answers_by_nft(rule).is_some() => Rule::Answers,
        None => Rule::Other,
    }
}

/// `udp dport 9999 counter packets 0 bytes 0 drop`, also with several ports.
fn drops_by_nft(rule: &str) -> Option<(u8, Vec<u16>)> {
    let (name, rest) = rule.split_once(" dport ")?;
    let (_, proto) = PROTOCOLS.into_iter().find(|(known, _)| *known == name)?;
    let (ports, rest) = match rest.strip_prefix("{ ") {
        Some(set) => set.split_once(" } ")?,
        None => rest.split_once(' ')?,
    };
    let ports = ports.split(", ").map(|port| port.parse().ok()).collect::<Option<_>>()?;
    ends_in(rest, "drop")?;
    Some((proto, ports))
}

/// `ct state established,related counter packets 0 bytes 0 accept`.
fn answers_by_nft(rule: &str) -> Option<()> {
    let rest = rule.strip_prefix("ct state ")?;
    let (states, rest) = match rest.strip_prefix("{ ") {
        Some(set) => set.split_once(" } ")?,
        None => rest.split_once(' ')?,
    };
    states.split(',').all(|state| STATES.contains(&state.trim())).then_some(())?;
    ends_in(rest, "accept")
}

/// What may come before a verdict is a counter, and after it a comment.
fn ends_in(rest: &str, verdict: &str) -> Option<()> {
    let mut words = rest.split(' ').peekable();
    if words.next_if_eq(&"counter").is_some() && words.next_if_eq(&"packets").is_some() {
        words.nth(2)?;
    }
    (words.next() == Some(verdict) && matches!(words.next(), None | Some("comment"))).then_some(())
}

/// `counter packets 0 bytes 0 drop`, `reject with icmpx admin-prohibited`: whether a rule of nft lets nothing pass.
pub fn all_by_nft(rule: &str) -> bool {
    ends_in(rule, "drop").is_some()
        || ends_in(rule.split(" with ").next().unwrap_or(rule), "reject").is_some()
}

/// The same of a rule of iptables, word by word.
pub fn all_by_iptables(rule: &[&str]) -> bool {
    matches!(rule, [_, "-j", "DROP" | "REJECT", ..])
}

/// Notes a chain that lets nothing pass.
pub fn note_chain(chain: &str, listing: &mut Listing) {
    if listing.drops_all.len() < MOST && !listing.drops_all.iter().any(|known| known == chain) {
        listing.drops_all.push(chain.to_owned());
    }
}

/// A rule of iptables, word by word.
pub fn by_iptables(rule: &[&str]) -> Rule {
    match rule {
        [_, "-p", name, "-m", same, "--dport", port, "-j", "DROP"] => {
            let known = PROTOCOLS.into_iter().find(|(known, _)| known == name && known == same);
            match (known, port.parse()) {
                (Some((_, proto)), Ok(port)) => Rule::Drops(proto, vec![port]),
                _ => Rule::Other,
            }
        }
        [_, "-m", "conntrack", "--ctstate", states, "-j", "ACCEPT"]
        | [_, "-m", "state", "--state", states, "-j", "ACCEPT"]
            if states.split(',').all(|state| STATES.contains(&state.to_ascii_lowercase().as_str())) =>
        {
            Rule::Answers
        }
        _ => Rule::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_lets_nothing_pass_is_known() {
        for rule in [
            "drop",
            "counter packets 9 bytes 540 drop",
            "drop comment \"the rest\"",
            "reject",
            "reject with icmpx admin-prohibited",
            "counter packets 9 bytes 540 reject with tcp reset",
        ] {
            assert!(all_by_nft(rule), "{rule}");
        }
        for rule in [
            "ct state invalid drop",
            "iifname \"lo\" accept",
            "log prefix \"drop\"",
            "accept",
            "jump drop",
            "",
        ] {
            assert!(!all_by_nft(rule), "{rule}");
        }
        assert!(all_by_iptables(&["INPUT", "-j", "DROP"]));
        assert!(all_by_iptables(&["INPUT", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"]));
        assert!(!all_by_iptables(&["INPUT", "-s", "192.0.2.1/32", "-j", "DROP"]));
        assert!(!all_by_iptables(&["INPUT", "-j", "DROPPED"]));
    }

    #[test]
    fn a_rule_is_known_where_it_drops_a_port_and_asks_nothing_else() {
        for (rule, ports) in [
            ("udp dport 9999 drop", Some((17, vec![9999]))),
            ("udp dport 9999 counter packets 12 bytes 3400 drop", Some((17, vec![9999]))),
            ("tcp dport { 23, 445 } counter drop", Some((6, vec![23, 445]))),
            ("sctp dport 36412 drop comment \"no drop here\"", Some((132, vec![36412]))),
            ("udp dport 9999 accept", None),
            ("udp dport 9999 reject", None),
            ("udp dport 9999", None),
            ("udp dport 9999 counter packets 12", None),
            ("udp dport 9999 limit rate 5/second drop", None),
            ("udp dport 1-9999 drop", None),
            ("udp dport { 1, 5-7 } drop", None),
            ("udp dport @ports drop", None),
            ("udp dport != 9999 drop", None),
            ("drop", None),
            ("udp dport 65536 drop", None),
            ("udp dport { 9999 drop", None),
            ("udp sport 9999 drop", None),
            ("ip saddr 10.0.0.1 udp dport 9999 drop", None),
            ("iifname \"udp dport 9999 drop", None),
            ("", None),
        ] {
            assert_eq!(drops_by_nft(rule), ports, "{rule}");
        }
        for (rule, ports) in [
            ("INPUT -p udp -m udp --dport 9999 -j DROP", Some((17, vec![9999]))),
            ("INPUT -p udp -m udp --dport 1:9 -j DROP", None),
            ("INPUT -p udp -m udp --dport 9999 -j REJECT", None),
            ("INPUT -s 10.0.0.1/32 -p udp -m udp --dport 9999 -j DROP", None),
            ("INPUT -p udp -m tcp --dport 9999 -j DROP", None),
        ] {
            let expected = ports.map_or(Rule::Other, |(proto, ports)| Rule::Drops(proto, ports));
            assert_eq!(by_iptables(&rule.split(' ').collect::<Vec<_>>()), expected, "{rule}");
        }
    }

    #[test]
    fn a_rule_that_accepts_answers_alone_is_known() {
        for (rule, is_one) in [
            ("ct state established accept", true),
            ("ct state established,related counter packets 1 bytes 2 accept comment \"x\"", true),
            ("ct state { established, related } accept", true),
            ("ct state established,new accept", false),
            ("ct state != invalid accept", false),
            ("ct state established drop", false),
            ("ct state established", false),
            ("ct state established udp dport 1 accept", false),
            ("ct state vmap { established : accept }", false),
            ("ip saddr 10.0.0.1 ct state established accept", false),
        ] {
            assert_eq!(by_nft(rule) == Rule::Answers, is_one, "{rule}");
        }
        for (rule, is_one) in [
            ("INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", true),
            ("INPUT -m state --state ESTABLISHED -j ACCEPT", true),
            ("INPUT -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", false),
            ("INPUT -m conntrack ! --ctstate ESTABLISHED -j ACCEPT", false),
            ("INPUT -m conntrack --ctstate ESTABLISHED -j LOG", false),
        ] {
            let words: Vec<&str> = rule.split(' ').collect();
            assert_eq!(by_iptables(&words) == Rule::Answers, is_one, "{rule}");
        }
    }

    #[test]
    fn only_input_chains_count_and_rules_before_are_told() {
        let drops = |ports: std::ops::Range<u16>| Rule::Drops(17, ports.collect());
        let mut found = Listing::default();
        let mut other = Chain::default();
        other.line("\t\ttype filter hook forward priority filter; policy accept;");
        other.rule("inet", drops(1..2), &mut found);
        let mut chain = Chain::default();
        chain.line("\t\ttype filter hook input priority filter; policy accept;");
        chain.rule("bridge", drops(1..2), &mut found);
        assert_eq!(found, Listing::default());
        chain.rule("inet", drops(1..2), &mut found);
        chain.rule("inet", Rule::Other, &mut found);
        chain.rule("inet", Rule::Answers, &mut found);
        chain.rule("inet", drops(2..100), &mut found);
        let before: Vec<_> = found.dropped.iter().map(|port| (port.before, port.answers)).take(2).collect();
        assert_eq!(before, [(0, 0), (2, 1)]);
        assert_eq!((found.dropped.len(), found.dropped_left_out), (MOST, 35));
    }
}

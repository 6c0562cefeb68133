//! Which ports an input chain drops whatever else a packet is. Only rules that say nothing but this are known: all others
//! may depend on more than a port.

use crate::doctor::early::DroppedPort;

/// Ports kept of one listing.
const MOST: usize = 64;
const PROTOCOLS: [(&str, u8); 4] = [("udp", 17), ("tcp", 6), ("sctp", 132), ("udplite", 136)];

/// A chain as its lines are read.
#[derive(Debug, Default)]
pub struct Chain {
    input: bool,
    before: u64,
}

impl Chain {
    /// A line of nft's text that has no handle: it may say what kind of chain this is.
    pub fn line(&mut self, line: &str) {
        self.input |= line.trim_start().starts_with("type filter hook input ");
    }

    /// The chain of this name of iptables' table `filter`.
    pub fn of_xtables(table: &str, name: &str) -> Self {
        Self { input: table == "filter" && name == "INPUT", before: 0 }
    }

    /// A rule by the ports that it drops, as far as there is room for them.
    pub fn rule(&mut self, family: &str, dropped: Option<(u8, Vec<u16>)>, found: &mut Vec<DroppedPort>) {
        if !self.input {
            return;
        }
        let Some((proto, ports)) = dropped else {
            self.before = self.before.saturating_add(1);
            return;
        };
        let room = MOST.saturating_sub(found.len());
        let before = self.before;
        let port = |port| DroppedPort { family: family.to_owned(), proto, port, before };
        found.extend(ports.into_iter().take(room).map(port));
    }
}

/// `udp dport 9999 counter packets 0 bytes 0 drop`, also with several ports.
pub fn by_nft(rule: &str) -> Option<(u8, Vec<u16>)> {
    let (name, rest) = rule.split_once(" dport ")?;
    let (_, proto) = PROTOCOLS.into_iter().find(|(known, _)| *known == name)?;
    let (ports, rest) = match rest.strip_prefix("{ ") {
        Some(set) => set.split_once(" } ")?,
        None => rest.split_once(' ')?,
    };
    let ports = ports.split(", ").map(|port| port.parse().ok()).collect::<Option<_>>()?;
    let mut words = rest.split(' ').peekable();
    if words.next_if_eq(&"counter").is_some() && words.next_if_eq(&"packets").is_some() {
        words.nth(2)?;
    }
    let drops = words.next() == Some("drop") && matches!(words.next(), None | Some("comment"));
    drops.then_some((proto, ports))
}

/// `INPUT -p udp -m udp --dport 9999 -j DROP`, word by word.
pub fn by_iptables(rule: &[&str]) -> Option<(u8, Vec<u16>)> {
    let [_, "-p", name, "-m", same, "--dport", port, "-j", "DROP"] = rule else { return None };
    let (_, proto) = PROTOCOLS.into_iter().find(|(known, _)| known == name && known == same)?;
    Some((proto, vec![port.parse().ok()?]))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("udp dport 65536 drop", None),
            ("udp dport { 9999 drop", None),
            ("udp sport 9999 drop", None),
            ("ip saddr 10.0.0.1 udp dport 9999 drop", None),
            ("iifname \"udp dport 9999 drop", None),
            ("", None),
        ] {
            assert_eq!(by_nft(rule), ports, "{rule}");
        }
        for (rule, ports) in [
            ("INPUT -p udp -m udp --dport 9999 -j DROP", Some((17, vec![9999]))),
            ("INPUT -p udp -m udp --dport 1:9 -j DROP", None),
            ("INPUT -p udp -m udp --dport 9999 -j REJECT", None),
            ("INPUT -s 10.0.0.1/32 -p udp -m udp --dport 9999 -j DROP", None),
            ("INPUT -p udp -m tcp --dport 9999 -j DROP", None),
        ] {
            assert_eq!(by_iptables(&rule.split(' ').collect::<Vec<_>>()), ports, "{rule}");
        }
    }

    #[test]
    fn only_input_chains_count_and_rules_before_are_told() {
        let mut found = Vec::new();
        let mut other = Chain::default();
        other.line("\t\ttype filter hook forward priority filter; policy accept;");
        other.rule("inet", Some((17, vec![1])), &mut found);
        assert_eq!(found, []);
        let mut chain = Chain::default();
        chain.line("\t\ttype filter hook input priority filter; policy accept;");
        chain.rule("inet", Some((17, vec![1])), &mut found);
        chain.rule("inet", None, &mut found);
        chain.rule("inet", Some((17, (2..100).collect())), &mut found);
        assert_eq!(found.iter().map(|port| port.before).take(2).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(found.len(), MOST);
    }
}

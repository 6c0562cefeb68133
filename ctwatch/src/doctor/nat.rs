//! Rules that give flows another source, and how many ports each may give; and where rules lead flows.

use std::net::IpAddr;

use super::command::Refused;
use super::facts::{Listing, ListingState, Namespace, Rule, RuleKind};

/// Rules looked at in one namespace.
const MOST_RULES: usize = 64;
/// What the kernel takes where a rule names no ports, for source ports from 1024 on (`nf_nat_l4proto_unique_tuple`, 5.10 to
/// 7.3).
pub const USUAL: (u16, u16) = (1024, u16::MAX);

/// First and last of a range of addresses.
pub type Addresses = (IpAddr, IpAddr);

/// What a rule may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// First and last address; `None` where it is that of the interface.
    pub addresses: Option<Addresses>,
    /// First and last port.
    pub ports: (u16, u16),
}

impl Sources {
    /// Whether it may have given this source.
    pub fn gives(&self, address: IpAddr, port: u16) -> bool {
        let fits = self.addresses.is_none_or(|(first, last)| (first..=last).contains(&address));
        fits && self.gives_port(port)
    }

    fn gives_port(&self, port: u16) -> bool {
        (self.ports.0..=self.ports.1).contains(&port)
    }
}

/// How many ports a range has.
pub fn ports((first, last): (u16, u16)) -> u64 {
    u64::from(last).saturating_sub(first.into()) + 1
}

/// The rules of a namespace that give sources.
pub fn rules(namespace: &Namespace) -> Vec<(&Rule, Sources)> {
    let rules = namespace.rules().filter_map(|rule| Some((rule, sources(&rule.text)?)));
    rules.take(MOST_RULES).collect()
}

/// `… snat to 192.0.2.1-192.0.2.9:1024-2047`, `… masquerade to :1024-2047`, `… -j SNAT --to-source 192.0.2.1:1024-2047`,
/// `… -j MASQUERADE --to-ports 1024-2047`. `None` for other rules, and where a map has the addresses.
fn sources(text: &str) -> Option<Sources> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let behind = |word: &str| {
        let at = words.iter().position(|one| *one == word)?;
        Some(&words[at + 1..])
    };
    if let Some(rest) = behind("snat") {
        let rest = rest.strip_prefix(&["ip"]).or_else(|| rest.strip_prefix(&["ip6"])).unwrap_or(rest);
        return target(rest.strip_prefix(&["to"])?.first()?);
    }
    if let Some(rest) = behind("--to-source") {
        return target(rest.first()?);
    }
    let ports = if let Some(rest) = behind("masquerade") {
        rest.strip_prefix(&["to"]).and_then(|rest| rest.first()?.strip_prefix(':'))
    } else if behind("MASQUERADE").is_some() {
        behind("--to-ports").and_then(|rest| rest.first().copied())
    } else {
        return None;
    };
    Some(Sources { addresses: None, ports: ports.map_or(Some(USUAL), range)? })
}

/// `192.0.2.1`, `192.0.2.1-192.0.2.9:1024-2047`, `[2001:db8::1]:1024-2047`.
fn target(text: &str) -> Option<Sources> {
    let (addresses, ports) = match text.rsplit_once(':') {
        // A colon in an IPv6 address ends no address.
        Some((addresses, ports)) if addresses.ends_with(']') || !addresses.contains(':') => {
            (addresses, range(ports)?)
        }
        _ => (text, USUAL),
    };
    let address = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let (first, last) = addresses.split_once('-').unwrap_or((addresses, addresses));
    Some(Sources { addresses: Some((address(first)?, address(last)?)), ports })
}

/// `1024-2047`, `1024`.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// Whether every rule that may translate was read.
pub fn all_known(namespace: &Namespace) -> bool {
    namespace.listings().iter().all(|listing: &&Listing| {
        !matches!(listing.state, ListingState::Unreadable(_)) && listing.left_out == 0 && !listing.cut
    })
}

/// Whether something in a namespace translates.
pub fn is_there(namespace: &Namespace) -> bool {
    namespace.rules().any(|rule| rule.kind == RuleKind::NatChain || translates(rule, &[DESTINATION, SOURCE]))
}

/// What changes destinations, and what changes sources.
const DESTINATION: &[&str] = &["dnat", "redirect", "DNAT", "REDIRECT", "NETMAP", "nat"];
const SOURCE: &[&str] = &["snat", "masquerade", "SNAT", "MASQUERADE", "NETMAP", "nat"];

fn translates(rule: &Rule, ways: &[&[&str]]) -> bool {
    let named = |need: &String| ways.iter().any(|names| names.contains(&need.as_str()));
    rule.kind != RuleKind::NatChain && rule.needs.iter().any(named)
}

/// Whether packets that come to a port of this machine are for that port, as far as NAT is concerned: none are led elsewhere,
/// and unless only a flow's first packet counts, none are answers to flows that were given the port as a source.
pub fn leaves_alone(namespace: &Namespace, port: u16, first_packets: bool) -> Result<(), Refused> {
    // Where a name breaks out of its place, a rule's text may be another's.
    let unclear = namespace.listings().iter().any(|listing| listing.unquotable > 0);
    if unclear || !all_known(namespace) {
        return Err(Refused("not all rules are known, so NAT may use this port"));
    }
    for rule in namespace.rules() {
        if translates(rule, &[DESTINATION]) && !is_for_another(&rule.text, port) {
            return Err(Refused("a rule may lead elsewhere what comes to this port (destination NAT)"));
        }
        // Without a range each port may be given: a source that nobody else has stays as it is.
        let gives = |sources: Sources| sources.ports == USUAL || sources.gives_port(port);
        if !first_packets && translates(rule, &[SOURCE]) && sources(&rule.text).is_none_or(gives) {
            return Err(Refused("source NAT may give it to flows, whose answers then come to this port"));
        }
    }
    Ok(())
}

/// Whether a rule matches only ports other than this one. Quotes may hold what looks like a match.
fn is_for_another(text: &str, port: u16) -> bool {
    if text.contains(|char: char| char == '"' || char.is_control()) {
        return false;
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut another = false;
    for (at, _) in words.iter().enumerate().filter(|(_, word)| ["dport", "--dport"].contains(word)) {
        let negated = at > 0 && words[at - 1] == "!";
        match words.get(at + 1).and_then(|ports| range(&ports.replace(':', "-"))) {
            Some((first, last)) if !negated => another |= !(first..=last).contains(&port),
            _ => return false,
        }
    }
    another
}

/// Where the rules of a namespace lead flows; `None` where that cannot be known from them: some were not read, or a rule
/// names a map or the interface's address, or IPVS leads flows without rules.
pub fn targets(namespace: &Namespace) -> Option<Vec<Addresses>> {
    if namespace.ipvs_conntrack || !all_known(namespace) {
        return None;
    }
    let mut targets = Vec::new();
    for rule in namespace.rules() {
        let needs = |names: &[&str]| rule.needs.iter().any(|need| names.contains(&need.as_str()));
        if needs(&["redirect", "REDIRECT", "NETMAP"]) {
            return None;
        }
        if needs(&["dnat", "DNAT"]) {
            targets.extend(targets_of(&rule.text)?);
        }
    }
    Some(targets)
}

/// `… dnat to 10.9.0.1-10.9.0.9:53`, `… dnat to numgen inc mod 2 map { 0 : 10.9.0.1, 1 : 10.9.0.2 }`,
/// `… -j DNAT --to-destination 10.9.0.1:53`. Keys of a map that are addresses are taken for targets, too.
fn targets_of(text: &str) -> Option<Vec<Addresses>> {
    let (_, rest) = ["dnat ", "--to-destination "].iter().find_map(|word| text.split_once(word))?;
    // A map by name, a network, and a map of which the end is on another line.
    let unclear = |char: char| ['@', '/'].contains(&char);
    if rest.contains(unclear) || rest.contains('{') != rest.contains('}') {
        return None;
    }
    let words = rest.split([' ', ',', '{', '}']);
    let found: Vec<Addresses> = words.filter_map(|word| target(word)?.addresses).collect();
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_rules_of_both_interfaces() {
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        for (text, first, last, ports) in [
            (
                "ip saddr 10.0.0.0/8 counter packets 1 bytes 2 snat to 192.0.2.1:1024-1031",
                "192.0.2.1",
                "192.0.2.1",
                (1024, 1031),
            ),
            ("snat ip to 192.0.2.1-192.0.2.9:7 fully-random", "192.0.2.1", "192.0.2.9", (7, 7)),
            ("snat to 192.0.2.1", "192.0.2.1", "192.0.2.1", USUAL),
            ("snat ip6 to [2001:db8::1]:1024-1031", "2001:db8::1", "2001:db8::1", (1024, 1031)),
            ("snat to 2001:db8::1", "2001:db8::1", "2001:db8::1", USUAL),
            (
                "POSTROUTING -p tcp -j SNAT --to-source 192.0.2.1:1024-1031 --random",
                "192.0.2.1",
                "192.0.2.1",
                (1024, 1031),
            ),
        ] {
            let expected = Sources { addresses: Some((at(first), at(last))), ports };
            assert_eq!(sources(text), Some(expected), "{text}");
        }
        for (text, ports) in [
            ("oifname \"eth0\" masquerade", USUAL),
            ("masquerade to :1024-1031", (1024, 1031)),
            ("POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-1031", (1024, 1031)),
            ("POSTROUTING -o eth0 -j MASQUERADE", USUAL),
        ] {
            assert_eq!(sources(text), Some(Sources { addresses: None, ports }), "{text}");
        }
        for text in
            ["dnat to 192.0.2.1:80", "snat to ip saddr map @clients", "snat to 192.0.2.1:9-8", "", "snat"]
        {
            assert_eq!(sources(text), None, "{text}");
        }
    }

    #[test]
    fn a_source_is_inside_of_both_ranges() {
        let sources = sources("snat to 192.0.2.1-192.0.2.9:1024-1031").unwrap();
        let gives = |address: &str, port| sources.gives(address.parse().unwrap(), port);
        assert!(gives("192.0.2.1", 1024) && gives("192.0.2.9", 1031));
        assert!(!gives("192.0.2.10", 1024) && !gives("192.0.2.1", 1032) && !gives("::1", 1024));
        assert_eq!((ports(sources.ports), ports((0, u16::MAX))), (8, 65_536));
    }

    #[test]
    fn targets_are_those_that_rules_name() {
        let targets = |text| {
            let shown = |(first, last): &Addresses| format!("{first}-{last}");
            targets_of(text).map(|found| found.iter().map(shown).collect::<Vec<_>>().join(" "))
        };
        for (text, expected) in [
            ("udp dport 5353 dnat to 10.9.0.77:53", "10.9.0.77-10.9.0.77"),
            ("dnat ip to 10.9.0.1-10.9.0.9:53 persistent", "10.9.0.1-10.9.0.9"),
            ("dnat ip6 to [fd00::1]:53", "fd00::1-fd00::1"),
            (
                "dnat to numgen inc mod 2 map { 0 : 10.9.0.1, 1 : 10.9.0.2 }",
                "10.9.0.1-10.9.0.1 10.9.0.2-10.9.0.2",
            ),
            ("PREROUTING -p udp -j DNAT --to-destination 10.9.0.77:53", "10.9.0.77-10.9.0.77"),
        ] {
            assert_eq!(targets(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "dnat to ip saddr map @backends",
            "dnat ip prefix to 10.9.0.0/24",
            "dnat to numgen inc mod 2 map { 0 : 10.9.0.1,",
            "xt target \"DNAT\"",
            "prerouting",
        ] {
            assert_eq!(targets(text), None, "{text}");
        }
    }

    fn rule(need: &str, text: &str) -> Rule {
        Rule {
            kind: RuleKind::Rule,
            family: "ip".into(),
            table: "nat".into(),
            chain: "pre".into(),
            handle: Some(4),
            number: None,
            text: text.into(),
            needs: vec![need.into()],
        }
    }

    /// A port of this machine is its own only where no rule can lead packets from it or bring answers to it.
    #[test]
    fn a_port_may_be_used_by_nat() {
        for (need, text, all, first) in [
            ("dnat", "udp dport 9999 dnat to 10.0.0.1", true, true),
            ("dnat", "dnat to 10.0.0.1", true, true),
            ("dnat", "udp dport { 53, 9999 } dnat to 10.0.0.1", true, true),
            ("dnat", "udp dport != 53 dnat to 10.0.0.1", true, true),
            ("dnat", "udp dport 53 dnat to udp dport map { 53 : 10.0.0.1 }", true, true),
            ("dnat", "iifname \"dport 53 \" dnat to 10.0.0.1", true, true),
            ("dnat", "udp dport 53 dnat to 10.0.0.1:9999", false, false),
            ("redirect", "tcp dport 1-9998 redirect to :80", false, false),
            ("DNAT", "PRE -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.1", false, false),
            ("DNAT", "PRE -p udp -m udp --dport 53:9999 -j DNAT --to-destination 10.0.0.1", true, true),
            ("DNAT", "PRE -p udp -m udp ! --dport 53 -j DNAT --to-destination 10.0.0.1", true, true),
            ("REDIRECT", "PRE -p udp -m multiport --dports 53 -j REDIRECT", true, true),
            ("masquerade", "masquerade", true, false),
            ("snat", "snat to 192.0.2.1:1024-2047", false, false),
            ("snat", "snat to 192.0.2.1:9000-10000", true, false),
            ("SNAT", "POST -j SNAT --to-source 192.0.2.1", true, false),
            ("snat", "snat to ip saddr map @clients", true, false),
            ("nat", "xt target \"NETMAP\"", true, true),
            ("ct state", "ct state new", false, false),
        ] {
            let mut namespace = Namespace::default();
            namespace.nft.rules.push(rule(need, text));
            let used = |first| leaves_alone(&namespace, 9999, first).is_err();
            assert_eq!((used(false), used(true)), (all, first), "{text}");
        }
        let mut namespace = Namespace::default();
        assert!(leaves_alone(&namespace, 9999, false).is_ok() && !is_there(&namespace));
        namespace.ip6tables.state = ListingState::Unreadable("ip6tables-save is not installed".into());
        assert!(leaves_alone(&namespace, 9999, true).is_err());
    }

    #[test]
    fn rules_that_were_not_read_may_lead_anywhere() {
        let mut namespace = Namespace::default();
        assert_eq!(targets(&namespace), Some(Vec::new()));
        namespace.nft.rules.push(rule("dnat", "dnat to 10.9.0.77"));
        assert_eq!(targets(&namespace).map(|found| found.len()), Some(1));
        namespace.iptables.left_out = 1;
        assert_eq!(targets(&namespace), None);
        namespace.iptables.left_out = 0;
        namespace.nft.rules.push(rule("redirect", "redirect to :8080"));
        assert_eq!(targets(&namespace), None);
    }
}

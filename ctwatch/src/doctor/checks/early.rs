//! Refused flows that the rules would drop anyway: tracking comes before the filter, so they ask for a place first.

use crate::doctor::early::DroppedPort;
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::nat;
use crate::doctor::text::{sum, thousands};

/// Names told in a sentence.
const TOLD: usize = 3;
const GENERAL: &str = "Tracking comes before the filter, so among the refused flows may be such as the rules would drop anyway: drop \
                       those in the raw stage (prerouting, priority -300), or leave them untracked there, and they take no place.";

/// Modules that track packets which meet no input chain.
const BY_OTHER_WAYS: [&str; 3] = ["openvswitch", "act_ct", "nf_conntrack_bridge"];

/// What the rules drop, as far as it has to do with refused flows.
#[derive(Debug, Default)]
pub struct Early<'a> {
    /// The ports; those of one protocol and number may be of several families.
    pub ports: Vec<&'a DroppedPort>,
    /// How many of the refused flows were for them; `None` where nobody knows where these wanted to go.
    pub refused: Option<u64>,
    /// Why some of these may be missed all the same.
    pub doubts: Vec<&'static str>,
    /// What of both was not kept.
    pub left_out: Vec<String>,
}

/// Ports that the rules drop and that refused flows wanted, or may have wanted.
pub fn find<'a>(facts: &Facts, namespace: &'a Namespace, refused: Option<u64>) -> Early<'a> {
    if refused.unwrap_or(0) == 0 {
        return Early::default();
    }
    // Where a name breaks out of its place, a comment may look like a rule.
    let listings = namespace.listings().into_iter().filter(|listing| listing.unquotable == 0);
    let mut ports: Vec<&DroppedPort> = listings.clone().flat_map(|listing| &listing.dropped).collect();
    let more_ports = sum(listings.map(|listing| listing.dropped_left_out));
    let more_flows = facts.live.refused_left_out.get(&namespace.netns).copied().unwrap_or(0);
    let left_out = [(more_ports, "more ports that rules drop"), (more_flows, "refused flows to more ports")];
    let left_out = left_out.into_iter().filter(|(more, _)| *more > 0);
    let left_out = left_out.map(|(more, what)| format!("{} {what}", thousands(more))).collect();
    let mut wanted = facts.live.refused.iter().filter(|port| port.netns == namespace.netns).peekable();
    // A capture of an older ctwatch does not say whether the source ranks ports.
    if wanted.peek().is_none() && !facts.live.ranks_ports {
        return Early { ports, left_out, ..Early::default() };
    }
    let dropped: Vec<_> = wanted
        .filter(|wanted| ports.iter().any(|port| (port.proto, port.port) == (wanted.proto, wanted.port)))
        .collect();
    ports.retain(|port| dropped.iter().any(|wanted| (port.proto, port.port) == (wanted.proto, wanted.port)));
    let doubts = doubts(facts, namespace, &ports);
    // One reading may be a moment behind the other.
    let of_these = sum(dropped.iter().map(|wanted| wanted.count)).min(refused.unwrap_or(0));
    Early { ports, refused: Some(of_these), doubts, left_out }
}

/// Why the rule may not have dropped a flow to its port.
fn doubts(facts: &Facts, namespace: &Namespace, ports: &[&DroppedPort]) -> Vec<&'static str> {
    let by_other_ways = facts.modules.iter().any(|module| BY_OTHER_WAYS.contains(&module.name.as_str()));
    let passing = match namespace.forwards {
        Some(false) if by_other_ways => {
            Some("packets pass through a bridge, Open vSwitch or tc, where no input chain sees them")
        }
        Some(false) => None,
        Some(true) => Some("this machine forwards, and what is for others meets no input chain"),
        None => {
            Some("it is not known whether this machine forwards, and what is for others meets no input chain")
        }
    };
    let translated = if nat::is_there(namespace) {
        Some("NAT leads flows to other ports and machines")
    } else if !nat::all_known(namespace) {
        Some("not all rules are known, and NAT may be among them")
    } else {
        None
    };
    // A new flow is no answer, unless a helper expects it.
    let counts = |port: &&DroppedPort| {
        let answers = if namespace.expectations == Some(0) { port.answers } else { 0 };
        port.before > answers
    };
    let accepted =
        ports.iter().any(counts).then_some("rules come before the one that drops, and may accept some");
    [passing, translated, accepted].into_iter().flatten().collect()
}

impl Early<'_> {
    /// `udp port 9999 and tcp port 23`.
    pub fn names(&self) -> Option<String> {
        let mut names: Vec<String> = Vec::new();
        for port in &self.ports {
            let name = port.name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let more = names.len().saturating_sub(TOLD);
        names.truncate(TOLD);
        let last = if more > 0 { format!("{more} more") } else { names.pop()? };
        Some(if names.is_empty() { last } else { format!("{} and {last}", names.join(", ")) })
    }

    /// `; 480 of the refused flows were for udp port 9999, which the rules drop anyway`.
    pub fn verdict(&self) -> String {
        match (self.names(), self.refused) {
            (Some(names), Some(refused)) => {
                let refused = thousands(refused);
                let dropped = if self.doubts.is_empty() {
                    "which the rules drop anyway"
                } else {
                    "which the rules may drop anyway"
                };
                format!("; {refused} of the refused flows were for {names}, {dropped}")
            }
            _ => String::new(),
        }
    }

    /// What this means, in a few sentences.
    pub fn meaning(&self) -> String {
        let known = self.known();
        if self.left_out.is_empty() {
            return known;
        }
        format!("{known} ctwatch kept no more, so this leaves out {}.", self.left_out.join(" and "))
    }

    fn known(&self) -> String {
        match (self.names(), self.refused) {
            (Some(names), Some(refused)) if self.doubts.is_empty() => format!(
                "Tracking comes before the filter: {} of the refused flows were for {names}, which the input chain drops anyway. \
                 Nobody misses them, except such as this machine itself opened to that port elsewhere. Each asked for a place, and \
                 had a live entry thrown out where one could be. Dropped in the raw stage (prerouting, priority -300), or left \
                 untracked there, they ask for none.",
                thousands(refused)
            ),
            (Some(names), Some(refused)) => format!(
                "Tracking comes before the filter: {} of the refused flows were for {names}, which the input chain drops where it \
                 is a port of this machine. How many it would have dropped is not known: {}. Those that it drops ask for no place \
                 if the raw stage (prerouting, priority -300) drops them, or leaves them untracked.",
                thousands(refused),
                self.doubts.join("; ")
            ),
            (Some(names), None) => format!(
                "{GENERAL} The input chain drops {names}; this source cannot tell whether the refused flows are among these."
            ),
            _ => GENERAL.to_owned(),
        }
    }
}

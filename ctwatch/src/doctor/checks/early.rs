//! Refused flows that the rules would drop anyway: tracking comes before the filter, so they ask for a place first.

use crate::doctor::early::DroppedPort;
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::text::{sum, thousands};

/// Names told in a sentence.
const TOLD: usize = 3;
const GENERAL: &str = "Tracking comes before the filter, so among the refused flows may be such as the rules would drop anyway: drop \
                       those in the raw stage (prerouting, priority -300), or leave them untracked there, and they take no place.";

/// What the rules drop, as far as it has to do with refused flows.
#[derive(Debug, Default)]
pub struct Early<'a> {
    /// The ports; those of one protocol and number may be of several families.
    pub ports: Vec<&'a DroppedPort>,
    /// How many of the refused flows were for them; `None` where nobody knows where these wanted to go.
    pub refused: Option<u64>,
}

/// Ports that the rules drop and that refused flows wanted, or may have wanted.
pub fn find<'a>(facts: &Facts, namespace: &'a Namespace, refused: Option<u64>) -> Early<'a> {
    if refused.unwrap_or(0) == 0 {
        return Early::default();
    }
    // Where a name breaks out of its place, a comment may look like a rule.
    let listings = namespace.listings().into_iter().filter(|listing| listing.unquotable == 0);
    let mut ports: Vec<&DroppedPort> = listings.flat_map(|listing| &listing.dropped).collect();
    let mut wanted = facts.live.refused.iter().filter(|port| port.netns == namespace.netns).peekable();
    if wanted.peek().is_none() {
        return Early { ports, refused: None };
    }
    let dropped: Vec<_> = wanted
        .filter(|wanted| ports.iter().any(|port| (port.proto, port.port) == (wanted.proto, wanted.port)))
        .collect();
    ports.retain(|port| dropped.iter().any(|wanted| (port.proto, port.port) == (wanted.proto, wanted.port)));
    Early { ports, refused: Some(sum(dropped.iter().map(|wanted| wanted.count))) }
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

    /// `, 480 of them for udp port 9999, which the rules drop anyway`.
    pub fn verdict(&self) -> String {
        match (self.names(), self.refused) {
            (Some(names), Some(refused)) => {
                format!(
                    "; {} of the refused flows were for {names}, which the rules drop anyway",
                    thousands(refused)
                )
            }
            _ => String::new(),
        }
    }

    /// What this means, in a sentence or two.
    pub fn meaning(&self) -> String {
        match (self.names(), self.refused) {
            (Some(names), Some(refused)) => format!(
                "Tracking comes before the filter: {} of the refused flows were for {names}, which the input chain drops anyway. \
                 Nobody misses them, but each asked for a place, and had a live entry thrown out where one could be. Dropped in the \
                 raw stage (prerouting, priority -300), or left untracked there, they ask for none.",
                thousands(refused)
            ),
            (Some(names), None) => format!(
                "{GENERAL} The input chain drops {names}; this source cannot tell whether the refused flows are among these."
            ),
            _ => GENERAL.to_owned(),
        }
    }

    /// Whether at least half of the refused flows are of no use to anybody.
    pub fn are_most(&self, refused: Option<u64>) -> bool {
        self.refused.is_some_and(|early| early > 0 && early.saturating_mul(2) >= refused.unwrap_or(0))
    }
}

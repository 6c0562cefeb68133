//! Ports whose packets the rules drop behind tracking, and the flows that were refused on their way there.

use serde::{Deserialize, Serialize};

/// A port that an input chain drops, whoever sends to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPort {
    /// nft's family of the rule: `ip`, `ip6` or `inet`.
    pub family: String,
    /// L4 protocol number.
    pub proto: u8,
    /// The destination port.
    pub port: u16,
    /// How many rules before it in its chain do more than drop a port: they may accept some of it.
    pub before: u64,
    /// How many of these accept answers and nothing else: packets of flows that have an entry, or that a helper expects.
    #[serde(default, skip_serializing_if = "is_none")]
    pub answers: u64,
    /// Whether a socket of the namespace has this port, so that answers may come to it; `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<bool>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_none(count: &u64) -> bool {
    *count == 0
}

impl DroppedPort {
    /// What the port is called.
    pub fn name(&self) -> String {
        format!("{} port {}", crate::model::protocol::name(self.proto), self.port)
    }
}

/// New flows to one port that were refused during the sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedPort {
    /// Inode of the namespace.
    pub netns: u32,
    /// L4 protocol number.
    pub proto: u8,
    /// The destination port.
    pub port: u16,
    /// How many.
    pub count: u64,
}

//! The traffic and the state of the table that cost is measured with.

use super::super::space::Space;
use super::super::state;
use super::super::traffic::{Flows, Sent, raw, udp};

/// One kind of traffic on one state of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// UDP; for each flow that comes, one goes by its timeout.
    UdpSteady,
    /// UDP; each flow evicts another.
    UdpFull,
    /// TCP; each flow is refused by its peer, whose RST removes it.
    TcpSteady,
    /// TCP; each flow is a SYN without an answer, which evicts another.
    TcpFull,
}

/// Where nobody listens on a guest.
const CLOSED: u16 = 7;
/// Where a TCP flow of [`Workload::TcpFull`] finds no answer.
const SILENT: u16 = 9;

/// The limit of a table with room: the kernel's own above 4 GB of memory, which guests do not have.
const ROOMY: u32 = 262_144;

/// The limit of a full table.
const FULL: u32 = 3000;

/// Room in the table, as an observer meets it that starts on a machine in good health.
pub(super) fn make_room() -> anyhow::Result<()> {
    state::set("nf_conntrack_max", ROOMY)
}

impl Workload {
    pub(super) const ALL: [Self; 4] = [Self::UdpSteady, Self::UdpFull, Self::TcpSteady, Self::TcpFull];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::UdpSteady => "udp-steady",
            Self::UdpFull => "udp-full",
            Self::TcpSteady => "tcp-steady",
            Self::TcpFull => "tcp-full",
        }
    }

    pub(super) fn is_full(self) -> bool {
        matches!(self, Self::UdpFull | Self::TcpFull)
    }

    /// Brings the kernel to the state, and the table to where it stays, by flows that it counts.
    pub(super) fn arrange(self, space: &Space, flows: &mut Flows) -> anyhow::Result<Sent> {
        state::fresh(space)?;
        match self {
            // A lookup removes what has expired in the bucket that it walks, so half as many entries as buckets
            // stay. Seconds would do the same after as many flows as a second holds.
            Self::UdpSteady => {
                state::buckets(4096)?;
                state::set("nf_conntrack_max", ROOMY)?;
                state::set("nf_conntrack_udp_timeout", 0)?;
            }
            Self::TcpSteady => {
                state::buckets(4096)?;
                state::set("nf_conntrack_max", ROOMY)?;
            }
            // Few enough buckets for early_drop, which looks at eight, to find somebody nearly always.
            Self::UdpFull | Self::TcpFull => {
                state::buckets(8192)?;
                state::set("nf_conntrack_max", FULL)?;
            }
        }
        if self == Self::TcpFull {
            let rules = format!(
                "{}table inet silent {{ chain in {{ type filter hook input priority 10; tcp dport {SILENT} drop; }}\n}}\n",
                state::RULES
            );
            state::rules(space, &rules)?;
        }
        self.run(flows, 2 * FULL)
    }

    /// `count` more flows, with numbers that were not used yet.
    pub(super) fn run(self, flows: &mut Flows, count: u32) -> anyhow::Result<Sent> {
        let these = Flows { count, ..*flows };
        flows.first += count;
        match self {
            Self::UdpSteady | Self::UdpFull => udp::send(these),
            Self::TcpSteady => raw::syn(these, CLOSED),
            Self::TcpFull => raw::syn(these, SILENT),
        }
    }
}

/// Fails where the table did not do what the workload says.
pub(super) fn verify(workload: Workload, sent: Sent, deletes: f64, early_drops: f64) -> anyhow::Result<()> {
    let Sent { passed, refused } = sent;
    anyhow::ensure!(refused * 50 <= passed, "{refused} flows were refused, {passed} passed");
    anyhow::ensure!((0.9..1.1).contains(&deletes), "{deletes:.2} removals for each flow, not one");
    let expected = if workload.is_full() { 0.9..1.1 } else { 0.0..0.001 };
    anyhow::ensure!(expected.contains(&early_drops), "{early_drops:.2} evictions for each flow");
    Ok(())
}

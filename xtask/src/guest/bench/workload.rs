//! The traffic and the state of the table that cost is measured with.

use std::ops::RangeInclusive;

use super::super::space::Space;
use super::super::state;
use super::super::traffic::tcp::{self, Held};
use super::super::traffic::{Flows, PORT, Sent, raw, udp};
use crate::bench::figure::Cost;

/// One kind of traffic on one state of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// UDP; for each flow that comes, one goes by its timeout.
    UdpSteady,
    /// The same to 20,000 destination ports.
    UdpPorts,
    /// UDP; each flow evicts another.
    UdpFull,
    /// UDP; half of the flows evict another, the others are refused.
    UdpHalf,
    /// UDP; each flow is refused: no entry of the full table can be evicted.
    UdpRefused,
    /// TCP; each flow is refused by its peer, whose RST removes it.
    TcpSteady,
    /// TCP; each flow is a SYN without an answer, which evicts another.
    TcpFull,
    /// TCP; half of the SYNs evict another flow, the others are refused.
    TcpHalf,
    /// TCP; each SYN is refused, as in [`Workload::UdpRefused`].
    TcpRefused,
}

/// The state of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Steady,
    Full,
    Half,
    Refused,
}

/// Where nobody listens on a guest.
const CLOSED: u16 = 7;
/// Where a TCP flow finds no answer.
const SILENT: u16 = 9;
/// Destination ports of [`Workload::UdpPorts`], from [`PORT`] on.
const PORTS: u16 = 20_000;

/// The source port: every observer is to meet the same flows.
const SOURCE: u16 = 5000;

/// The limit of a table with room: the kernel's own above 4 GB of memory, which guests do not have.
const ROOMY: u32 = 262_144;

/// The limit of a full table.
const FULL: u32 = 3000;

/// The limit of a table that refuses every flow.
const HELD: u32 = 10;

/// Room in the table, as an observer meets it that starts on a machine in good health.
pub(super) fn make_room() -> anyhow::Result<()> {
    state::set("nf_conntrack_max", ROOMY)
}

impl Workload {
    pub(super) const ALL: [Self; 9] = [
        Self::UdpSteady,
        Self::UdpPorts,
        Self::UdpFull,
        Self::UdpHalf,
        Self::UdpRefused,
        Self::TcpSteady,
        Self::TcpFull,
        Self::TcpHalf,
        Self::TcpRefused,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::UdpSteady => "udp-steady",
            Self::UdpPorts => "udp-ports",
            Self::UdpFull => "udp-full",
            Self::UdpHalf => "udp-half",
            Self::UdpRefused => "udp-refused",
            Self::TcpSteady => "tcp-steady",
            Self::TcpFull => "tcp-full",
            Self::TcpHalf => "tcp-half",
            Self::TcpRefused => "tcp-refused",
        }
    }

    fn state(self) -> State {
        match self {
            Self::UdpSteady | Self::UdpPorts | Self::TcpSteady => State::Steady,
            Self::UdpFull | Self::TcpFull => State::Full,
            Self::UdpHalf | Self::TcpHalf => State::Half,
            Self::UdpRefused | Self::TcpRefused => State::Refused,
        }
    }

    /// Packets that are dropped on their way in, where conntrack has seen them: nobody answers them.
    fn silenced(self) -> Option<String> {
        match self {
            Self::UdpPorts => Some(format!("udp dport >= {PORT}")),
            Self::TcpFull | Self::TcpHalf | Self::TcpRefused => Some(format!("tcp dport {SILENT}")),
            _ => None,
        }
    }

    /// Brings the kernel to the state, and the table to where it stays, by flows that it counts. `held` are the
    /// connections that no flow can evict.
    pub(super) fn arrange(self, space: &Space, flows: &mut Flows, held: &mut Held) -> anyhow::Result<Sent> {
        // Closed before their entries are flushed: later segments would be flows of their own.
        *held = Held::default();
        state::fresh(space)?;
        // Each observer meets the same flows.
        flows.first = 0;
        let mut sent = Sent::default();
        match self.state() {
            // A lookup removes what has expired in the bucket that it walks, so half as many entries as buckets
            // stay. Seconds would do the same after as many flows as a second holds.
            State::Steady => {
                state::buckets(4096)?;
                state::set("nf_conntrack_max", ROOMY)?;
                if self != Self::TcpSteady {
                    state::set("nf_conntrack_udp_timeout", 0)?;
                }
            }
            // Few enough buckets for early_drop, which looks at eight, to find somebody nearly always.
            State::Full => {
                state::buckets(8192)?;
                state::set("nf_conntrack_max", FULL)?;
            }
            // So many that it finds somebody half of the time.
            State::Half => {
                state::buckets(65_536)?;
                state::set("nf_conntrack_max", FULL)?;
            }
            State::Refused => {
                state::buckets(65_536)?;
                sent += tcp::hold(take(flows, HELD), held)?;
                state::set("nf_conntrack_max", HELD)?;
            }
        }
        if let Some(packets) = self.silenced() {
            let rules = format!(
                "{}table inet silent {{ chain in {{ type filter hook input priority 10; {packets} drop; }}\n}}\n",
                state::RULES
            );
            state::rules(space, &rules)?;
        }
        sent += self.run(flows, 2 * FULL)?;
        Ok(sent)
    }

    /// `count` more flows, with numbers that were not used yet in this state.
    pub(super) fn run(self, flows: &mut Flows, count: u32) -> anyhow::Result<Sent> {
        let these = take(flows, count);
        match self {
            Self::UdpPorts => udp::send_to_ports(these, SOURCE, PORTS),
            Self::UdpSteady | Self::UdpFull | Self::UdpHalf | Self::UdpRefused => {
                udp::send_from(these, SOURCE)
            }
            Self::TcpSteady => raw::syn(these, CLOSED),
            Self::TcpFull | Self::TcpHalf | Self::TcpRefused => raw::syn(these, SILENT),
        }
    }
}

/// The next `count` flows.
fn take(flows: &mut Flows, count: u32) -> Flows {
    let these = Flows { count, ..*flows };
    flows.first += count;
    these
}

/// Fails where the table did not do what the workload says.
pub(super) fn verify(workload: Workload, cost: &Cost) -> anyhow::Result<()> {
    const NONE: RangeInclusive<f64> = 0.0..=0.001;
    const FEW: RangeInclusive<f64> = 0.0..=1.0 / 51.0;
    const HALF: RangeInclusive<f64> = 0.35..=0.65;
    const EACH: RangeInclusive<f64> = 0.9..=1.1;
    const ALL: RangeInclusive<f64> = 0.999..=1.0;
    let (refusals, removals, evictions) = match workload.state() {
        State::Steady => (FEW, EACH, NONE),
        State::Full => (FEW, EACH, EACH),
        State::Half => (HALF, HALF, HALF),
        State::Refused => (ALL, NONE, NONE),
    };
    for (what, each, expected) in [
        ("refusals", cost.refusals, refusals),
        ("removals", cost.deletes, removals),
        ("evictions", cost.early_drops, evictions),
    ] {
        anyhow::ensure!(expected.contains(&each), "{each:.3} {what} for each flow, not {expected:?}");
    }
    Ok(())
}

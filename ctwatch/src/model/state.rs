//! What an entry's protocol tracker says of its flow, and what the answers say where there is no tracker with states.

use ctwatch_ebpf::loss;

use super::table::status;

/// A state, by the name that procfs and `conntrack` write. Trackers share names and not numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the kernel's own names; `name` spells them")]
pub enum State {
    /// No state tracked, and no answer seen.
    Unreplied,
    /// No state tracked; an answer was seen, and not enough for [`State::Assured`].
    Replied,
    /// No state tracked; `early_drop` passes it by.
    Assured,
    None,
    SynSent,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    SynSent2,
    Closed,
    CookieWait,
    CookieEchoed,
    ShutdownSent,
    ShutdownRecd,
    ShutdownAckSent,
    HeartbeatSent,
    Request,
    Respond,
    Partopen,
    Open,
    Closereq,
    Closing,
    Timewait,
    Ignore,
    Invalid,
    /// A number that no kernel we know of gives.
    Unknown,
}

/// `TCP_CONNTRACK_…` in their order.
const TCP: [State; 10] = [
    State::None,
    State::SynSent,
    State::SynRecv,
    State::Established,
    State::FinWait,
    State::CloseWait,
    State::LastAck,
    State::TimeWait,
    State::Close,
    State::SynSent2,
];

/// `SCTP_CONNTRACK_…`, without the two that 5.19 to 6.1 had at the end for a while.
const SCTP: [State; 9] = [
    State::None,
    State::Closed,
    State::CookieWait,
    State::CookieEchoed,
    State::Established,
    State::ShutdownSent,
    State::ShutdownRecd,
    State::ShutdownAckSent,
    State::HeartbeatSent,
];

/// `CT_DCCP_…`, up to 6.16.
const DCCP: [State; 10] = [
    State::None,
    State::Request,
    State::Respond,
    State::Partopen,
    State::Open,
    State::Closereq,
    State::Closing,
    State::Timewait,
    State::Ignore,
    State::Invalid,
];

/// The states of a protocol's tracker, in the order of their numbers.
const fn states(proto: u8) -> &'static [State] {
    match proto {
        6 => &TCP,
        33 => &DCCP,
        132 => &SCTP,
        _ => &[],
    }
}

impl State {
    /// The state behind a tracker's number.
    pub fn tracked(proto: u8, number: u8) -> Self {
        states(proto).get(usize::from(number)).copied().unwrap_or(Self::Unknown)
    }

    /// The number behind a state's name.
    pub fn number(proto: u8, name: &str) -> Option<u8> {
        states(proto).iter().position(|state| state.name() == name).and_then(|at| u8::try_from(at).ok())
    }

    /// The state of an entry with this tracker's number, where it has one, and these status bits.
    pub fn of(tuple: &loss::Tuple, number: Option<u8>, bits: u32) -> Self {
        match number {
            Some(number) => Self::tracked(tuple.proto, number),
            None if bits & status::ASSURED != 0 => Self::Assured,
            None if bits & status::SEEN_REPLY != 0 => Self::Replied,
            None => Self::Unreplied,
        }
    }

    /// As procfs and `conntrack` spell it; those without a tracker in lower case, as ctwatch does everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
            Self::Assured => "assured",
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSent2 => "SYN_SENT2",
            Self::Closed => "CLOSED",
            Self::CookieWait => "COOKIE_WAIT",
            Self::CookieEchoed => "COOKIE_ECHOED",
            Self::ShutdownSent => "SHUTDOWN_SENT",
            Self::ShutdownRecd => "SHUTDOWN_RECD",
            Self::ShutdownAckSent => "SHUTDOWN_ACK_SENT",
            Self::HeartbeatSent => "HEARTBEAT_SENT",
            Self::Request => "REQUEST",
            Self::Respond => "RESPOND",
            Self::Partopen => "PARTOPEN",
            Self::Open => "OPEN",
            Self::Closereq => "CLOSEREQ",
            Self::Closing => "CLOSING",
            Self::Timewait => "TIMEWAIT",
            Self::Ignore => "IGNORE",
            Self::Invalid => "INVALID",
            Self::Unknown => "UNKNOWN",
        }
    }
}

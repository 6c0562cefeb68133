//! The timeouts that matter, and the shorter values that are known to be safe enough to propose.

/// One timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// L4 protocol number.
    pub proto: u8,
    /// State as in [`super::facts::Group`].
    pub state: &'static str,
    /// Sysctl without its prefix `nf_conntrack_`.
    pub sysctl: &'static str,
    /// What to set instead.
    pub proposed: u64,
    /// What the shorter value may break.
    pub price: &'static str,
}

const UDP_PRICE: &str = "a UDP peer that is silent for longer starts anew: behind NAT it may get another port, and its answers \
                         may no longer count as established";
const OPENING_PRICE: &str = "a handshake slower than this is not recognised as one";
const CLOSING_PRICE: &str =
    "none known: late duplicates of a closed connection become a new entry or invalid";

const ECHO_PRICE: &str = "an echo answered later than this counts as new";
const TUNNEL_PRICE: &str =
    "a tunnel or association that is silent for longer starts anew, and stateful rules see it as new";
/// Protocols that have no tracker of their own share one timeout.
const OTHER: u8 = 255;
/// Those that have one, on some kernel from 5.10 to 7.3.
const TRACKED: [u8; 8] = [1, 6, 17, 33, 47, 58, 132, 136];

/// Every timeout that doctor may propose to change.
pub const TIMEOUTS: [Timeout; 18] = [
    Timeout {
        proto: 6,
        state: "ESTABLISHED",
        sysctl: "tcp_timeout_established",
        // RFC 5382 asks NATs for two hours and four minutes at least, just above TCP keepalive's two hours.
        proposed: 7440,
        price: "a TCP connection silent for longer than two hours, without keepalive, is forgotten: behind NAT or a stateful \
                firewall it then hangs",
    },
    Timeout {
        proto: 6,
        state: "SYN_SENT",
        sysctl: "tcp_timeout_syn_sent",
        proposed: 30,
        price: OPENING_PRICE,
    },
    Timeout {
        proto: 6,
        state: "SYN_RECV",
        sysctl: "tcp_timeout_syn_recv",
        proposed: 30,
        price: OPENING_PRICE,
    },
    Timeout {
        proto: 6,
        state: "TIME_WAIT",
        sysctl: "tcp_timeout_time_wait",
        proposed: 30,
        price: CLOSING_PRICE,
    },
    Timeout {
        proto: 6,
        state: "FIN_WAIT",
        sysctl: "tcp_timeout_fin_wait",
        proposed: 30,
        price: CLOSING_PRICE,
    },
    Timeout {
        proto: 6,
        state: "CLOSE_WAIT",
        sysctl: "tcp_timeout_close_wait",
        proposed: 30,
        price: CLOSING_PRICE,
    },
    Timeout { proto: 17, state: "unreplied", sysctl: "udp_timeout", proposed: 10, price: UDP_PRICE },
    Timeout { proto: 17, state: "replied", sysctl: "udp_timeout", proposed: 10, price: UDP_PRICE },
    Timeout { proto: 17, state: "assured", sysctl: "udp_timeout_stream", proposed: 60, price: UDP_PRICE },
    Timeout { proto: 1, state: "unreplied", sysctl: "icmp_timeout", proposed: 10, price: ECHO_PRICE },
    Timeout { proto: 58, state: "unreplied", sysctl: "icmpv6_timeout", proposed: 10, price: ECHO_PRICE },
    Timeout { proto: 1, state: "replied", sysctl: "icmp_timeout", proposed: 10, price: ECHO_PRICE },
    Timeout { proto: 58, state: "replied", sysctl: "icmpv6_timeout", proposed: 10, price: ECHO_PRICE },
    Timeout { proto: 47, state: "unreplied", sysctl: "gre_timeout", proposed: 10, price: TUNNEL_PRICE },
    Timeout { proto: 47, state: "replied", sysctl: "gre_timeout", proposed: 10, price: TUNNEL_PRICE },
    Timeout { proto: 47, state: "assured", sysctl: "gre_timeout_stream", proposed: 60, price: TUNNEL_PRICE },
    Timeout {
        proto: 132,
        state: "ESTABLISHED",
        sysctl: "sctp_timeout_established",
        proposed: 7440,
        price: TUNNEL_PRICE,
    },
    Timeout { proto: OTHER, state: "any", sysctl: "generic_timeout", proposed: 60, price: TUNNEL_PRICE },
];

/// The timeout that governs a protocol's state.
pub fn of(proto: u8, state: &str) -> Option<&'static Timeout> {
    let own = TIMEOUTS.iter().find(|timeout| timeout.proto == proto && timeout.state == state);
    own.or_else(|| TIMEOUTS.iter().find(|timeout| timeout.proto == OTHER && !TRACKED.contains(&proto)))
}

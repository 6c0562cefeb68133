//! What the kernel's words about an invalid packet mean.
//!
//! The trackers of connection tracking give a reason as a format string (`nf_ct_l4proto_log_invalid`,
//! `nf_l4proto_log_invalid`; 5.10 to 7.3). Some are about packets that are accepted all the same.

use ctwatch_ebpf::Event;
use ctwatch_ebpf::invalid::{ACCEPTED, UNSAID_OF_ICMP_ERROR};

/// What words mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The packet is invalid, and this is the event.
    Invalid(Event),
    /// The packet is accepted, or its being invalid was said before.
    Accepted,
}

/// A part of a text, and what a text with it means. The first that fits holds.
const PARTS: [(&str, Meaning); 29] = {
    use Event::{
        InvalidBadChecksum, InvalidBadState, InvalidMalformed, InvalidOutOfWindow, InvalidUnrelated,
    };
    use Meaning::{Accepted, Invalid};
    [
        // nf_conntrack_tcp_packet: NF_ACCEPT after TCP_CONNTRACK_IGNORE and after a challenge ACK (5.10 to 7.3);
        // tcp_in_window: NFCT_TCP_IGNORE (since 6.1).
        ("ignored", Accepted),
        ("SEQ is under lower bound", Accepted),
        ("more than expected", Accepted),
        // nf_tcp_handle_invalid (since 6.1): a second remark about a packet.
        ("lower timeout", Accepted),
        ("lowered timeout", Accepted),
        // tcp_in_window: `SEQ is over the upper bound` and the like (5.10), `SEQ is over upper bound %u` (since 6.1).
        ("bound", Invalid(InvalidOutOfWindow)),
        // nf_conntrack_tcp_packet: the RST's sequence number lies before what was acknowledged.
        ("invalid rst", Invalid(InvalidOutOfWindow)),
        // udplite_error, dccp_error: no sum is wrong.
        ("checksum coverage", Invalid(InvalidMalformed)),
        ("checksum missing", Invalid(InvalidMalformed)),
        // tcp_error, udp_error, dccp_error; nf_conntrack_icmpv4_error, nf_conntrack_icmpv6_error; sctp_error.
        ("checksum", Invalid(InvalidBadChecksum)),
        ("bad CRC", Invalid(InvalidBadChecksum)),
        // nf_conntrack_inet_error: an ICMP error for somebody else than the flow's sender.
        ("outer daddr", Invalid(InvalidUnrelated)),
        // tcp_error, udp_error, icmp, sctp_error, dccp_error; nf_conntrack_icmpv6_redirect.
        ("truncated", Invalid(InvalidMalformed)),
        ("malformed", Invalid(InvalidMalformed)),
        ("short packet", Invalid(InvalidMalformed)),
        ("short redirect", Invalid(InvalidMalformed)),
        ("redirect without options", Invalid(InvalidMalformed)),
        ("for redirect", Invalid(InvalidMalformed)),
        ("flag combination", Invalid(InvalidMalformed)),
        ("invalid icmp type", Invalid(InvalidMalformed)),
        ("failed to read header", Invalid(InvalidMalformed)),
        ("reserved packet type", Invalid(InvalidMalformed)),
        ("lacks 48bit", Invalid(InvalidMalformed)),
        // do_basic_checks of SCTP (since 6.1).
        ("failed. chunk", Invalid(InvalidMalformed)),
        // nf_conntrack_tcp_packet (5.10: `invalid state`), tcp_new (6.12), nf_conntrack_sctp_packet, dccp_new,
        // nf_conntrack_dccp_packet.
        ("state", Invalid(InvalidBadState)),
        ("invalid new", Invalid(InvalidBadState)),
        ("verification tag", Invalid(InvalidBadState)),
        ("Verification tag", Invalid(InvalidBadState)),
        ("not picking up", Invalid(InvalidBadState)),
    ]
};

/// What a text of the kernel's means. One that nobody knows is a reason of its own.
pub fn meaning(text: &str) -> Meaning {
    if ACCEPTED.contains(&text) {
        return Meaning::Accepted;
    }
    // tcp_in_window of 5.10, where none of its four bounds explains the verdict.
    if text == "BUG" {
        return Meaning::Invalid(Event::InvalidOutOfWindow);
    }
    let found = PARTS.iter().find(|(part, _)| text.contains(part));
    found.map_or(Meaning::Invalid(Event::InvalidOther), |(_, meaning)| *meaning)
}

/// The event of a packet about which the kernel says nothing, by what stands for its words.
pub const fn unsaid(words: u64) -> Event {
    if words == UNSAID_OF_ICMP_ERROR { Event::InvalidUnrelated } else { Event::InvalidOther }
}

/// A text of the kernel's as the bytes of a buffer hold it, up to the first zero; `None` where there is none.
pub fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// The words for people: where the kernel puts a number, an `N`, where it puts anything else, an `X`.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.trim();
    while let Some((before, after)) = rest.split_once('%') {
        out += before;
        let length = match after.as_bytes() {
            // A pointer's extensions are letters and digits.
            [b'p', more @ ..] => 1 + more.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count(),
            [_, ..] if after.is_char_boundary(1) => 1,
            _ => 0,
        };
        out.push(if after.starts_with(['u', 'd', 'i', 'x']) { 'N' } else { 'X' });
        rest = &after[length..];
    }
    out + rest
}

#[cfg(test)]
#[path = "invalid_tests.rs"]
mod tests;

//! Packets that conntrack could not assign to a flow: how the programs count them and hand them over.

use crate::loss::Traced;

/// How much of the kernel's words is kept, a zero at the end included. The longest have 67 bytes (5.10 to 7.3).
pub const WORDS: usize = 80;

/// Stands for words where the kernel said none: only the return of `nf_conntrack_in` showed the packet.
pub const UNSAID: u64 = 0;
/// The same for an ICMP error.
pub const UNSAID_OF_ICMP_ERROR: u64 = 1;

/// Whose invalid packets a count is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Key {
    /// [`crate::FlowType::pack`]. Family and protocol are 0 where the user's filter leaves the flow out: such packets
    /// are counted for the comparison with the kernel's own counter.
    pub flow: u64,
    /// Where the kernel's words lie in its memory, or [`UNSAID`] or [`UNSAID_OF_ICMP_ERROR`].
    pub words: u64,
}

/// What lies at an address that [`Key::words`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Words {
    /// The text, ended by a zero.
    pub text: [u8; WORDS],
    /// 1 where it is about packets that are accepted all the same ([`is_accepted`]).
    pub accepted: u64,
}

/// What the kernel says about packets that it accepts all the same, as it says it on the kernels of the matrix (5.10 to
/// 7.3): `nf_conntrack_tcp_packet`, `tcp_in_window` and `nf_tcp_handle_invalid` of nf_conntrack_proto_tcp.c,
/// `nf_conntrack_dccp_packet` of nf_conntrack_proto_dccp.c. The programs know them by [`hash`].
pub const ACCEPTED: [&str; 10] = [
    // 5.10: NF_ACCEPT after TCP_CONNTRACK_IGNORE.
    "invalid packet ignored in state %s ",
    // The same since 5.17.
    "packet (index %d) in dir %d ignored, state %s",
    "challenge-ack ignored",
    // NFCT_TCP_IGNORE, since 6.1.
    "SEQ is under lower bound %u (already ACKed data retransmitted)",
    "ignored ACK under lower bound %u (possible overly delayed)",
    "%u bytes more than expected",
    // A second remark about a packet whose first one is counted.
    "packet (index %d, dir %d) response for index %d lower timeout to %u",
    "lowered timeout to UNACK",
    // DCCP, gone since 6.16.
    "invalid packet",
    "invalid packet ignored",
];

const HASHES: [u64; ACCEPTED.len()] = {
    let mut hashes = [0; ACCEPTED.len()];
    let mut at = 0;
    while at < hashes.len() {
        hashes[at] = hash(ACCEPTED[at].as_bytes());
        at += 1;
    }
    hashes
};

/// FNV-1a over a text, up to its end or the first zero.
#[inline(always)]
pub const fn hash(text: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < text.len() && at < WORDS {
        if text[at] == 0 {
            break;
        }
        hash = (hash ^ text[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// Whether the text with this hash is one of [`ACCEPTED`].
#[inline(always)]
pub fn is_accepted(hash: u64) -> bool {
    HASHES.contains(&hash)
}

/// An invalid packet in the ring buffer. It is longer than a [`Traced`], which userspace knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TracedInvalid {
    /// `tuple` is the packet's own, `newcomer` the original one of the flow that it was taken for, if any; `reply` and
    /// `mark` are that flow's.
    pub traced: Traced,
    /// The kernel's words, all zero where it said none.
    pub words: [u8; WORDS],
    /// What showed it: [`Key::words`].
    pub shown_by: u64,
    /// 1 where `tcp` could be read.
    pub has_tcp: u64,
    /// The beginning of a TCP header as it lies in the packet.
    pub tcp: [u8; 16],
}

const _: () = assert!(size_of::<Key>() == 16);
const _: () = assert!(size_of::<Words>() == 88);
const _: () = assert!(size_of::<TracedInvalid>() == 288);

#[cfg(feature = "user")]
// SAFETY: repr(C) of integers without padding, and every bit pattern is a value.
unsafe impl aya::Pod for Key {}

#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_known_by_its_hash_whatever_follows_its_end() {
        let mut bytes = [7; WORDS];
        bytes[..22].copy_from_slice(b"challenge-ack ignored\0");
        assert_eq!(hash(&bytes), hash(b"challenge-ack ignored"));
        assert!(is_accepted(hash(&bytes)) && !is_accepted(hash(b"invalid rst")) && !is_accepted(hash(b"")));
        for text in ACCEPTED {
            assert!(text.len() < WORDS && is_accepted(hash(text.as_bytes())), "{text}");
        }
    }
}

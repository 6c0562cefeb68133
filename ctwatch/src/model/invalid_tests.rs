use proptest::prelude::*;

use super::*;
use Event::{
    InvalidBadChecksum, InvalidBadState, InvalidMalformed, InvalidOther, InvalidOutOfWindow, InvalidUnrelated,
};

/// Every text that the modules of Debian's 5.10, 6.1, 6.12 and 7.3 can say about an invalid packet.
const INVALID: [(&str, Event); 37] = [
    // 5.10
    ("SEQ is over the upper bound (over the window of the receiver)", InvalidOutOfWindow),
    ("SEQ is under the lower bound (already ACKed data retransmitted)", InvalidOutOfWindow),
    ("ACK is over the upper bound (ACKed data not seen yet)", InvalidOutOfWindow),
    ("ACK is under the lower bound (possible overly delayed ACK)", InvalidOutOfWindow),
    ("BUG", InvalidOutOfWindow),
    ("invalid state", InvalidBadState),
    ("Verification tag check failed", InvalidBadState),
    // 6.1 and later
    ("SEQ is over upper bound %u (over the window of the receiver)", InvalidOutOfWindow),
    ("ACK is over upper bound %u (ACKed data not seen yet)", InvalidOutOfWindow),
    ("packet (index %d) in dir %d invalid, state %s", InvalidBadState),
    ("%s failed. chunk num %d, type %d, len %d flag %d\n", InvalidMalformed),
    ("verification tag check failed %x vs %x for dir %d", InvalidBadState),
    ("verification tag check failed %x vs (%x: dir %d) and (%x: dir %d)", InvalidBadState),
    ("Invalid, old_state %d, dir %d, type %d", InvalidBadState),
    ("invalid new", InvalidBadState),
    // All
    ("invalid rst", InvalidOutOfWindow),
    ("truncated packet", InvalidMalformed),
    ("truncated/malformed packet", InvalidMalformed),
    ("short packet", InvalidMalformed),
    ("bad checksum", InvalidBadChecksum),
    ("bad hw icmp checksum", InvalidBadChecksum),
    ("ICMPv6 checksum failed", InvalidBadChecksum),
    ("invalid checksum coverage", InvalidMalformed),
    ("checksum missing", InvalidMalformed),
    ("invalid tcp flag combination", InvalidMalformed),
    ("invalid icmp type", InvalidMalformed),
    ("short redirect", InvalidMalformed),
    ("redirect without options", InvalidMalformed),
    ("invalid saddr or hoplimit for redirect", InvalidMalformed),
    ("outer daddr %pI4 != inner %pI4", InvalidUnrelated),
    ("outer daddr %pI6 != inner %pI6", InvalidUnrelated),
    ("nf_ct_sctp: bad CRC ", InvalidBadChecksum),
    ("nf_ct_sctp: failed to read header ", InvalidMalformed),
    ("nf_ct_dccp: bad checksum coverage ", InvalidMalformed),
    ("nf_ct_dccp: reserved packet type ", InvalidMalformed),
    ("not picking up existing connection ", InvalidBadState),
    ("invalid state transition ", InvalidBadState),
];

#[test]
fn every_text_of_the_matrix_has_its_reason() {
    for (text, event) in INVALID {
        assert_eq!(meaning(text), Meaning::Invalid(event), "{text}");
    }
    assert_eq!(meaning("a reason of a later kernel"), Meaning::Invalid(InvalidOther));
}

#[test]
fn what_is_accepted_is_no_invalid_packet_and_both_halves_agree() {
    for text in ACCEPTED {
        assert_eq!(meaning(text), Meaning::Accepted, "{text}");
    }
    // Nearly the words of an older kernel, which dropped such a packet.
    assert_ne!(meaning("invalid packet "), Meaning::Accepted);
    for text in ["ignored ACK of a later kernel", "packet (index %d) ignored", "lowered timeout to %u"] {
        assert_eq!(meaning(text), Meaning::Accepted, "{text}");
    }
}

#[test]
fn where_nothing_is_said_only_icmp_errors_are_known() {
    assert_eq!(unsaid(0), InvalidOther);
    assert_eq!(unsaid(1), InvalidUnrelated);
}

#[test]
fn words_have_letters_where_the_kernel_has_values() {
    for (text, expected) in [
        ("SEQ is over upper bound %u (over the window)", "SEQ is over upper bound N (over the window)"),
        ("packet (index %d) in dir %d invalid, state %s", "packet (index N) in dir N invalid, state X"),
        ("outer daddr %pI4 != inner %pI6", "outer daddr X != inner X"),
        ("nf_ct_sctp: bad CRC ", "nf_ct_sctp: bad CRC"),
        ("100%", "100X"),
        ("%é", "Xé"),
        ("", ""),
    ] {
        assert_eq!(shown(text), expected);
    }
}

#[test]
fn a_text_ends_at_its_zero() {
    assert_eq!(text(b"invalid rst\0garbage").as_deref(), Some("invalid rst"));
    assert_eq!(text(b"no end").as_deref(), Some("no end"));
    assert_eq!(text(&[0; 8]), None);
    assert_eq!(text(&[]), None);
}

proptest! {
    #[test]
    fn any_bytes_have_a_meaning(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let text = text(&bytes).unwrap_or_default();
        let _ = meaning(&text);
        prop_assert!(!shown(&text).contains('%'));
    }
}

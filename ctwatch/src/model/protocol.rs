//! L4 protocols by name and number (IANA's names, as `/etc/protocols` and the kernel write them).

use std::borrow::Cow;

const NAMES: [(u8, &str); 18] = [
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipip"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "icmpv6"),
    (89, "ospf"),
    (103, "pim"),
    (108, "ipcomp"),
    (112, "vrrp"),
    (115, "l2tp"),
    (132, "sctp"),
    (136, "udplite"),
];

/// Other spellings that users bring from `conntrack`, `nft` and `/etc/protocols`.
const ALIASES: [(&str, u8); 3] = [("ipv6-icmp", 58), ("icmp6", 58), ("ipencap", 4)];

/// The name of a protocol number, or the number itself where it has no common name.
pub fn name(number: u8) -> Cow<'static, str> {
    NAMES
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| number.to_string().into(), |(_, name)| (*name).into())
}

/// The number behind a name (in any case) or a decimal number.
pub fn number(text: &str) -> Option<u8> {
    let text = text.to_ascii_lowercase();
    // `u8::from_str` takes "+6" too, which nobody means.
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return text.parse().ok();
    }
    NAMES
        .iter()
        .find(|(_, name)| *name == text)
        .map(|(number, _)| *number)
        .or_else(|| ALIASES.iter().find(|(alias, _)| *alias == text).map(|(_, number)| *number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_its_name() {
        for proto in 0..=u8::MAX {
            assert_eq!(number(&name(proto)), Some(proto));
            assert_eq!(number(&proto.to_string()), Some(proto));
        }
    }

    #[test]
    fn numbers_match_iana() {
        for (text, proto) in [
            ("tcp", 6),
            ("UDP", 17),
            ("icmp", 1),
            ("icmpv6", 58),
            ("ipv6-icmp", 58),
            ("sctp", 132),
            ("dccp", 33),
            ("udplite", 136),
            ("gre", 47),
            ("esp", 50),
            ("ah", 51),
            ("igmp", 2),
        ] {
            assert_eq!(number(text), Some(proto), "{text}");
        }
        assert_eq!(name(253), "253");
    }

    #[test]
    fn nonsense_has_no_number() {
        for text in ["", "256", "-1", "+6", "6 ", "tcpp", "0x6", "overflow"] {
            assert_eq!(number(text), None, "{text:?}");
        }
    }
}

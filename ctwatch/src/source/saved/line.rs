//! One line of `conntrack -L`, plain or extended, or of `/proc/net/nf_conntrack`.
//!
//! Both write words apart by spaces: `[ipv4 2] tcp 6 [431999] [ESTABLISHED] src=… dst=… sport=… dport=… [packets=… bytes=…]
//! [UNREPLIED] src=… … [ASSURED] mark=… zone=… use=…` (`ct_seq_show`, 5.10 to 7.3; `__snprintf_conntrack_default` of
//! libnetfilter_conntrack 1.1). Words beyond these are passed by: labels, ids, times, security contexts.

use super::parts::{Broken, Parts, number};
use crate::model::table::{Entry, status};

/// The entry of a line.
pub(super) fn parse(line: &str) -> Result<Entry, Broken> {
    let mut words = line.split_ascii_whitespace().peekable();
    if matches!(words.peek(), Some(&("ipv4" | "ipv6"))) {
        words.next();
        words.next();
    }
    words.next();
    let proto = words.next().and_then(number).ok_or(Broken::Protocol)?;
    if words.peek().is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_digit())) {
        words.next();
    }
    let mut parts = Parts::of(proto);
    if let Some(state) = words.next_if(|word| !word.contains('=') && !word.starts_with('[')) {
        parts.state(state);
    }
    parts.status = status::SEEN_REPLY;
    for word in words {
        match word {
            "[UNREPLIED]" => parts.status &= !status::SEEN_REPLY,
            "[ASSURED]" => parts.status |= status::ASSURED,
            "[OFFLOAD]" => parts.status |= status::OFFLOAD,
            "[HW_OFFLOAD]" => parts.status |= status::HW_OFFLOAD,
            _ => {
                if let Some((name, value)) = word.split_once('=') {
                    if name == "src" {
                        parts.next_direction()?;
                    }
                    parts.set(name, value)?;
                }
            }
        }
    }
    parts.entry()
}

/// Whether a line that ends without a line feed has all that is read of it: `use=` stands behind it.
pub(super) fn is_whole(line: &str) -> bool {
    line.contains(" use=")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ctwatch_ebpf::{AF_INET, AF_INET6};

    use super::*;
    use crate::model::entry::{Nat, Offload};
    use crate::model::filter::ip;
    use crate::model::state::State;
    use crate::model::table::Traffic;

    fn ends(tuple: &ctwatch_ebpf::loss::Tuple) -> (IpAddr, u16, IpAddr, u16) {
        let port = u16::from_be_bytes;
        let at = |words| ip(tuple.family, words).unwrap();
        (at(tuple.src), port(tuple.src_part), at(tuple.dst), port(tuple.dst_part))
    }

    #[test]
    fn a_translated_and_accounted_connection() {
        let line = "tcp      6 431999 ESTABLISHED src=192.0.2.8 dst=198.51.100.1 sport=40000 dport=443 packets=7 bytes=900 \
                    src=10.9.0.77 dst=192.0.2.8 sport=8443 dport=40000 packets=5 bytes=4000 [ASSURED] mark=16385 \
                    secctx=system_u:object_r:unlabeled_t:s0 zone=9 delta-time=3 use=1 id=7 labels=a,b";
        for line in [line.to_owned(), format!("ipv4     2 {line}")] {
            let entry = parse(&line).unwrap();
            let (client, public) = ("192.0.2.8".parse().unwrap(), "198.51.100.1".parse().unwrap());
            let server = "10.9.0.77".parse().unwrap();
            assert_eq!(ends(&entry.tuple), (client, 40000, public, 443));
            assert_eq!(ends(&entry.reply.unwrap()), (server, 8443, client, 40000));
            assert_eq!((entry.tuple.family, entry.tuple.proto, entry.tuple.zone), (AF_INET, 6, 9));
            assert_eq!((entry.nat(), entry.mark), (Nat::Dnat, 0x4001));
            assert_eq!(entry.traffic, Some(Traffic { packets: 12, bytes: 4900 }));
            assert_eq!(State::of(&entry.tuple, entry.state, entry.status), State::Established);
            assert_eq!(entry.status, status::CONFIRMED | status::SEEN_REPLY | status::ASSURED);
        }
    }

    #[test]
    fn entries_without_states_ports_or_timeouts() {
        let udp = parse(
            "ipv6     10 udp      17 29 src=fd00:0000:0000:0000:0000:0000:0000:0001 dst=fd00::2 sport=5 dport=6881 \
             [UNREPLIED] src=fd00::2 dst=fd00::1 sport=6881 dport=5 mark=0 zone=0 use=2",
        )
        .unwrap();
        assert_eq!((udp.tuple.family, udp.status, udp.traffic), (AF_INET6, status::CONFIRMED, None));
        assert_eq!((udp.nat(), State::of(&udp.tuple, udp.state, udp.status)), (Nat::None, State::Unreplied));
        let echo = parse(
            "icmp     1 29 src=1.1.1.1 dst=2.2.2.2 type=8 code=0 id=7 src=2.2.2.2 dst=1.1.1.1 type=0 code=0 id=7 mark=0 use=1",
        )
        .unwrap();
        assert_eq!((echo.tuple.src_part, echo.tuple.dst_part, echo.nat()), ([0, 7], [8, 0], Nat::None));
        let offloaded = parse(
            "ipv4     2 tcp      6 src=1.1.1.1 dst=2.2.2.2 sport=5 dport=6 src=2.2.2.2 dst=1.1.1.1 sport=6 dport=5 [OFFLOAD] \
             mark=0 use=3",
        )
        .unwrap();
        assert_eq!((offloaded.offload(), offloaded.state), (Offload::Software, None));
        let gre = parse(
            "gre      47 29 timeout=30, stream_timeout=180 src=1.1.1.1 dst=2.2.2.2 srckey=0x10 dstkey=0x20 src=2.2.2.2 \
             dst=1.1.1.1 srckey=0x20 dstkey=0x10 [ASSURED] mark=0 use=1",
        )
        .unwrap();
        assert_eq!((gre.tuple.src_part, gre.nat()), ([0, 0x10], Nat::None));
        let unknown =
            parse("unknown  253 599 src=1.1.1.1 dst=2.2.2.2 src=2.2.2.2 dst=1.1.1.1 use=1").unwrap();
        assert_eq!((unknown.tuple.proto, unknown.nat()), (253, Nat::None));
    }

    #[test]
    fn zones_of_one_direction() {
        let line = |zone: &str| {
            format!(
                "udp 17 29 src=1.1.1.1 dst=2.2.2.2 sport=1 dport=2 {zone} src=2.2.2.2 dst=1.1.1.1 sport=2 dport=1 use=1"
            )
        };
        for zone in ["zone-orig=9", "zone-reply=9", "zone=9"] {
            assert_eq!(parse(&line(zone)).unwrap().tuple.zone, 9, "{zone}");
        }
    }

    #[test]
    fn a_state_of_a_later_kernel_is_unknown_and_not_left_out() {
        let entry = parse(
            "tcp 6 9 NEWSTATE src=1.1.1.1 dst=2.2.2.2 sport=1 dport=2 src=2.2.2.2 dst=1.1.1.1 sport=2 dport=1 use=1",
        );
        let entry = entry.unwrap();
        assert_eq!(State::of(&entry.tuple, entry.state, entry.status), State::Unknown);
    }

    #[test]
    fn what_is_no_entry_says_why() {
        for (line, why) in [
            ("", Broken::Protocol),
            ("$ sudo conntrack -L", Broken::Protocol),
            ("tcp 600 9 src=1.1.1.1 dst=2.2.2.2", Broken::Protocol),
            ("tcp 6 9 NONE src=1.1.1.1", Broken::Addresses),
            ("tcp 6 9 NONE src=1.1.1 dst=2.2.2.2", Broken::Address),
            ("tcp 6 9 NONE src=1.1.1.1 dst=::1 sport=1 dport=2", Broken::Families),
            ("tcp 6 9 NONE src=1.1.1.1 dst=2.2.2.2 sport=1 dport=65536", Broken::Number),
            ("unknown 253 9 src=1.1.1.1 dst=2.2.2.2 src=::1 dst=::2", Broken::Families),
            ("tcp 6 9 NONE src=1.1.1.1 dst=2.2.2.2 src=2.2.2.2 dst=1.1.1.1 src=3.3.3.3", Broken::Directions),
            ("tcp 6 9 NONE sport=1 src=1.1.1.1 dst=2.2.2.2 dport=2", Broken::Ports),
            ("tcp 6 9 NONE src=1.1.1.1 dst=2.2.2.2 mark=4294967296", Broken::Number),
            ("tcp 6 9 NONE src=1.1.1.1 dst=2.2.2.2 packets=-1", Broken::Number),
        ] {
            assert_eq!(parse(line), Err(why), "{line}");
        }
    }
}

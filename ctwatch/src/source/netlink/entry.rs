//! A table entry as ctnetlink writes it in the answer to a dump and in events.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ctwatch_ebpf::loss;

use super::message::{Attributes, Message};
use crate::model::filter;
pub use crate::model::table::status;

/// What tells flows of one protocol between two addresses apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum L4 {
    /// TCP, UDP, SCTP, DCCP, UDP-Lite; GRE's keys too.
    Ports {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Message type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier.
        id: u16,
    },
    /// A protocol without either.
    None,
}

/// One direction of a flow (`nf_conntrack_tuple`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// L4 protocol number.
    pub proto: u8,
    /// Ports or ICMP fields.
    pub l4: L4,
}

impl Tuple {
    /// As filters take it, in the default zone.
    pub fn for_filter(&self) -> loss::Tuple {
        let ports = match self.l4 {
            L4::Ports { src, dst } => Some((src, dst)),
            L4::Icmp { kind, code, id } => Some((id, u16::from_be_bytes([kind, code]))),
            L4::None => None,
        };
        filter::tuple(self.proto, self.src, self.dst, ports)
    }
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// The original direction, as the first packet came.
    pub original: Tuple,
    /// The direction of answers, which NAT makes different; `None` where the kernel left it out.
    pub reply: Option<Tuple>,
    /// `IPS_…` bits, see [`status`]; 0 where the kernel left them out.
    pub status: u32,
    /// Seconds left; `None` in a DESTROY of an entry that expired, and in all of them before 5.12.
    pub timeout: Option<u32>,
    /// State of TCP, SCTP or DCCP, as the kernel numbers each (`TCP_CONNTRACK_…`).
    pub state: Option<u8>,
    /// `ct mark`; `None` where it is 0 or the kernel has no marks.
    pub mark: Option<u32>,
    /// Its zone; 0 is the default one. A zone may hold for one direction alone.
    pub zone: u16,
    /// The kernel's name for this very entry: another one of the same tuple has another.
    pub id: Option<u32>,
    /// Packets of both directions, where accounting is on (`nf_conntrack_acct`).
    pub packets: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// When it began, nanoseconds since the Unix epoch, where `nf_conntrack_timestamp` is on.
    pub started_ns: Option<u64>,
}

impl Entry {
    /// One of which nothing is known but its original tuple.
    pub const fn of(family: u8, original: Tuple) -> Self {
        Self {
            family,
            original,
            reply: None,
            status: 0,
            timeout: None,
            state: None,
            mark: None,
            zone: 0,
            id: None,
            packets: None,
            bytes: None,
            started_ns: None,
        }
    }

    /// The entry in a [`super::message::CT_NEW`] or [`super::message::CT_DELETE`] message; `None` where it has no
    /// original tuple that can be read.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        let mut original = None;
        let mut reply = None;
        let (mut packets, mut bytes) = (None, None);
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let none = Tuple { src: nobody, dst: nobody, proto: 0, l4: L4::None };
        let mut rest = Self::of(message.family()?, none);
        for attribute in message.attributes() {
            match attribute.kind {
                cta::TUPLE_ORIG | cta::TUPLE_REPLY => {
                    let zone = attribute.nested().find(cta::TUPLE_ZONE).and_then(|zone| zone.u16());
                    rest.zone = zone.unwrap_or(rest.zone);
                    let parsed = tuple(attribute.nested());
                    if attribute.kind == cta::TUPLE_ORIG { original = parsed } else { reply = parsed }
                }
                cta::STATUS => rest.status = attribute.u32().unwrap_or(0),
                cta::PROTOINFO => rest.state = state(attribute.nested()),
                cta::TIMEOUT => rest.timeout = attribute.u32(),
                cta::MARK => rest.mark = attribute.u32().filter(|mark| *mark != 0),
                cta::COUNTERS_ORIG | cta::COUNTERS_REPLY => {
                    add(&mut packets, &attribute.nested(), cta::COUNTERS_PACKETS);
                    add(&mut bytes, &attribute.nested(), cta::COUNTERS_BYTES);
                }
                cta::ID => rest.id = attribute.u32(),
                cta::ZONE => rest.zone = attribute.u16().unwrap_or(rest.zone),
                cta::TIMESTAMP => rest.started_ns = attribute.nested().find(1).and_then(|start| start.u64()),
                _ => {}
            }
        }
        Some(Self { original: original?, reply, packets, bytes, ..rest })
    }
}

/// `CTA_…` of `linux/netfilter/nfnetlink_conntrack.h`.
pub(super) mod cta {
    pub(in super::super) const TUPLE_ORIG: u16 = 1;
    pub(in super::super) const TUPLE_REPLY: u16 = 2;
    pub(in super::super) const STATUS: u16 = 3;
    pub(in super::super) const PROTOINFO: u16 = 4;
    pub(in super::super) const TIMEOUT: u16 = 7;
    pub(in super::super) const MARK: u16 = 8;
    pub(in super::super) const COUNTERS_ORIG: u16 = 9;
    pub(in super::super) const COUNTERS_REPLY: u16 = 10;
    pub(in super::super) const ID: u16 = 12;
    pub(in super::super) const ZONE: u16 = 18;
    pub(in super::super) const TIMESTAMP: u16 = 20;
    /// In a tuple.
    pub(in super::super) const TUPLE_IP: u16 = 1;
    /// In a tuple.
    pub(in super::super) const TUPLE_PROTO: u16 = 2;
    /// In a tuple, where a zone holds for its direction alone.
    pub(in super::super) const TUPLE_ZONE: u16 = 3;
    /// In the counters of one direction.
    pub(in super::super) const COUNTERS_PACKETS: u16 = 1;
    /// In the counters of one direction.
    pub(in super::super) const COUNTERS_BYTES: u16 = 2;
    /// In a tuple's protocol part.
    pub(in super::super) const PROTO_NUM: u16 = 1;
}

/// Adds one direction's counter to the sum.
fn add(sum: &mut Option<u64>, counters: &Attributes<'_>, kind: u16) {
    if let Some(count) = counters.clone().find(kind).and_then(|count| count.u64()) {
        *sum = Some(count.saturating_add(sum.unwrap_or(0)));
    }
}

pub(super) fn tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let mut addresses = None;
    let mut protocol = None;
    for attribute in attributes {
        match attribute.kind {
            cta::TUPLE_IP => addresses = addresses_of(attribute.nested()),
            cta::TUPLE_PROTO => protocol = protocol_of(attribute.nested()),
            _ => {}
        }
    }
    let ((src, dst), (proto, l4)) = (addresses?, protocol?);
    Some(Tuple { src, dst, proto, l4 })
}

fn addresses_of(attributes: Attributes<'_>) -> Option<(IpAddr, IpAddr)> {
    let mut src = None;
    let mut dst = None;
    for attribute in attributes {
        let address = || match attribute.value.len() {
            4 => attribute.value.first_chunk::<4>().map(|bytes| IpAddr::from(Ipv4Addr::from(*bytes))),
            _ => attribute.value.first_chunk::<16>().map(|bytes| IpAddr::from(Ipv6Addr::from(*bytes))),
        };
        match attribute.kind {
            1 | 3 => src = address(),
            2 | 4 => dst = address(),
            _ => {}
        }
    }
    Some((src?, dst?))
}

fn protocol_of(attributes: Attributes<'_>) -> Option<(u8, L4)> {
    let mut number = None;
    let mut ports = (None, None);
    let mut icmp = (None, None, None);
    for attribute in attributes {
        match attribute.kind {
            cta::PROTO_NUM => number = attribute.u8(),
            2 => ports.0 = attribute.u16(),
            3 => ports.1 = attribute.u16(),
            4 | 7 => icmp.2 = attribute.u16(),
            5 | 8 => icmp.0 = attribute.u8(),
            6 | 9 => icmp.1 = attribute.u8(),
            _ => {}
        }
    }
    let l4 = match (ports, icmp) {
        ((Some(src), Some(dst)), _) => L4::Ports { src, dst },
        (_, (Some(kind), Some(code), id)) => L4::Icmp { kind, code, id: id.unwrap_or(0) },
        _ => L4::None,
    };
    Some((number?, l4))
}

/// Each protocol's nest begins with its state.
pub(super) fn state(mut attributes: Attributes<'_>) -> Option<u8> {
    attributes.next()?.nested().find(1)?.u8()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::build::{attribute, message, nest};
    use super::super::message::{CT_NEW, Messages};
    use super::*;

    fn v4(kind: u16, src: [u8; 4], dst: [u8; 4], proto: u8, ports: (u16, u16)) -> Vec<u8> {
        nest(
            kind,
            &[
                nest(1, &[attribute(1, &src), attribute(2, &dst)]),
                nest(
                    2,
                    &[
                        attribute(1, &[proto]),
                        attribute(2, &ports.0.to_be_bytes()),
                        attribute(3, &ports.1.to_be_bytes()),
                    ],
                ),
            ],
        )
    }

    fn parse(parts: &[Vec<u8>], family: u8) -> Option<Entry> {
        let bytes = message(CT_NEW, 0, family, parts);
        Entry::parse(&Messages::new(&bytes).next().unwrap())
    }

    #[test]
    fn a_natted_tcp_entry() {
        let entry = parse(
            &[
                v4(1, [10, 0, 0, 1], [192, 0, 2, 1], 6, (4000, 443)),
                v4(2, [192, 0, 2, 1], [198, 51, 100, 9], 6, (443, 61000)),
                attribute(3, &0x18eu32.to_be_bytes()),
                nest(4, &[nest(1, &[attribute(1, &[3]), attribute(2, &[7])])]),
                attribute(7, &431_999u32.to_be_bytes()),
                attribute(8, &[0, 0, 0, 0]),
                nest(9, &[attribute(1, &5u64.to_be_bytes()), attribute(2, &500u64.to_be_bytes())]),
                nest(10, &[attribute(1, &4u64.to_be_bytes())]),
                attribute(12, &77u32.to_be_bytes()),
                attribute(18, &9u16.to_be_bytes()),
            ],
            2,
        )
        .unwrap();
        assert_eq!(entry.original.l4, L4::Ports { src: 4000, dst: 443 });
        assert_eq!(entry.original.dst, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(entry.reply.unwrap().dst, IpAddr::from([198, 51, 100, 9]));
        assert_eq!(entry.state, Some(3));
        assert_eq!(entry.timeout, Some(431_999));
        assert_eq!(entry.mark, None);
        assert_eq!((entry.zone, entry.id), (9, Some(77)));
        assert_eq!((entry.packets, entry.bytes), (Some(9), Some(500)));
        assert!(entry.status & status::ASSURED != 0 && entry.status & status::SEEN_REPLY != 0);
    }

    #[test]
    fn an_icmpv6_entry() {
        let address = |last: u8| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).octets();
        let original = nest(
            1,
            &[
                nest(1, &[attribute(3, &address(1)), attribute(4, &address(2))]),
                nest(
                    2,
                    &[attribute(1, &[58]), attribute(7, &[1, 2]), attribute(8, &[128]), attribute(9, &[0])],
                ),
            ],
        );
        let entry = parse(&[original], 10).unwrap();
        assert_eq!(entry.original.proto, 58);
        assert_eq!(entry.original.l4, L4::Icmp { kind: 128, code: 0, id: 0x0102 });
        assert_eq!(entry.original.src, IpAddr::from(Ipv6Addr::from(address(1))));
        assert_eq!((entry.reply, entry.status, entry.timeout), (None, 0, None));
    }

    #[test]
    fn without_its_tuple_it_is_no_entry() {
        assert_eq!(parse(&[attribute(3, &[0, 0, 0, 8])], 2), None);
        assert_eq!(parse(&[nest(1, &[nest(2, &[attribute(1, &[17])])])], 2), None);
    }

    proptest! {
        #[test]
        fn damaged_entries_never_panic(flips in proptest::collection::vec((0usize..200, any::<u8>()), 1..12)) {
            let mut bytes = message(CT_NEW, 0, 2, &[
                v4(1, [10, 0, 0, 1], [192, 0, 2, 1], 17, (1, 2)),
                nest(4, &[nest(1, &[attribute(1, &[3])])]),
                attribute(7, &[0, 0, 0, 30]),
            ]);
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            for message in Messages::new(&bytes) {
                let _ = Entry::parse(&message);
            }
        }
    }
}

//! Reading a packet's own headers, where it belongs to no flow.

use aya_ebpf::Global;
use ctwatch_ebpf::{
    AF_INET, FlowType,
    loss::{Tuple, has_ports, is_icmp},
};

use crate::{
    conn::{NET_INUM, number, read},
    maps::INVALID_PACKET,
    tuple::put,
};

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] static $name: Global<u32> = Global::new(0);)*
    };
}

offsets! {
    /// `sk_buff.head`
    SKB_HEAD;
    /// `sk_buff.tail`, which counts from `head` on 64 bits.
    SKB_TAIL;
    /// `sk_buff.network_header`, likewise.
    SKB_NETWORK;
    /// `nf_hook_state.pf`
    STATE_PF;
    /// `nf_hook_state.net`
    STATE_NET;
}

/// Its L4 protocol number.
const TCP: u8 = 6;
/// IPv6 extension headers that are passed over, at most.
const EXTENSIONS: usize = 6;
/// "No next header", which stands for what cannot be read.
const NO_HEADER: u8 = 59;

/// A packet and its own tuple.
pub struct Headers {
    pub packet: Packet,
    pub tuple: Tuple,
}

/// Finds the headers of a packet of this family. What lies there was found for the last packet on this CPU.
#[inline(always)]
pub fn headers(skb: u64, family: u8) -> Option<&'static mut Headers> {
    find(number(skb), family.into());
    found_last()
}

/// The same for the packet whose headers were found last on this CPU.
#[inline(always)]
pub fn found_last() -> Option<&'static mut Headers> {
    let headers = INVALID_PACKET.get_ptr_mut(0)?;
    // SAFETY: the pointer is into the map, which outlives the program, and nothing else on this CPU has it.
    Some(unsafe { &mut *headers })
}

/// Finds the headers of the packet at `skb`. In a frame of its own, where the compiler has registers enough to keep each
/// value in one.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn find(skb: u64, family: u64) -> u64 {
    if let Some(headers) = found_last() {
        headers.packet = Packet::at(skb, family);
    }
    0
}

/// Where the headers of one packet lie.
pub struct Packet {
    /// Where the network header lies.
    network: u64,
    /// Where the part ends that lies in one piece.
    end: u64,
    /// Where the transport header lies.
    transport: u64,
    /// L4 protocol number; 0 where it cannot be read.
    pub proto: u8,
}

/// A value of memory that need not be there, since a packet may be cut short anywhere: then `missing`.
#[inline(always)]
fn peek<T: Copy>(packet: &Packet, at: u64, missing: T) -> T {
    if at < packet.network || at + size_of::<T>() as u64 > packet.end {
        return missing;
    }
    read(at).unwrap_or(missing)
}

impl Packet {
    #[inline(always)]
    fn at(skb: u64, family: u64) -> Self {
        let mut packet = Self { network: 0, end: 0, transport: 0, proto: 0 };
        let head = read::<u64>(skb + u64::from(SKB_HEAD.load())).unwrap_or(0);
        let network = read::<u16>(skb + u64::from(SKB_NETWORK.load())).unwrap_or(0);
        let tail = read::<u32>(skb + u64::from(SKB_TAIL.load())).unwrap_or(0);
        packet.network = head + u64::from(network);
        packet.end = head + u64::from(tail);
        if family == u64::from(AF_INET) {
            let first = peek::<u8>(&packet, packet.network, 0);
            packet.transport = packet.network + u64::from(first & 15) * 4;
            packet.proto = peek(&packet, packet.network + 9, 0);
        } else {
            packet.pass_extensions();
        }
        packet
    }

    /// IPv6: the transport header lies behind the extension headers (RFC 8200, 4).
    #[inline(always)]
    fn pass_extensions(&mut self) {
        let mut next = u64::from(peek::<u8>(self, self.network + 6, NO_HEADER));
        let mut at = self.network + 40;
        for _ in 0..EXTENSIONS {
            let units = match next {
                // Hop-by-hop options, routing, destination options.
                0 | 43 | 60 => 8,
                // A fragment header has one unit, and no length.
                44 => 0,
                // Authentication, in units of four less two.
                51 => 4,
                _ => break,
            };
            let header = u64::from(peek::<u16>(self, at, u16::from(NO_HEADER)));
            next = header & 0xff;
            at += 8 + (header >> 8) * units;
        }
        self.proto = next as u8;
        self.transport = at;
    }

    /// The packet's own tuple, as far as its headers can be read.
    #[inline(always)]
    pub fn fill(&self, tuple: &mut Tuple, flow: FlowType) {
        tuple.family = flow.family;
        tuple.proto = flow.proto;
        if flow.family == AF_INET {
            tuple.src[0] = peek::<u32>(self, self.network + 12, 0).into();
            tuple.dst[0] = peek::<u32>(self, self.network + 16, 0).into();
        } else {
            tuple.src = peek(self, self.network + 8, [0; 2]);
            tuple.dst = peek(self, self.network + 24, [0; 2]);
        }
        if has_ports(flow.proto) {
            tuple.src_part = peek(self, self.transport, [0; 2]);
            tuple.dst_part = peek(self, self.transport + 2, [0; 2]);
        } else if is_icmp(flow.proto) {
            tuple.dst_part = peek(self, self.transport, [0; 2]);
            tuple.src_part = peek(self, self.transport + 4, [0; 2]);
        }
    }

    /// Whether it is an ICMP error, as `nf_conntrack_icmpv4_error` and `nf_conntrack_icmpv6_error` decide (5.10 to 7.3):
    /// such a packet is invalid unless the flow that it is about is known.
    #[inline(always)]
    pub fn is_icmp_error(&self, family: u8) -> bool {
        // No error has this type.
        let kind = peek::<u8>(self, self.transport, u8::MAX);
        if family == AF_INET {
            self.proto == 1 && matches!(kind, 3 | 4 | 5 | 11 | 12)
        } else {
            self.proto == 58 && (kind < 128 || kind == 137)
        }
    }

    /// The first four words of a TCP segment, into their place: ports, sequence and acknowledgement number, flags and
    /// window. `false` where they cannot be read.
    #[inline(always)]
    pub fn copy_tcp(&self, place: &mut [u8; 16]) -> bool {
        self.proto == TCP && self.transport + 16 <= self.end && put(place, self.transport)
    }
}

/// The namespace and the family that a `nf_hook_state` is for.
#[inline(always)]
pub fn hook_state(state: u64) -> Option<(u64, u8)> {
    Some((read(state + u64::from(STATE_NET.load()))?, read(state + u64::from(STATE_PF.load()))?))
}

/// The inode of a namespace.
#[inline(always)]
pub fn inum(net: u64) -> Option<u32> {
    read(net + u64::from(NET_INUM.load()))
}

//! One entry of a table, as far as it is counted, and what it says of NAT and of flow tables.

use ctwatch_ebpf::entry::{DNAT, SNAT};
use ctwatch_ebpf::loss::Tuple;

/// Bits of an entry's status (uapi/linux/netfilter/nf_conntrack_common.h).
pub mod status {
    /// A helper expected it.
    pub const EXPECTED: u32 = 1 << 0;
    /// A packet came in both directions.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// `early_drop` passes it by.
    pub const ASSURED: u32 = 1 << 2;
    /// It is in the table.
    pub const CONFIRMED: u32 = 1 << 3;
    /// Its destination is another than the client's.
    pub const DST_NAT: u32 = 1 << 5;
    /// It lost a clash and lives by its reply direction only (5.9).
    pub const NAT_CLASH: u32 = 1 << 12;
    /// A flow table forwards it; `early_drop` passes it by too.
    pub const OFFLOAD: u32 = 1 << 14;
    /// The flow table is in the network card (5.8).
    pub const HW_OFFLOAD: u32 = 1 << 15;
}

/// One entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Inode of its network namespace.
    pub netns: u32,
    /// Its original direction.
    pub tuple: Tuple,
    /// The direction of answers. It shows where NAT really sends packets.
    pub reply: Option<Tuple>,
    /// The number that its protocol's tracker gives its state.
    pub state: Option<u8>,
    /// Bits of [`status`].
    pub status: u32,
    /// `ct mark`; 0 where rules set none.
    pub mark: u32,
    /// Traffic of both directions, where the kernel accounts (`nf_conntrack_acct`).
    pub traffic: Option<Traffic>,
}

impl Entry {
    /// What NAT does to its packets.
    pub fn nat(&self) -> Nat {
        self.reply.map_or(Nat::None, |reply| Nat::between(&self.tuple, &reply))
    }

    /// What forwards its packets.
    pub const fn offload(&self) -> Offload {
        match (self.status & status::OFFLOAD != 0, self.status & status::HW_OFFLOAD != 0) {
            (_, true) => Offload::Hardware,
            (true, false) => Offload::Software,
            (false, false) => Offload::None,
        }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many packets.
    pub packets: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Traffic {
    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// What NAT does to the packets of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nat {
    /// Nothing.
    #[default]
    None,
    /// It changes the source.
    Snat,
    /// It changes the destination.
    Dnat,
    /// It changes both.
    Both,
}

impl Nat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Snat, Self::Dnat, Self::Both];

    /// The difference of two directions.
    pub fn between(original: &Tuple, reply: &Tuple) -> Self {
        let nat = ctwatch_ebpf::entry::nat(original, reply);
        match (nat & SNAT != 0, nat & DNAT != 0) {
            (false, false) => Self::None,
            (true, false) => Self::Snat,
            (false, true) => Self::Dnat,
            (true, true) => Self::Both,
        }
    }

    /// The bits that the programs in the kernel tell it by.
    pub const fn bits(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Snat => SNAT,
            Self::Dnat => DNAT,
            Self::Both => SNAT | DNAT,
        }
    }

    /// As flags and JSON spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Snat => "snat",
            Self::Dnat => "dnat",
            Self::Both => "both",
        }
    }
}

/// What forwards the packets of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offload {
    /// The usual path: each packet meets connection tracking.
    #[default]
    None,
    /// A flow table of the kernel.
    Software,
    /// A flow table of the network card.
    Hardware,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Software, Self::Hardware];

    /// As flags and JSON spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Software => "software",
            Self::Hardware => "hardware",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::filter::tuple;

    fn nat(proto: u8, original: (&str, u16, &str, u16), reply: (&str, u16, &str, u16)) -> Nat {
        let of = |(src, sport, dst, dport): (&str, u16, &str, u16)| {
            tuple(proto, src.parse().unwrap(), dst.parse().unwrap(), Some((sport, dport)))
        };
        Nat::between(&of(original), &of(reply))
    }

    #[test]
    fn nat_is_the_difference_of_the_directions() {
        let original = ("10.0.0.1", 4000, "192.0.2.1", 80);
        assert_eq!(nat(6, original, ("192.0.2.1", 80, "10.0.0.1", 4000)), Nat::None);
        assert_eq!(nat(6, original, ("192.0.2.1", 80, "198.51.100.1", 4000)), Nat::Snat);
        assert_eq!(nat(6, original, ("192.0.2.1", 80, "10.0.0.1", 1024)), Nat::Snat, "only the port");
        assert_eq!(nat(6, original, ("10.9.0.77", 80, "10.0.0.1", 4000)), Nat::Dnat);
        assert_eq!(nat(6, original, ("192.0.2.1", 8080, "10.0.0.1", 4000)), Nat::Dnat, "only the port");
        assert_eq!(nat(6, original, ("10.9.0.77", 80, "10.9.0.1", 4000)), Nat::Both);
        let six = ("fd00::1", 4000, "fd00::2", 80);
        assert_eq!(nat(17, six, ("fd00::3", 80, "fd00::1", 4000)), Nat::Dnat);
    }

    #[test]
    fn an_echo_and_its_answer_differ_in_type_and_not_by_nat() {
        // Type 8 and code 0 in the place of the destination port; the answer has type 0.
        let echo = ("10.0.0.1", 7, "192.0.2.1", 0x0800);
        assert_eq!(nat(1, echo, ("192.0.2.1", 7, "10.0.0.1", 0)), Nat::None);
        assert_eq!(nat(1, echo, ("192.0.2.1", 9, "10.0.0.1", 0)), Nat::Snat);
        assert_eq!(nat(1, echo, ("10.9.0.77", 7, "10.0.0.1", 0)), Nat::Dnat);
    }

    #[test]
    fn hardware_is_named_whether_or_not_the_other_bit_is_set() {
        let offload = |status| Entry { status, ..Entry::default() }.offload();
        assert_eq!(offload(status::CONFIRMED), Offload::None);
        assert_eq!(offload(status::OFFLOAD), Offload::Software);
        assert_eq!(offload(status::OFFLOAD | status::HW_OFFLOAD), Offload::Hardware);
    }
}

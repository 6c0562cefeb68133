//! Members of kernel structures that programs load by single instructions.
//!
//! A compiler that knows CO-RE leaves a note for each such instruction, from which a loader writes the
//! running kernel's offset into it; rustc does not. So the instruction itself carries the note: an offset
//! that no member has.

/// Offsets from here on are notes. `struct net`, the largest structure of these, has some 5 KiB (7.3).
const NOTES: i16 = 0x7f00;

/// A member, at its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub enum Field {
    /// `nf_conn.timeout`
    ConnTimeout = 0,
    /// `nf_conn.ct_net`
    ConnNet,
    /// `nf_conn.tuplehash[IP_CT_DIR_ORIGINAL].tuple.src.l3num`
    ConnL3num,
    /// `nf_conn.tuplehash[IP_CT_DIR_ORIGINAL].tuple.dst.protonum`
    ConnProtonum,
    /// `nf_conn.tuplehash[IP_CT_DIR_ORIGINAL].tuple.dst.u`
    ConnDport,
    /// `net.ns.inum`
    NetInum,
    /// `nf_conntrack_tuple.src.l3num`
    TupleL3num,
    /// `nf_conntrack_tuple.dst.protonum`
    TupleProtonum,
    /// `nf_conntrack_tuple.dst.u`
    TupleDport,
    /// The register in `pt_regs`, at the entry of `net_ratelimit`, that holds the namespace of a refused flow.
    RefusedNet,
    /// The one that holds its zone.
    RefusedZone,
    /// The one that holds its original tuple.
    RefusedOrig,
}

impl Field {
    /// All of them, in order.
    pub const ALL: [Self; 12] = [
        Self::ConnTimeout,
        Self::ConnNet,
        Self::ConnL3num,
        Self::ConnProtonum,
        Self::ConnDport,
        Self::NetInum,
        Self::TupleL3num,
        Self::TupleProtonum,
        Self::TupleDport,
        Self::RefusedNet,
        Self::RefusedZone,
        Self::RefusedOrig,
    ];

    /// What stands in an instruction for the member's offset.
    pub const fn placeholder(self) -> i16 {
        NOTES + self as i16
    }

    /// The member that an instruction's offset stands for, if it stands for one.
    pub fn noted(offset: i16) -> Option<Self> {
        Self::ALL.get(usize::try_from(offset.checked_sub(NOTES)?).ok()?).copied()
    }

    /// An offset as an instruction holds it, where it fits and is no note.
    pub fn written(offset: u32) -> Option<i16> {
        i16::try_from(offset).ok().filter(|offset| *offset < NOTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_is_found_by_its_note_and_no_offset_is_one() {
        for field in Field::ALL {
            assert_eq!(Field::noted(field.placeholder()), Some(field));
        }
        for offset in [i16::MIN, -1, 0, 5000, NOTES - 1, NOTES + 12, i16::MAX] {
            assert_eq!(Field::noted(offset), None, "{offset}");
        }
        assert_eq!((Field::written(5000), Field::written(0x7f00)), (Some(5000), None));
        assert_eq!(Field::written(40_000), None);
    }
}

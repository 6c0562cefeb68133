//! Netlink messages and attributes as bytes: checked walking, nothing copied, nothing allocated.
//!
//! What comes from the kernel is well formed; the walk is checked all the same, since a wrong length must not become a
//! wrong count. A walker stops at the first thing that does not fit.

/// `NFNL_SUBSYS_CTNETLINK`, the upper byte of a message's type.
pub const SUBSYSTEM: u16 = 1;
/// `IPCTNL_MSG_CT_NEW`: in the group NEW a new entry, in the answer to a dump any entry.
pub const CT_NEW: u16 = SUBSYSTEM << 8;
/// `IPCTNL_MSG_CT_GET`.
pub const CT_GET: u16 = SUBSYSTEM << 8 | 1;
/// `IPCTNL_MSG_CT_DELETE`: in the group DESTROY an entry that ended.
pub const CT_DELETE: u16 = SUBSYSTEM << 8 | 2;
/// `IPCTNL_MSG_CT_GET_STATS_CPU`.
pub const CT_GET_STATS_CPU: u16 = SUBSYSTEM << 8 | 4;
/// `IPCTNL_MSG_CT_GET_STATS`.
pub const CT_GET_STATS: u16 = SUBSYSTEM << 8 | 5;
/// Ask for expectations (`NFNL_SUBSYS_CTNETLINK_EXP`, `IPCTNL_MSG_EXP_GET`).
pub const EXPECT_GET: u16 = 2 << 8 | 1;
/// `NLMSG_ERROR`, also the positive acknowledgement.
pub const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub const DONE: u16 = 3;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 1;
/// `NLM_F_DUMP_INTR`: the table changed so much under the dump that entries may be missing or twice.
pub const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// Length of `struct nfgenmsg`, with which each of these messages begins.
pub const FAMILY_HEADER: usize = 4;

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Subsystem and kind, such as [`CT_NEW`].
    pub kind: u16,
    /// `NLM_F_…`.
    pub flags: u16,
    /// The request that it answers; 0 in events.
    pub sequence: u32,
    /// In an event: the socket whose request caused it, 0 where nobody's did.
    pub portid: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Address family of a message that begins with `struct nfgenmsg`.
    pub fn family(&self) -> Option<u8> {
        self.payload.get(..FAMILY_HEADER).map(|header| header[0])
    }

    /// `nfgenmsg.res_id`: the CPU's number in per-CPU statistics.
    pub fn resource(&self) -> Option<u16> {
        self.payload.get(2..FAMILY_HEADER).and_then(be16)
    }

    /// The attributes behind `struct nfgenmsg`.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.payload.get(FAMILY_HEADER..).unwrap_or_default())
    }

    /// The error number of an [`ERROR`] or [`DONE`] message, positive; 0 means all went well.
    pub fn error(&self) -> i32 {
        let code = self.payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        code.checked_neg().unwrap_or(i32::MAX).max(0)
    }
}

/// Walks the messages of one datagram.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// All messages of what one receive call brought.
    pub const fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }

    /// Whether bytes were left that are no message. Ask once the walk has ended.
    pub const fn is_malformed(&self) -> bool {
        !self.rest.is_empty()
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (header, _) = self.rest.split_first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = self.rest.get(HEADER..length)?;
        self.rest = self.rest.get(aligned(length)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([t0, t1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            portid: u32::from_ne_bytes([p0, p1, p2, p3]),
            payload,
        })
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// `CTA_…`, without the flags for nesting and byte order.
    pub kind: u16,
    /// Its value; attributes again where it is a nest.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes in a nest.
    pub const fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    /// A value of one byte.
    pub fn u8(&self) -> Option<u8> {
        match self.value {
            [byte] => Some(*byte),
            _ => None,
        }
    }

    /// A value of two bytes; ctnetlink writes network order.
    pub fn u16(&self) -> Option<u16> {
        be16(self.value)
    }

    /// A value of four bytes.
    pub fn u32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_be_bytes)
    }

    /// A value of eight bytes.
    pub fn u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_be_bytes)
    }
}

/// Walks attributes.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in these bytes.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The first attribute of a kind.
    pub fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        self.by_ref().find(|attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        const LENGTH: usize = 4;
        /// `NLA_F_NESTED | NLA_F_NET_BYTEORDER`.
        const FLAGS: u16 = 0xc000;
        let (&[l0, l1, k0, k1], _) = self.rest.split_first_chunk::<LENGTH>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.rest.get(LENGTH..length)?;
        self.rest = self.rest.get(aligned(length)..).unwrap_or_default();
        Some(Attribute { kind: u16::from_ne_bytes([k0, k1]) & !FLAGS, value })
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A request without attributes.
pub fn request(kind: u16, flags: u16, sequence: u32, family: u8) -> [u8; HEADER + FAMILY_HEADER] {
    const LENGTH: u32 = 20;
    const { assert!(LENGTH as usize == HEADER + FAMILY_HEADER) }
    let mut bytes = [0; LENGTH as usize];
    bytes[..4].copy_from_slice(&LENGTH.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    bytes[HEADER] = family;
    bytes
}

#[cfg(test)]
pub(crate) mod build {
    //! Messages for tests.
    use super::*;

    /// One attribute, padded.
    pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    /// A nest of attributes.
    pub(crate) fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
        attribute(kind | 0x8000, &parts.concat())
    }

    /// A whole message.
    pub(crate) fn message(kind: u16, portid: u32, family: u8, parts: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = request(kind, 0, 0, family).to_vec();
        bytes[12..16].copy_from_slice(&portid.to_ne_bytes());
        bytes.extend(parts.concat());
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::build::{attribute, message, nest};
    use super::*;

    #[test]
    fn messages_of_one_datagram_come_one_by_one() {
        let datagram =
            [message(CT_NEW, 7, 2, &[attribute(3, &[0, 0, 0, 8])]), message(CT_DELETE, 0, 10, &[])].concat();
        let mut messages = Messages::new(&datagram);
        let first = messages.next().unwrap();
        assert_eq!((first.kind, first.portid, first.family()), (CT_NEW, 7, Some(2)));
        assert_eq!(first.attributes().find(3).unwrap().u32(), Some(8));
        assert_eq!(messages.next().unwrap().family(), Some(10));
        assert!(messages.next().is_none());
        assert!(!messages.is_malformed());
    }

    #[test]
    fn flags_are_no_part_of_a_kind() {
        let bytes = [nest(1, &[attribute(2, b"x")]), attribute(0x4000 | 5, &[1, 2])].concat();
        let kinds: Vec<u16> = Attributes::new(&bytes).map(|attribute| attribute.kind).collect();
        assert_eq!(kinds, [1, 5]);
        assert_eq!(Attributes::new(&bytes).find(1).unwrap().nested().next().unwrap().u8(), Some(b'x'));
        assert_eq!(Attributes::new(&bytes).find(5).unwrap().u16(), Some(0x0102));
        assert_eq!(Attributes::new(&bytes).find(5).unwrap().u32(), None);
    }

    #[test]
    fn a_length_that_does_not_fit_ends_the_walk() {
        for length in [0u32, 15, 21, u32::MAX] {
            let mut datagram = message(CT_NEW, 0, 2, &[]);
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            let mut messages = Messages::new(&datagram);
            assert!(messages.next().is_none(), "{length}");
            assert!(messages.is_malformed());
        }
        for length in [0u16, 3, 9, u16::MAX] {
            let mut bytes = attribute(1, &[1, 2, 3, 4]);
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert!(Attributes::new(&bytes).next().is_none(), "{length}");
        }
    }

    #[test]
    fn errors_are_positive() {
        let error = |code: i32| {
            let payload = code.to_ne_bytes();
            Message { kind: ERROR, flags: 0, sequence: 0, portid: 0, payload: &payload }.error()
        };
        assert_eq!(error(-1), 1);
        assert_eq!(error(0), 0);
        assert_eq!(error(5), 0);
        assert_eq!(error(i32::MIN), i32::MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_end_and_give_only_what_is_there(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut left = bytes.len();
            for message in Messages::new(&bytes) {
                prop_assert!(message.payload.len() + HEADER <= left);
                left -= message.payload.len() + HEADER;
                let attributes: usize = message.attributes().map(|attribute| attribute.value.len() + 4).sum();
                prop_assert!(attributes <= message.payload.len());
            }
        }

        #[test]
        fn attributes_survive(values in proptest::collection::vec((0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let bytes: Vec<u8> = values.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect();
            let found: Vec<(u16, Vec<u8>)> = Attributes::new(&bytes).map(|a| (a.kind, a.value.to_vec())).collect();
            prop_assert_eq!(found, values);
        }
    }
}

//! What both halves of ctwatch share: events, flow types and their layout in maps.
//!
//! Builds without `std`, on the BPF target and on the host alike.
#![cfg_attr(not(test), no_std)]
#![expect(
    clippy::inline_always,
    reason = "a call in a BPF program costs more than what these do, and the verifier follows it anew each time"
)]

pub mod entry;
pub mod event;
pub mod field;
pub mod invalid;
pub mod loss;
pub mod tally;
pub mod timing;

pub use event::{Event, Group};

/// Address family of an IPv4 flow, as in `nf_conntrack_tuple.src.l3num`.
pub const AF_INET: u8 = 2;
/// Address family of an IPv6 flow.
pub const AF_INET6: u8 = 10;

/// How many flow types are counted apart; one more shares [`OVERFLOW_ROW`].
pub const ROWS: u32 = 1024;
/// The row that counts what found no row of its own.
pub const OVERFLOW_ROW: u32 = 0;

/// The counters of one flow type on one CPU, indexed by [`Event`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Counters(pub [u64; Event::COUNT]);

impl Counters {
    /// The count of one event.
    pub const fn get(&self, event: Event) -> u64 {
        self.0[event as usize]
    }

    /// Adds another CPU's counters to these.
    pub fn add(&mut self, other: &Self) {
        add_each(&mut self.0, &other.0);
    }
}

/// Adds each of another CPU's counts to the one in its place.
fn add_each(sums: &mut [u64], parts: &[u64]) {
    for (sum, part) in sums.iter_mut().zip(parts) {
        *sum = sum.wrapping_add(*part);
    }
}

/// What is counted apart: network namespace, address family, L4 protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowType {
    /// Inode of the network namespace (`net.ns.inum`); 0 on the overflow row.
    pub netns: u32,
    /// [`AF_INET`] or [`AF_INET6`]; 0 on the overflow row.
    pub family: u8,
    /// L4 protocol number; 0 with family 0 on the overflow row.
    pub proto: u8,
}

impl FlowType {
    /// The row that flow types share once the others are taken.
    pub const OVERFLOW: Self = Self { netns: 0, family: 0, proto: 0 };

    /// As one word, for map keys: never 0 for a real flow type, since its family is not 0.
    pub const fn pack(self) -> u64 {
        (self.netns as u64) << 32 | (self.family as u64) << 8 | self.proto as u64
    }

    /// The reverse of [`FlowType::pack`].
    pub const fn unpack(word: u64) -> Self {
        Self { netns: (word >> 32) as u32, family: (word >> 8 & 0xff) as u8, proto: (word & 0xff) as u8 }
    }
}

/// Why a caller of `nf_ct_delete` removes an entry, as far as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[repr(u32)]
pub enum Caller {
    /// `nf_ct_delete` itself, where the compiler split it (`.part.0`): the outer call already told.
    Itself = 1,
    /// An iteration on behalf of somebody: netlink where a port id is given, else clean-up.
    Iterate,
    /// `__nf_conntrack_alloc`, which deletes nothing: it asks `net_ratelimit` whether to log a refusal.
    Alloc,
    /// A walk over the table that removes what has expired.
    Expiry = Event::DeleteTimeout as u32,
    /// A protocol tracker that ends a connection.
    Closed = Event::DeleteClosed as u32,
    /// `early_drop`.
    EarlyDrop = Event::DeleteEarlyDrop as u32,
    /// `gc_worker`: pressure, unless the entry had expired.
    Collector = Event::DeletePressure as u32,
    /// A ctnetlink request for one entry.
    Netlink = Event::DeleteNetlink as u32,
    /// `act_ct` of tc.
    Tc = Event::DeleteTc as u32,
    /// Open vSwitch.
    Openvswitch = Event::DeleteOpenvswitch as u32,
    /// IPVS.
    Ipvs = Event::DeleteIpvs as u32,
}

const TIMEOUT: u32 = Event::DeleteTimeout as u32;
const CLOSED: u32 = Event::DeleteClosed as u32;
const EARLY_DROP: u32 = Event::DeleteEarlyDrop as u32;
const PRESSURE: u32 = Event::DeletePressure as u32;
const NETLINK: u32 = Event::DeleteNetlink as u32;
const TC: u32 = Event::DeleteTc as u32;
const OPENVSWITCH: u32 = Event::DeleteOpenvswitch as u32;
const IPVS: u32 = Event::DeleteIpvs as u32;

impl Caller {
    /// From the number that maps hold.
    pub const fn from_u32(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::Itself,
            2 => Self::Iterate,
            3 => Self::Alloc,
            TIMEOUT => Self::Expiry,
            CLOSED => Self::Closed,
            EARLY_DROP => Self::EarlyDrop,
            PRESSURE => Self::Collector,
            NETLINK => Self::Netlink,
            TC => Self::Tc,
            OPENVSWITCH => Self::Openvswitch,
            IPVS => Self::Ipvs,
            _ => return None,
        })
    }
}

/// The event that a removal of an entry with time left is, where the caller's number alone tells.
///
/// They are numbered alike so that this is one comparison: it runs for each entry that leaves.
#[inline(always)]
pub const fn event_of_caller(code: u32) -> Option<Event> {
    Some(match code {
        TIMEOUT => Event::DeleteTimeout,
        CLOSED => Event::DeleteClosed,
        EARLY_DROP => Event::DeleteEarlyDrop,
        PRESSURE => Event::DeletePressure,
        NETLINK => Event::DeleteNetlink,
        TC => Event::DeleteTc,
        OPENVSWITCH => Event::DeleteOpenvswitch,
        IPVS => Event::DeleteIpvs,
        _ => return None,
    })
}

/// The event that a removal is, from who asked for it.
///
/// Only ctnetlink gives a port id. Otherwise an entry that had expired leaves by its timeout,
/// whoever collects it: `early_drop` and `gc_worker` (5.10 to 7.3) remove what they find expired too.
pub const fn delete_event(caller: Option<Caller>, expired: bool, portid: u32) -> Event {
    if portid != 0 {
        return Event::DeleteNetlink;
    }
    if expired {
        return Event::DeleteTimeout;
    }
    match caller {
        Some(Caller::Iterate) => Event::DeleteCleanup,
        Some(caller) => match event_of_caller(caller as u32) {
            Some(event) => event,
            None => Event::DeleteOther,
        },
        None => Event::DeleteOther,
    }
}

/// How many address ranges of callers fit.
pub const CALLERS: usize = 32;

/// How many pieces of `__nf_conntrack_alloc` fit: the compiler moves what is rare to a place of its own.
pub const ALLOC_PARTS: usize = 4;

/// What the programs know of their own work. Userspace makes `lost` of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Health {
    /// A function returned, but its entry was not seen or another context had overwritten it.
    NoEntry = 0,
    /// A function was entered again before its earlier return was seen.
    NoReturn,
    /// Kernel memory could not be read.
    ReadFailed,
    /// Counted, but on [`OVERFLOW_ROW`]: nothing lost, only not told apart.
    Overflow,
    /// New flows refused because a table was full, of which it was not known at once whose they were.
    Refused,
    /// Those of them that were counted for their flow type after all, or left out by the user's filter.
    RefusedKnown,
    /// Invalid packets that were counted: while it stands still, nobody reads their map.
    Invalid,
    /// Refusals for which registers held no flow, and removals for which the stack held no caller, although the kernel's
    /// code seemed to say so: the code was misread.
    Misread,
}

impl Health {
    /// How many there are.
    pub const COUNT: usize = 8;
}

/// [`Health`] of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct HealthCounters(pub [u64; Health::COUNT]);

impl HealthCounters {
    /// Adds another CPU's.
    pub fn add(&mut self, other: &Self) {
        add_each(&mut self.0, &other.0);
    }

    /// How many events were missed, or could not be told whose they were.
    pub const fn lost(&self) -> u64 {
        self.unpaired() + self.0[Health::ReadFailed as usize] + self.refused_unknown()
    }

    /// How often only one end of a call was seen.
    pub const fn unpaired(&self) -> u64 {
        self.0[Health::NoEntry as usize] + self.0[Health::NoReturn as usize]
    }

    /// Whether registers or the stack held something else than what the kernel's code seemed to say.
    pub const fn misread(&self) -> bool {
        self.0[Health::Misread as usize] > 0
    }

    /// How many refusals there were whose flow nobody looked at.
    pub const fn refused_unknown(&self) -> u64 {
        self.0[Health::Refused as usize].saturating_sub(self.0[Health::RefusedKnown as usize])
    }
}

/// The functions that the verifier checks once and by themselves, whatever their callers know of the arguments, and how many
/// arguments they have: `u64` each, as is what they return. The kernel calls them global functions (5.6). It checks any
/// other function at each call anew, once for each state that it can be called in.
pub const GLOBAL_FUNCTIONS: [(&str, u32); 13] = [
    ("emit", 5),
    ("ends_wanted", 2),
    ("entry_wanted", 3),
    ("find", 2),
    ("flow_of", 1),
    ("found", 5),
    ("hand_over", 4),
    ("learn", 1),
    ("return_at", 1),
    ("search_row", 2),
    ("try_row", 2),
    ("type_wanted", 1),
    ("untold", 4),
];

/// How far from the entry of `__nf_ct_delete_from_lists` the return address of `nf_ct_delete` may lie on the stack.
pub const FRAME_LIMIT: u64 = 2048;

/// How many bytes of `nf_conn` a kprobe program can read at once: every member it needs lies below (PREEMPT_RT: 176).
pub const CONN_READ: usize = 184;

const _: () = assert!(size_of::<Counters>() == 8 * Event::COUNT);
const _: () = assert!(size_of::<HealthCounters>() == 64);

#[cfg(feature = "user")]
// SAFETY: a transparent array of u64 has no padding, and every bit pattern is a value.
unsafe impl aya::Pod for HealthCounters {}

#[cfg(feature = "user")]
// SAFETY: a transparent array of u64 has no padding, and every bit pattern is a value.
unsafe impl aya::Pod for Counters {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_type_survives_packing() {
        for flow in [
            FlowType { netns: 4_026_531_840, family: AF_INET, proto: 17 },
            FlowType { netns: u32::MAX, family: AF_INET6, proto: 255 },
            FlowType::OVERFLOW,
        ] {
            assert_eq!(FlowType::unpack(flow.pack()), flow);
        }
    }

    #[test]
    fn callers_are_numbered_as_listed() {
        for code in 0..32 {
            if let Some(caller) = Caller::from_u32(code) {
                assert_eq!(caller as u32, code);
            }
            if let Some(event) = event_of_caller(code) {
                assert_eq!(event as u32, code);
                assert!(Caller::from_u32(code).is_some());
            }
        }
    }

    #[test]
    fn expiry_outranks_eviction_but_not_a_request() {
        use Caller::*;
        assert_eq!(delete_event(Some(EarlyDrop), false, 0), Event::DeleteEarlyDrop);
        assert_eq!(delete_event(Some(EarlyDrop), true, 0), Event::DeleteTimeout);
        assert_eq!(delete_event(Some(Collector), false, 0), Event::DeletePressure);
        assert_eq!(delete_event(Some(Collector), true, 0), Event::DeleteTimeout);
        assert_eq!(delete_event(Some(Netlink), false, 7), Event::DeleteNetlink);
        assert_eq!(delete_event(Some(Iterate), true, 7), Event::DeleteNetlink);
        assert_eq!(delete_event(Some(Iterate), false, 0), Event::DeleteCleanup);
        assert_eq!(delete_event(Some(Iterate), true, 0), Event::DeleteTimeout);
        assert_eq!(delete_event(Some(Closed), false, 0), Event::DeleteClosed);
        assert_eq!(delete_event(Some(Expiry), false, 0), Event::DeleteTimeout);
        assert_eq!(delete_event(Some(Tc), false, 0), Event::DeleteTc);
        assert_eq!(delete_event(Some(Openvswitch), false, 0), Event::DeleteOpenvswitch);
        assert_eq!(delete_event(Some(Ipvs), false, 0), Event::DeleteIpvs);
        assert_eq!(delete_event(Some(Ipvs), true, 0), Event::DeleteTimeout);
        assert_eq!(delete_event(Some(Alloc), false, 0), Event::DeleteOther);
        assert_eq!(delete_event(None, true, 0), Event::DeleteTimeout);
        assert_eq!(delete_event(None, false, 0), Event::DeleteOther);
        assert_eq!(delete_event(None, true, 7), Event::DeleteNetlink);
    }
}

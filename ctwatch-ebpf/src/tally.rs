//! Where the hooks that meet every flow count: one table for each program and CPU.
//!
//! One program writes a table, and the kernel does not let a program nest in itself on one CPU
//! (trampolines since 5.12, kprobes since 4.1), so that plain additions lose nothing and a place
//! can be taken without a lock. What finds no place here is counted in the shared rows.

use crate::FlowType;

/// Flow types that one table counts by itself.
pub const FLOWS: usize = 256;
/// Ports that the ranking of inserts tells apart at once.
pub const INSERT_PORTS: usize = 1024;
/// Ports that the rankings of evictions and refusals tell apart at once.
pub const LOSS_PORTS: usize = 512;
/// Addresses that a ranking tells apart at once.
pub const ADDRESSES: usize = 512;
/// How many strangers in a row a place in a ranking turns away before it is given up.
pub const PATIENCE: u64 = 32;

/// Counts of one flow type. Its place never changes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Row<const N: usize> {
    /// [`FlowType::pack`]; 0 where free.
    pub flow: u64,
    /// The counts.
    pub counts: [u64; N],
}

/// A place in a ranking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Place<K> {
    /// Whose it is; all zero where free.
    pub key: K,
    /// Events of this key since it has the place.
    pub count: u64,
    /// Events of other keys that wanted the place since the last one of this key.
    pub strangers: u64,
}

/// A destination port of one flow type, as one word: never 0, since the family is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PortKey(pub u64);

impl PortKey {
    /// From a flow type and a port as it lies in memory (network byte order).
    #[inline(always)]
    pub const fn new(flow: FlowType, port: u16) -> Self {
        Self(flow.pack() | (port as u64) << 16)
    }

    /// The flow type and the port.
    pub const fn parts(self) -> (FlowType, u16) {
        (FlowType::unpack(self.0), u16::from_be((self.0 >> 16 & 0xffff) as u16))
    }
}

/// One end's address in flows of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AddressKey {
    /// [`FlowType::pack`], and bit 16 where it is the destination.
    pub flow: u64,
    /// The address as in [`crate::loss::Tuple`].
    pub address: [u64; 2],
}

impl AddressKey {
    const DESTINATION: u64 = 1 << 16;

    /// A source or a destination.
    #[inline(always)]
    pub const fn new(flow: FlowType, address: [u64; 2], destination: bool) -> Self {
        let flow = flow.pack() | if destination { Self::DESTINATION } else { 0 };
        Self { flow, address }
    }

    /// The flow type, and whether the address is the destination's.
    pub const fn parts(self) -> (FlowType, bool) {
        (FlowType::unpack(self.flow & !Self::DESTINATION), self.flow & Self::DESTINATION != 0)
    }

    /// All bits stirred into the upper ones.
    #[inline(always)]
    pub const fn hash(self) -> u64 {
        let [a, b] = self.address;
        stir(stir(stir(self.flow) ^ a) ^ b)
    }
}

/// Multiplicative hashing: the upper bits depend on all others (Knuth, TAOCP 6.4).
#[inline(always)]
const fn spread(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The same for a hash of which any bits are taken.
#[inline(always)]
pub const fn stir(word: u64) -> u64 {
    let product = spread(word);
    product ^ product >> 32
}

/// The place of a word among so many, a power of two.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it is below `places`")]
pub const fn home(word: u64, places: usize) -> usize {
    (spread(word) >> (64 - places.trailing_zeros())) as usize
}

/// What the insert hook counts on one CPU.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Inserts {
    /// By flow type.
    pub flows: [Row<1>; FLOWS],
    /// By destination port.
    pub ports: [Place<PortKey>; INSERT_PORTS],
}

/// How many causes of a removal the table below counts: with the flow type they fill a cache line. The others are rare and
/// count on the shared rows.
pub const DELETE_CAUSES: usize = 7;

/// What the delete hook counts on one CPU.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Deletes {
    /// By flow type and the first of [`Event::DELETES`](crate::Event::DELETES).
    pub flows: [Row<DELETE_CAUSES>; FLOWS],
    /// Evictions by destination port.
    pub ports: [Place<PortKey>; LOSS_PORTS],
}

/// Ranked ports of refused flows on one CPU.
pub type DropPorts = [Place<PortKey>; LOSS_PORTS];
/// Ranked addresses on one CPU.
pub type Addresses = [Place<AddressKey>; ADDRESSES];

/// Counts one event of `flow`. False where its place belongs to another flow type.
#[inline(always)]
pub fn count<const N: usize>(flows: &mut [Row<N>; FLOWS], flow: FlowType, which: usize) -> bool {
    let key = flow.pack();
    let row = &mut flows[home(key, FLOWS)];
    if row.flow != key {
        if row.flow != 0 {
            return false;
        }
        row.flow = key;
    }
    if let Some(count) = row.counts.get_mut(which) {
        *count += 1;
    }
    true
}

/// Counts one event of `key` where it has or gets one of its two places.
///
/// A key that keeps coming keeps its place: only [`PATIENCE`] strangers in a row drive it out. So
/// a flood of keys that come once cannot hide one that comes often, and one that has gone quiet
/// makes room.
#[inline(always)]
pub fn rank<K: Copy + PartialEq, const N: usize>(places: &mut [Place<K>; N], key: K, hash: u64) {
    let first = (hash >> 32) as usize & (N - 1);
    let place = &mut places[first];
    if place.key == key {
        place.count += 1;
        place.strangers = 0;
    } else {
        elsewhere(places, key, first, (hash >> 48) as usize & (N - 1));
    }
}

#[inline(never)]
fn elsewhere<K: Copy + PartialEq, const N: usize>(
    places: &mut [Place<K>; N],
    key: K,
    first: usize,
    second: usize,
) {
    let place = &mut places[second & (N - 1)];
    if place.key == key {
        place.count += 1;
        place.strangers = 0;
        return;
    }
    if place.give_up() {
        place.take(key);
        return;
    }
    let place = &mut places[first & (N - 1)];
    if place.give_up() {
        place.take(key);
    }
}

impl<K: Copy> Place<K> {
    /// A stranger wants the place: whether it gets it.
    #[inline(always)]
    fn give_up(&mut self) -> bool {
        self.strangers += 1;
        self.count == 0 || self.strangers > PATIENCE
    }

    /// A reader on another CPU must never see the new key with the old count.
    #[inline(always)]
    fn take(&mut self, key: K) {
        // SAFETY: both are this place's own fields; volatile keeps the order of the two writes.
        unsafe { (&raw mut self.count).write_volatile(0) };
        // SAFETY: as above.
        unsafe { (&raw mut self.key).write_volatile(key) };
        self.strangers = 0;
        // SAFETY: as above.
        unsafe { (&raw mut self.count).write_volatile(1) };
    }
}

/// The largest value of a per-CPU map (`PCPU_MIN_UNIT_SIZE` of include/linux/percpu.h, 5.10 to 7.3).
const MOST: usize = 32 << 10;

const _: () = assert!(size_of::<Inserts>() <= MOST);
const _: () = assert!(size_of::<Deletes>() <= MOST);
const _: () = assert!(size_of::<DropPorts>() <= MOST);
const _: () = assert!(size_of::<Addresses>() <= MOST);
const _: () = assert!(size_of::<Place<AddressKey>>() == 40);

#[cfg(feature = "user")]
// SAFETY: repr(C) of u64 alone: no padding, and every bit pattern is a value.
unsafe impl aya::Pod for Inserts {}

#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for Deletes {}

#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for Place<PortKey> {}

#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for Place<AddressKey> {}

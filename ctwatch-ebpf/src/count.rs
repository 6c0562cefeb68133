//! Finding the row of a flow type and adding to it.

use aya_ebpf::{Global, bindings::BPF_NOEXIST};
use ctwatch_ebpf::{
    Counters, Event, FlowType, Health, OVERFLOW_ROW, ROWS,
    loss::Tuple,
    tally::{self, AddressKey, Addresses, PortKey, stir},
};

use crate::{
    conn::{Conn, forget, number, read, tuple_of},
    filter::passes,
    health::health,
    maps::{
        COUNTERS, DELETES, DROP_ADDRESSES, DROP_PORTS, EVICTION_ADDRESSES, INSERT_ADDRESSES, INSERTS,
        INVALID_ADDRESSES, INVALID_PORTS, ROW_KEYS, ROW_OWNERS,
    },
    tuple::{TUPLE_DST, TUPLE_SRC},
};

/// Whether addresses are ranked: bit 0 sources, bit 1 destinations.
#[unsafe(no_mangle)]
static BY_ADDRESS: Global<u8> = Global::new(0);

/// How far from its place a flow type looks for a row. Userspace sees the overflow row grow when
/// this was too near.
const REACH: u64 = 16;

/// Counts one event of the flow whose original tuple lies at `tuple`.
#[inline(always)]
pub fn count(flow: FlowType, tuple: u64, event: Event) {
    count_two(flow, tuple, event, None);
}

/// Counts one event, and a second one of the same flow where there is one.
#[inline(always)]
pub fn count_two(flow: FlowType, tuple: u64, event: Event, other: Option<Event>) {
    if passes(flow, || tuple) {
        shared(flow, event, other);
    }
}

/// Counts an entry that came from the packet path. Only the one hook that sees inserts may.
#[inline(always)]
pub fn insert(conn: &Conn, ct: u64) {
    if !passes(conn.flow, || tuple_of(ct)) {
        return;
    }
    let Some(table) = INSERTS.get_ptr_mut(0) else { return };
    // SAFETY: the pointer is to this CPU's copy, and its one writer does not nest on a CPU.
    let table = unsafe { &mut *table };
    if !tally::count(&mut table.flows, conn.flow, 0) {
        shared(conn.flow, Event::Insert, None);
    }
    let key = PortKey::new(conn.flow, conn.dport);
    tally::rank(&mut table.ports, key, stir(key.0));
    if BY_ADDRESS.load() != 0
        && let Some(table) = INSERT_ADDRESSES.get_ptr_mut(0)
    {
        rank_addresses(table, conn.flow.pack(), tuple_of(ct));
    }
}

/// Counts an entry that left the table, where `event` is its number. Only the one hook that sees removals may.
#[inline(always)]
pub fn delete(conn: &Conn, ct: u64, event: u32) {
    let place = forget(u64::from(event.wrapping_sub(Event::DELETES[0] as u32)), conn.flow.pack()) as usize;
    if place >= Event::DELETES.len() || !passes(conn.flow, || tuple_of(ct)) {
        return;
    }
    let Some(table) = DELETES.get_ptr_mut(0) else { return };
    // SAFETY: as in `insert`.
    let table = unsafe { &mut *table };
    if (place >= tally::DELETE_CAUSES || !tally::count(&mut table.flows, conn.flow, place))
        && let Some(counters) = COUNTERS.get_ptr_mut(row(conn.flow.pack()))
    {
        // SAFETY: the deletes are the last events, and there is a counter for each.
        unsafe { add_one(counters, Event::DELETES[0] as usize + place) };
    }
    if place == Event::DeleteEarlyDrop as usize - Event::DELETES[0] as usize {
        let key = PortKey::new(conn.flow, conn.dport);
        tally::rank(&mut table.ports, key, stir(key.0));
        if BY_ADDRESS.load() != 0
            && let Some(table) = EVICTION_ADDRESSES.get_ptr_mut(0)
        {
            rank_addresses(table, conn.flow.pack(), tuple_of(ct));
        }
    }
}

/// Counts a flow that was refused. Only hooks that do not nest in each other on one CPU may.
#[inline(always)]
pub fn refuse(flow: FlowType, dport: u16, tuple: u64, event: Event) {
    if !passes(flow, || tuple) {
        return;
    }
    shared(flow, event, None);
    let Some(ports) = DROP_PORTS.get_ptr_mut(0) else { return };
    let key = PortKey::new(flow, dport);
    // SAFETY: as in `insert`.
    tally::rank(unsafe { &mut *ports }, key, stir(key.0));
    if BY_ADDRESS.load() != 0
        && let Some(table) = DROP_ADDRESSES.get_ptr_mut(0)
    {
        rank_addresses(table, flow.pack(), tuple);
    }
}

/// Counts an invalid packet that found no room by its words.
#[inline(always)]
pub fn count_invalid(flow: FlowType) {
    shared(flow, Event::InvalidOther, None);
}

/// Ranks an invalid packet by the port of its flow, or its own, and by its own addresses. All that call it are kprobe
/// programs, of which the kernel does not let one nest in another on a CPU.
#[inline(always)]
pub fn rank_invalid(flow: FlowType, port: u16, tuple: &Tuple) {
    let Some(ports) = INVALID_PORTS.get_ptr_mut(0) else { return };
    let key = PortKey::new(flow, port);
    // SAFETY: as in `insert`.
    tally::rank(unsafe { &mut *ports }, key, stir(key.0));
    if BY_ADDRESS.load() == 0 {
        return;
    }
    let Some(table) = INVALID_ADDRESSES.get_ptr_mut(0) else { return };
    // SAFETY: as in `insert`.
    let table = unsafe { &mut *table };
    for (destination, bit, address) in [(false, 1, tuple.src), (true, 2, tuple.dst)] {
        if BY_ADDRESS.load() & bit != 0 {
            let key = AddressKey::new(flow, address, destination);
            tally::rank(table, key, key.hash());
        }
    }
}

/// In a frame of its own: the stack has 512 bytes for a program and whatever it calls.
#[inline(never)]
fn rank_addresses(table: *mut Addresses, flow: u64, tuple: u64) {
    let flow = FlowType::unpack(flow);
    let tuple = number(tuple);
    // SAFETY: as in `insert`.
    let table = unsafe { &mut *table };
    for (destination, bit, offset) in [(false, 1, TUPLE_SRC.load()), (true, 2, TUPLE_DST.load())] {
        if BY_ADDRESS.load() & bit != 0
            && let Some(address) = read::<[u64; 2]>(tuple + u64::from(offset))
        {
            let key = AddressKey::new(flow, address, destination);
            tally::rank(table, key, key.hash());
        }
    }
}

/// Adds one or two events to the row that all CPUs know by the same number.
#[inline(always)]
fn shared(flow: FlowType, event: Event, other: Option<Event>) {
    if let Some(counters) = COUNTERS.get_ptr_mut(row(flow.pack())) {
        for event in [Some(event), other].into_iter().flatten() {
            // SAFETY: there is a counter for each event.
            unsafe { add_one(counters, event as usize) };
        }
    }
}

/// Adds one to a counter of a row.
///
/// An index would be compared with the length by instructions that LLVM learns too late to leave out: a path to the panic
/// handler stays, at which the verifier rejects the program.
///
/// # Safety
///
/// There must be a counter of this number.
#[inline(always)]
unsafe fn add_one(counters: *mut Counters, number: usize) {
    // SAFETY: the caller answers for the number.
    let counter = unsafe { counters.cast::<u64>().add(number) };
    // SAFETY: the pointer is to this CPU's copy, and each counter has one hook that writes it, which the kernel does not
    // let nest on one CPU: a plain addition loses nothing.
    unsafe { *counter += 1 };
}

/// The row of a packed flow type.
#[inline(always)]
fn row(key: u64) -> u32 {
    let home = tally::home(key, ROWS as usize) as u32;
    match ROW_KEYS.get(home) {
        Some(found) if *found == key => home,
        _ => search_row(key, home.into()) as u32,
    }
}

/// The row of a flow type that is not at its home: further on, or claimed now. A row never
/// changes its flow type, so that every CPU comes to the same answer.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn search_row(key: u64, home: u64) -> u64 {
    for step in 0..REACH {
        let index = try_row(key, home + step);
        if index != u64::from(OVERFLOW_ROW) {
            return index;
        }
    }
    health(Health::Overflow);
    OVERFLOW_ROW.into()
}

/// The row at this place if it is this flow type's, or is from now on; else the overflow row.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn try_row(key: u64, place: u64) -> u64 {
    let index = place as u32 & (ROWS - 1);
    let taken = OVERFLOW_ROW.into();
    if index == OVERFLOW_ROW {
        return taken;
    }
    let Some(slot) = ROW_KEYS.get_ptr_mut(index) else { return taken };
    // SAFETY: the pointer is into the map; the word is written once, by the row's owner.
    let found = unsafe { slot.read_volatile() };
    if found == key {
        return index.into();
    }
    if found != 0 {
        return taken;
    }
    if ROW_OWNERS.insert(index, key, u64::from(BPF_NOEXIST)).is_ok() {
        // SAFETY: as above; this context has just become the row's owner.
        unsafe { slot.write_volatile(key) };
        return index.into();
    }
    // Another CPU claimed it between the two looks, perhaps for the same flow type.
    // SAFETY: entries of this map are never removed.
    if unsafe { ROW_OWNERS.get(index) } == Some(&key) { index.into() } else { taken }
}

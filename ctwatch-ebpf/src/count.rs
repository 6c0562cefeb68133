//! Finding the row of a flow type and adding to it.

use aya_ebpf::{Global, bindings::BPF_NOEXIST};
use ctwatch_ebpf::{Event, FlowType, Health, OVERFLOW_ROW, ROWS};

use crate::maps::{COUNTERS, HEALTH, ROW_KEYS, ROW_OWNERS};

/// Whether any filter below is set.
#[unsafe(no_mangle)]
static FILTER: Global<u8> = Global::new(0);
/// The only address family to count, or 0 for both.
#[unsafe(no_mangle)]
static FILTER_FAMILY: Global<u8> = Global::new(0);
/// The only namespace to count, or 0 for all.
#[unsafe(no_mangle)]
static FILTER_NETNS: Global<u32> = Global::new(0);
/// One bit for each L4 protocol number to count.
#[unsafe(no_mangle)]
static FILTER_PROTO: Global<[u64; 4]> = Global::new([u64::MAX; 4]);

/// How far from its place a flow type looks for a row. Userspace sees the overflow row grow when
/// this was too near.
const REACH: u32 = 16;

/// Counts one event.
#[inline(always)]
pub fn count(flow: FlowType, event: Event) {
    count_two(flow, event, None);
}

/// Counts one event, and a second one of the same flow where there is one.
#[inline(always)]
pub fn count_two(flow: FlowType, event: Event, other: Option<Event>) {
    if !passes(flow) {
        return;
    }
    if let Some(counters) = COUNTERS.get_ptr_mut(row(flow.pack())) {
        // SAFETY: the pointer is to this CPU's copy, and each counter has one hook that writes
        // it, which the kernel does not let nest on one CPU: a plain addition loses nothing.
        unsafe { (*counters).0[event as usize] += 1 };
        if let Some(other) = other {
            // SAFETY: as above.
            unsafe { (*counters).0[other as usize] += 1 };
        }
    }
}

/// Whether the user's filter lets a flow type through.
#[inline(always)]
pub fn passes(flow: FlowType) -> bool {
    FILTER.load() == 0 || wanted(flow)
}

/// Counts something missed.
#[inline(always)]
pub fn health(what: Health) {
    if let Some(counters) = HEALTH.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's copy.
        unsafe { (*counters).0[what as usize] += 1 };
    }
}

#[inline(always)]
fn wanted(flow: FlowType) -> bool {
    let family = FILTER_FAMILY.load();
    let netns = FILTER_NETNS.load();
    let [a, b, c, d] = FILTER_PROTO.load();
    let word = match flow.proto >> 6 {
        0 => a,
        1 => b,
        2 => c,
        _ => d,
    };
    (family == 0 || family == flow.family)
        && (netns == 0 || netns == flow.netns)
        && word >> (flow.proto & 63) & 1 != 0
}

/// The row of a packed flow type.
#[inline(always)]
fn row(key: u64) -> u32 {
    let home = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - ROWS.trailing_zeros())) as u32;
    match ROW_KEYS.get(home) {
        Some(found) if *found == key => home,
        _ => search(key, home),
    }
}

/// The row of a flow type that is not at its home: further on, or claimed now. A row never
/// changes its flow type, so that every CPU comes to the same answer.
#[inline(never)]
fn search(key: u64, home: u32) -> u32 {
    for step in 0..REACH {
        let index = (home + step) & (ROWS - 1);
        if index == OVERFLOW_ROW {
            continue;
        }
        let Some(slot) = ROW_KEYS.get_ptr_mut(index) else {
            continue;
        };
        // SAFETY: the pointer is into the map; the word is written once, by the row's owner.
        let found = unsafe { slot.read_volatile() };
        if found == key {
            return index;
        }
        if found != 0 {
            continue;
        }
        if ROW_OWNERS.insert(index, key, u64::from(BPF_NOEXIST)).is_ok() {
            // SAFETY: as above; this context has just become the row's owner.
            unsafe { slot.write_volatile(key) };
            return index;
        }
        // Another CPU claimed it between the two looks, perhaps for the same flow type.
        // SAFETY: entries of this map are never removed.
        if unsafe { ROW_OWNERS.get(index) } == Some(&key) {
            return index;
        }
    }
    health(Health::Overflow);
    OVERFLOW_ROW
}

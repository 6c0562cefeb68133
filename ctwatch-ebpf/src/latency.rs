//! Timing functions of the packet path, only while somebody asks for it: the maps, and what their hooks do at entry
//! and return.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, PerCpuArray},
};
use ctwatch_ebpf::timing::{Receive, Stage, Timing, bucket};

use crate::{
    context::owner,
    slot::{CONTEXTS, Shared},
};

/// When the functions that a context is in were entered.
#[repr(C)]
pub struct Entries {
    /// As in [`crate::slot::Context`].
    owner: Shared<u64>,
    /// 0 where the function is not being executed.
    began_ns: [Shared<u64>; Stage::COUNT],
}

/// Entries by context, placed as in `CONTEXT`. Written at each entry, read and cleared at each return; two tasks that
/// meet in one slot while both are inside leave an entry without return and a return without entry, both counted.
#[map]
static LATENCY_ENTRIES: Array<Entries> = Array::with_max_entries(CONTEXTS, 0);

/// The histogram of each stage. Written at entries and returns on their own CPU, summed by userspace; cannot fill.
#[map]
static LATENCY: PerCpuArray<Timing> = PerCpuArray::with_max_entries(Stage::COUNT as u32, 0);

/// The receive softirq. Written at its beginning and end and by the returns inside it, on their own CPU, summed by
/// userspace; one entry.
#[map]
static LATENCY_RECEIVE: PerCpuArray<Receive> = PerCpuArray::with_max_entries(1, 0);

/// The clock; a hook reads it last at an entry and first at a return.
#[inline(always)]
pub fn clock() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// At a function's entry.
#[inline(always)]
pub fn enter(stage: Stage, sp: u64) {
    let (owner, index) = owner(sp);
    let (Some(entries), Some(timing)) = (LATENCY_ENTRIES.get_ptr(index), LATENCY.get_ptr_mut(stage as u32))
    else {
        return;
    };
    // SAFETY: the pointer is to this CPU's copy, and only this program writes `entered` of this stage, which the
    // kernel does not let nest on one CPU.
    unsafe { (*timing).entered += 1 };
    // SAFETY: the pointer is into the map, which outlives the program, and the slot has nothing but `Shared` words.
    let entries = unsafe { &*entries };
    if entries.owner.get() != owner {
        entries.owner.set(owner);
        entries.began_ns.iter().for_each(|began| began.set(0));
    }
    entries.began_ns[stage as usize].set(clock());
}

/// At its return, which was at `now`.
#[inline(always)]
pub fn leave(stage: Stage, now: u64, sp: u64) {
    let (owner, index) = owner(sp);
    let (Some(entries), Some(timing)) = (LATENCY_ENTRIES.get_ptr(index), LATENCY.get_ptr_mut(stage as u32))
    else {
        return;
    };
    // SAFETY: as in `enter`.
    let entries = unsafe { &*entries };
    // SAFETY: this CPU's copy; of these fields of this stage only this program writes any.
    let timing = unsafe { &mut *timing };
    let began = if entries.owner.get() == owner { entries.began_ns[stage as usize].take() } else { 0 };
    if began == 0 {
        timing.orphans += 1;
        return;
    }
    // The clock is the same on all CPUs, as far as the kernel can make it so.
    let ns = now.saturating_sub(began);
    timing.sum_ns += ns;
    if timing.min_ns == 0 || ns < timing.min_ns {
        timing.min_ns = ns.max(1);
    }
    if let Some(count) = timing.buckets.get_mut(bucket(ns)) {
        *count += 1;
    }
    if let Some(receive) = LATENCY_RECEIVE.get_ptr_mut(0)
        // SAFETY: this CPU's copy. While a softirq runs on a CPU nothing else does that could be timed.
        && unsafe { (*receive).began_ns } != 0
    {
        // SAFETY: as above.
        unsafe { (*receive).tracking_ns += ns };
    }
}

/// At the beginning of a receive softirq.
#[inline(always)]
pub fn receive_begins() {
    if let Some(receive) = LATENCY_RECEIVE.get_ptr_mut(0) {
        // SAFETY: this CPU's copy; softirqs do not nest.
        unsafe { (*receive).began_ns = clock() };
    }
}

/// At its end, which was at `now`.
#[inline(always)]
pub fn receive_ends(now: u64) {
    if let Some(receive) = LATENCY_RECEIVE.get_ptr_mut(0) {
        // SAFETY: as above.
        let receive = unsafe { &mut *receive };
        if receive.began_ns != 0 {
            receive.total_ns += now.saturating_sub(receive.began_ns);
            receive.began_ns = 0;
        }
    }
}

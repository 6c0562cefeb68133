//! What a context carries from the entry of a function to its return.
//!
//! A per-CPU slot would not do: a softirq nests inside process context, and a preempted task may
//! return on another CPU (on 7.3, preemptible by default, such a slot drifted by tens of
//! thousands). So a slot belongs to the current task where the stack pointer lies on its stack,
//! else, on an interrupt stack, to the CPU.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_task, bpf_get_smp_processor_id, bpf_probe_read_kernel},
};
use ctwatch_ebpf::{Health, tally::home};

use crate::{
    arch::THREAD_SIZE,
    health::health,
    maps::CONTEXT,
    slot::{CPUS, Context, TASKS},
};

/// `task_struct.stack`
#[unsafe(no_mangle)]
static TASK_STACK: Global<u32> = Global::new(0);

/// The owner of what runs at stack pointer `sp`, and its slot's index.
#[inline(always)]
pub fn owner(sp: u64) -> (u64, u32) {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helper checks the address.
    let stack = unsafe { bpf_probe_read_kernel((task + u64::from(TASK_STACK.load())) as *const u64) };
    if let Ok(stack) = stack
        && sp.wrapping_sub(stack) < THREAD_SIZE
    {
        (task, CPUS + home(task >> 6, TASKS as usize) as u32)
    } else {
        // SAFETY: no arguments.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        (u64::from(cpu) << 1 | 1, cpu & (CPUS - 1))
    }
}

/// The slot of what runs at `sp`, for a function that is being entered.
#[inline(always)]
pub fn enter(sp: u64) -> Option<&'static Context> {
    let (owner, slot) = slot_of(sp)?;
    if slot.owner.get() != owner {
        if slot.confirm_nfct.take() != 0 {
            health(Health::NoReturn);
        }
        slot.owner.set(owner);
        slot.delete_ct.set(0);
        slot.iterate_portid.set(0);
        slot.alloc_orig.set(0);
        slot.refused.set(0);
        slot.clash_nfct.set(0);
        slot.clash_ct.set(0);
        slot.check_ct.set(0);
        slot.track_skb.set(0);
    }
    Some(slot)
}

/// The slot of what runs at `sp`, where its entry was seen.
#[inline(always)]
pub fn inside(sp: u64) -> Option<&'static Context> {
    let (owner, slot) = slot_of(sp)?;
    (slot.owner.get() == owner).then_some(slot)
}

/// The owner of what runs at `sp`, and its slot. Two contexts with the same hash share a slot, and two CPUs may use it at
/// once. `owner` says whose the slot is.
#[inline(always)]
fn slot_of(sp: u64) -> Option<(u64, &'static Context)> {
    let (owner, index) = owner(sp);
    let slot = CONTEXT.get_ptr(index)?;
    // SAFETY: the pointer is into the map, which outlives the program, and a slot has nothing but `Shared` words.
    Some((owner, unsafe { &*slot }))
}

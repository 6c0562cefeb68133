//! What the programs know of their own work.

use core::arch::asm;

use ctwatch_ebpf::Health;

use crate::maps::{DISBELIEVED, HEALTH};

/// Counts something missed.
#[inline(always)]
pub fn health(what: Health) {
    if let Some(counters) = HEALTH.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's copy, so that the counter is in it too.
        unsafe { add_one(&raw mut (*counters).0[what as usize]) };
    }
}

/// Whether what the kernel's machine code seemed to say was caught being wrong.
#[inline(always)]
pub fn disbelieved() -> bool {
    DISBELIEVED.get(0).is_some_and(|disbelieved| *disbelieved != 0)
}

/// Registers or the stack held something else than the kernel's machine code seemed to say: they are not asked again.
///
/// From then on hooks that need no machine code know the same. What happens until userspace has attached those is known
/// to be lost.
#[inline(always)]
pub fn disbelieve() {
    health(Health::Misread);
    if let Some(disbelieved) = DISBELIEVED.get_ptr_mut(0) {
        // SAFETY: the pointer is into the map; the word is only ever set, whole.
        unsafe { disbelieved.write_volatile(1) };
    }
}

/// Adds one in a single instruction: this must be exact where a preempted hook and another meet on one CPU (7.3).
///
/// # Safety
///
/// The counter must lie in a map.
#[inline(always)]
pub unsafe fn add_one(counter: *mut u64) {
    // SAFETY: adds to that word alone, which is aligned; BPF_XADD is older than 5.10.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) 1_u64) };
}

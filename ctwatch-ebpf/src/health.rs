//! What the programs know of their own work.

use ctwatch_ebpf::Health;

use crate::maps::HEALTH;

/// Counts something missed.
#[inline(always)]
pub fn health(what: Health) {
    if let Some(counters) = HEALTH.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's copy.
        unsafe { (*counters).0[what as usize] += 1 };
    }
}

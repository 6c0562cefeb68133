//! match-proto: int net_ratelimit(void)
//!
//! `__nf_conntrack_alloc` calls it exactly when it refuses a new flow because the table is full
//! (`net_warn_ratelimited`, 5.10 to 7.3), whether or not the line is then logged. Unlike
//! `early_drop`, which runs for each new flow of a full table, it runs for refusals alone; the
//! caller's address tells them from the other users of the limiter.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use ctwatch_ebpf::{Caller, Event, Health};

use super::{entry_sp, fentry_sp, nf_ct_delete::caller};
use crate::{
    conn::{Memory as _, Probed, read},
    context,
    count::{health, refuse},
    trace,
};

/// How far the stack may grow between the entry of `__nf_conntrack_alloc` and its call from there.
const FRAME: u64 = 512;

/// How many words from a trampoline program's arguments the caller's address may lie: behind the
/// return value of a program at the return, the frame pointer, and the address inside
/// `net_ratelimit` (x86-64, 5.5 to 7.3).
const FRAME_WORDS: usize = 4;

/// Tells `__nf_conntrack_alloc`, whose return knows whose flow it was.
#[fentry(function = "net_ratelimit")]
fn ratelimit_bpf(ctx: FEntryContext) -> i32 {
    let Some(words) = read::<[u64; FRAME_WORDS]>(ctx.as_ptr() as u64) else { return 0 };
    if !words.iter().any(|word| caller(*word) == Caller::Alloc as u32) {
        return 0;
    }
    health(Health::Refused);
    if let Some(slot) = context::enter(fentry_sp(&ctx)) {
        slot.refused = 1;
    }
    0
}

#[kprobe]
fn ratelimit(ctx: ProbeContext) -> u32 {
    let sp = entry_sp(&ctx);
    let Some(address) = read::<u64>(sp) else { return 0 };
    if caller(address) != Caller::Alloc as u32 {
        return 0;
    }
    health(Health::Refused);
    // What another call of `__nf_conntrack_alloc` left there, whose own entry was skipped, must not pass for this one's.
    if let Some(slot) = context::inside(sp)
        && slot.alloc_sp.wrapping_sub(sp) < FRAME
        && let Some(flow) = Probed::tuple_flow(slot.alloc_net, slot.alloc_orig)
    {
        slot.refused = 1;
        health(Health::RefusedKnown);
        refuse(flow, slot.alloc_orig, Event::DropTableFull);
        trace::refused(Event::DropTableFull, flow, slot.alloc_orig, slot.alloc_zone, sp);
    }
    0
}

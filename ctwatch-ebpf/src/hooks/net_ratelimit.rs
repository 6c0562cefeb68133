//! match-proto: int net_ratelimit(void)
//!
//! `__nf_conntrack_alloc` calls it exactly when it refuses a new flow because the table is full
//! (`net_warn_ratelimited`, 5.10 to 7.3), whether or not the line is then logged. Unlike
//! `early_drop`, which runs for each new flow of a full table, it runs for refusals alone; the
//! caller's address tells them from the other users of the limiter, and the caller's registers
//! whose flow it was.

use aya_ebpf::{
    EbpfContext as _, Global,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use ctwatch_ebpf::{Event, Health};

use super::{entry_sp, fentry_sp};
use crate::{
    arch::{FRAME_WORDS, return_address_at},
    callers::in_alloc,
    conn::{Newcomer, Probed, Registers, read},
    context,
    count::refuse,
    health::{disbelieve, disbelieved, health},
    maps::ALLOC_WATCHED,
    trace,
};

/// How far the stack may grow between the entry of `__nf_conntrack_alloc` and its call from there.
const FRAME: u64 = 512;

/// Whether the caller's registers tell whose flow it refuses.
#[unsafe(no_mangle)]
static REFUSED_BY_REGISTERS: Global<u8> = Global::new(0);

/// Whether refusals are counted here, so that the return of `__nf_conntrack_alloc` must not.
#[inline(always)]
pub fn by_registers() -> bool {
    REFUSED_BY_REGISTERS.load() != 0 && !disbelieved()
}

/// Tells `__nf_conntrack_alloc`, whose return knows whose flow it was.
#[fentry(function = "net_ratelimit")]
fn ratelimit_bpf(ctx: FEntryContext) -> i32 {
    let Some(words) = read::<[u64; FRAME_WORDS]>(ctx.as_ptr() as u64) else { return 0 };
    if !words.iter().any(|word| in_alloc(*word)) {
        return 0;
    }
    health(Health::Refused);
    if let Some(slot) = context::enter(fentry_sp(&ctx)) {
        slot.refused.set(1);
    }
    0
}

#[kprobe]
fn ratelimit(ctx: ProbeContext) -> u32 {
    let sp = entry_sp(&ctx);
    let Some(address) = read::<u64>(return_address_at(sp)) else { return 0 };
    if !in_alloc(address) {
        return 0;
    }
    if !count(&ctx, sp) {
        // Nothing preempts a kprobe program, so one that it knows needs no note before: a report that reads the
        // counters meanwhile must not take it for unknown.
        health(Health::Refused);
    }
    0
}

/// Counts the refusal at hand. False where it is not known whose flow it was.
#[inline(always)]
fn count(ctx: &ProbeContext, sp: u64) -> bool {
    let believed = by_registers();
    let Some(Registers { net, zone, orig }) = refused(ctx, sp, believed) else { return false };
    let Some(Newcomer { flow, dport }) = Probed::newcomer(net, orig) else {
        if believed {
            disbelieve();
        }
        return false;
    };
    refuse(flow, dport, orig, Event::DropTableFull);
    trace::refused(Event::DropTableFull, flow, orig, zone, sp);
    true
}

/// Namespace, zone and tuple of the flow that is being refused.
#[inline(always)]
fn refused(ctx: &ProbeContext, sp: u64, by_registers: bool) -> Option<Registers> {
    if by_registers {
        if ALLOC_WATCHED.get(0).is_none_or(|watched| *watched != 0) {
            // For the return of `__nf_conntrack_alloc`.
            context::enter(sp)?.refused.set(1);
        }
        return Some(Registers::of(ctx.as_ptr() as u64));
    }
    let slot = if REFUSED_BY_REGISTERS.load() == 0 {
        context::inside(sp)?
    } else {
        // Registers are no longer believed, and the return of `__nf_conntrack_alloc` may be watched, not its entry.
        let slot = context::enter(sp)?;
        slot.refused.set(1);
        slot
    };
    // What another call of `__nf_conntrack_alloc` left there, whose own entry was skipped, must not pass for this one's.
    if slot.alloc_orig.get() == 0 || slot.alloc_sp.get().wrapping_sub(sp) >= FRAME {
        return None;
    }
    slot.refused.set(1);
    Some(Registers { net: slot.alloc_net.get(), zone: slot.alloc_zone.get(), orig: slot.alloc_orig.get() })
}

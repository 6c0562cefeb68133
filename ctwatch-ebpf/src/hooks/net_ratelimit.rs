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
use ctwatch_ebpf::{Caller, Event, Health};

use super::{entry_sp, fentry_sp};
use crate::{
    arch::{FRAME_WORDS, return_address_at},
    callers::within,
    conn::{Memory as _, Probed, number, read},
    context,
    count::refuse,
    health::{disbelieve, disbelieved, health},
    trace,
};

/// How far the stack may grow between the entry of `__nf_conntrack_alloc` and its call from there.
const FRAME: u64 = 512;

/// Whether the caller's registers tell whose flow it refuses, and where `pt_regs` has them.
#[unsafe(no_mangle)]
static REFUSED_BY_REGISTERS: Global<u8> = Global::new(0);
#[unsafe(no_mangle)]
static REFUSED_NET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REFUSED_ZONE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REFUSED_ORIG: Global<u32> = Global::new(0);

/// Whether refusals are counted here, so that the return of `__nf_conntrack_alloc` must not.
#[inline(always)]
pub fn by_registers() -> bool {
    REFUSED_BY_REGISTERS.load() != 0 && !disbelieved()
}

/// Tells `__nf_conntrack_alloc`, whose return knows whose flow it was.
#[fentry(function = "net_ratelimit")]
fn ratelimit_bpf(ctx: FEntryContext) -> i32 {
    let Some(words) = read::<[u64; FRAME_WORDS]>(ctx.as_ptr() as u64) else { return 0 };
    if !words.iter().any(|word| within(*word, Caller::Alloc)) {
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
    if !within(address, Caller::Alloc) {
        return 0;
    }
    count(&ctx, sp);
    // Behind what is known of it: whoever reads both in between must not take it for unknown.
    health(Health::Refused);
    0
}

/// Counts a refusal whose flow can be found.
#[inline(always)]
fn count(ctx: &ProbeContext, sp: u64) {
    let believed = by_registers();
    let Some([net, zone, orig]) = refused(ctx, believed) else { return };
    let Some(flow) = Probed::tuple_flow(net, orig) else {
        if believed {
            disbelieve();
        }
        return;
    };
    health(Health::RefusedKnown);
    refuse(flow, orig, Event::DropTableFull);
    trace::refused(Event::DropTableFull, flow, orig, zone, sp);
}

/// Namespace, zone and tuple of the flow that is being refused.
#[inline(always)]
fn refused(ctx: &ProbeContext, by_registers: bool) -> Option<[u64; 3]> {
    let sp = entry_sp(ctx);
    if by_registers {
        // For the return of `__nf_conntrack_alloc`, if that is watched.
        context::enter(sp)?.refused.set(1);
        let register = |place: u32| read(number(ctx.as_ptr() as u64) + u64::from(place));
        return Some([
            register(REFUSED_NET.load())?,
            register(REFUSED_ZONE.load())?,
            register(REFUSED_ORIG.load())?,
        ]);
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
    Some([slot.alloc_net.get(), slot.alloc_zone.get(), slot.alloc_orig.get()])
}

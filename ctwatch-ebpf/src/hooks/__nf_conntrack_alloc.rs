//! match-proto: struct nf_conn *__nf_conntrack_alloc(struct net *net, const struct nf_conntrack_zone *zone, const struct nf_conntrack_tuple *orig, const struct nf_conntrack_tuple *repl, gfp_t gfp, u32 hash)
//!
//! `orig` is the newcomer's tuple. Returns -ENOMEM when the table is full, which it has asked
//! `net_ratelimit` to log by then, or when the slab has nothing left: drop no_memory.
//!
//! Where the call of `net_ratelimit` tells whose flow is refused, this is attached only for what else
//! the kernel's counters tell of; elsewhere once a table comes near its limit, which a refusal needs.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use ctwatch_ebpf::{Event, Health};

use super::{entry_sp, fentry_sp, net_ratelimit::by_registers, return_sp, returned, trampoline_sp};
use crate::{
    conn::{Direct, Memory as _, Newcomer, Probed, dport, number},
    context,
    count::refuse,
    health::health,
    trace,
};

/// `MAX_ERRNO` of include/linux/err.h: pointers above this are errors.
const ERR_FLOOR: u64 = (-4095_i64) as u64;

/// Attached only while evictions are traced: counting needs no newcomer.
#[fentry(function = "__nf_conntrack_alloc")]
fn alloc_enter_bpf(ctx: FEntryContext) -> i32 {
    trace::newcomer(ctx.arg(0), ctx.arg(1), ctx.arg(2), fentry_sp(&ctx));
    0
}

#[fexit(function = "__nf_conntrack_alloc")]
fn alloc_bpf(ctx: FExitContext) -> i32 {
    if returned(&ctx, 6) < ERR_FLOOR {
        if trace::on() {
            trace::newcomer_left(trampoline_sp(&ctx));
        }
        return 0;
    }
    // Only a refusal gets here, so that a flow that is let in costs one comparison.
    let refused = match context::inside(trampoline_sp(&ctx)) {
        Some(slot) => slot.refused.take() != 0,
        None => false,
    };
    if refused && by_registers() {
        return 0;
    }
    if let Some(flow) = Direct::tuple_flow(ctx.arg(0), ctx.arg(2)) {
        let event = if refused { Event::DropTableFull } else { Event::DropNoMemory };
        if refused {
            health(Health::RefusedKnown);
        }
        let tuple = number(ctx.arg(2));
        refuse(flow, dport(tuple), tuple, event);
        trace::refused(event, flow, tuple, number(ctx.arg(1)), trampoline_sp(&ctx));
    }
    0
}

#[kprobe]
fn alloc(ctx: ProbeContext) -> u32 {
    if let Some(net) = ctx.arg::<u64>(0)
        && let Some(orig) = ctx.arg::<u64>(2)
        && let Some(slot) = context::enter(entry_sp(&ctx))
    {
        slot.alloc_net.set(net);
        slot.alloc_orig.set(orig);
        slot.alloc_sp.set(entry_sp(&ctx));
        slot.refused.set(0);
        slot.alloc_zone.set(if trace::on() { ctx.arg(1).unwrap_or(0) } else { 0 });
    }
    0
}

/// Attached only once the kernel's own counters tell of a drop that is no refusal.
#[kretprobe]
fn alloc_ret(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<u64>() < ERR_FLOOR {
        trace::newcomer_left(return_sp(&ctx));
        return 0;
    }
    match context::inside(return_sp(&ctx)) {
        Some(slot) if slot.alloc_orig.get() != 0 => {
            if slot.refused.get() == 0
                && let Some(Newcomer { flow, dport }) =
                    Probed::newcomer(slot.alloc_net.get(), slot.alloc_orig.get())
            {
                refuse(flow, dport, slot.alloc_orig.get(), Event::DropNoMemory);
                trace::refused(
                    Event::DropNoMemory,
                    flow,
                    slot.alloc_orig.get(),
                    slot.alloc_zone.get(),
                    return_sp(&ctx),
                );
            }
            slot.alloc_orig.set(0);
        }
        _ => health(Health::NoEntry),
    }
    0
}

//! match-proto: int early_drop(struct net *net, unsigned int hash)
//!
//! Called only when the namespace's table is full. Returns 0 exactly when the new flow is
//! refused; `__nf_conntrack_alloc`, its only caller, knows whose flow that is. Its victims are
//! counted where they leave the table.

use aya_ebpf::{
    macros::{fexit, kretprobe},
    programs::{FExitContext, RetProbeContext},
};
use ctwatch_ebpf::{Event, Health};

use super::{return_sp, returned, trampoline_sp};
use crate::{
    conn::{Memory as _, Probed},
    context,
    count::{count, health},
    trace,
};

#[fexit(function = "early_drop")]
fn early_drop_bpf(ctx: FExitContext) -> i32 {
    if returned(&ctx, 2) as u8 == 0
        && let Some(slot) = context::enter(trampoline_sp(&ctx))
    {
        slot.refused = 1;
    }
    0
}

#[kretprobe]
fn early_drop_ret(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<u8>() != 0 {
        return 0;
    }
    match context::inside(return_sp(&ctx)) {
        Some(slot) if slot.alloc_orig != 0 => {
            slot.refused = 1;
            if let Some(flow) = Probed::tuple_flow(slot.alloc_net, slot.alloc_orig) {
                count(flow, Event::DropTableFull);
                trace::refused(Event::DropTableFull, flow, slot.alloc_orig, slot.alloc_zone, return_sp(&ctx));
            }
        }
        _ => health(Health::NoEntry),
    }
    0
}

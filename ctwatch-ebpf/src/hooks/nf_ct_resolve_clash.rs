//! match-proto: int nf_ct_resolve_clash(struct sk_buff *skb, struct nf_conntrack_tuple_hash *h, u32 reply_hash)
//!
//! Called by `__nf_conntrack_confirm` when another entry took the tuple first. Returns 1 when
//! both packets live: the loser's packet was given the winner's entry, or the loser entered the
//! table in the reply direction only (`IPS_NAT_CLASH`, gone after one second), past
//! `__nf_conntrack_hash_insert`. Returns 0 when the loser's packet is dropped.

use aya_ebpf::{
    macros::{fexit, kprobe, kretprobe},
    programs::{FExitContext, ProbeContext, RetProbeContext},
};
use ctwatch_ebpf::{CONN_READ, Event, Health};

use super::{entry_sp, return_sp, returned, trampoline_sp};
use crate::{
    conn::{Conn, IPS_NAT_CLASH, Memory as _, NFCT_INFO, Probed, nfct, number, status, tuple_of},
    context,
    count::{count, count_two},
    health::health,
    trace,
};

#[fexit(function = "nf_ct_resolve_clash")]
fn resolve_clash_bpf(ctx: FExitContext) -> i32 {
    let Some(nfct) = nfct(ctx.arg(0)) else { return 0 };
    let ct = nfct & !NFCT_INFO;
    let Some(conn) = Probed::conn(ct) else { return 0 };
    let dropped = returned(&ctx, 3) as u32 == 0;
    if dropped && let Some(slot) = context::enter(trampoline_sp(&ctx)) {
        slot.clash_ct.set(ct);
    }
    // Merged, the packet now carries the winner, whose tuple hash `h` is; reply-only, it still
    // carries the loser.
    let merged = number(ctx.arg(1)).wrapping_sub(ct) < CONN_READ as u64;
    resolved(&conn, ct, dropped, merged, trampoline_sp(&ctx));
    0
}

#[kprobe]
fn resolve_clash(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg::<u64>(0)
        && let Some(nfct) = nfct(skb)
        && let Some(slot) = context::enter(entry_sp(&ctx))
    {
        slot.clash_nfct.set(nfct);
    }
    0
}

#[kretprobe]
fn resolve_clash_ret(ctx: RetProbeContext) -> u32 {
    match context::inside(return_sp(&ctx)) {
        Some(slot) if slot.clash_nfct.get() != 0 => {
            let ct = slot.clash_nfct.take() & !NFCT_INFO;
            slot.clash_ct.set(ct);
            // The loser may have been freed by now, but its slab keeps it an nf_conn
            // (SLAB_TYPESAFE_BY_RCU), and its tuple and namespace stay until it is used again,
            // which needs a packet on this CPU's turn.
            if let Some(loser) = Probed::conn(ct) {
                resolved(&loser, ct, ctx.ret::<u32>() == 0, false, return_sp(&ctx));
            }
        }
        _ => health(Health::NoEntry),
    }
    0
}

#[inline(always)]
fn resolved(conn: &Conn, ct: u64, dropped: bool, merged: bool, sp: u64) {
    let tuple = tuple_of(ct);
    let reply_only = !merged && status(ct) & IPS_NAT_CLASH != 0;
    let event = match (dropped, reply_only) {
        (true, _) => Event::FailedClash,
        (false, true) => Event::ClashReplyOnly,
        (false, false) => Event::ClashResolve,
    };
    if dropped {
        count(conn.flow, tuple, event);
    } else {
        count_two(conn.flow, tuple, Event::ClashResolve, reply_only.then_some(Event::ClashReplyOnly));
    }
    trace::entry(event, conn, ct, sp);
}

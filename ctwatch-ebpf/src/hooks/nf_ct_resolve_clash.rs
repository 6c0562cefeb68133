//! match-proto: int nf_ct_resolve_clash(struct sk_buff *skb, struct nf_conntrack_tuple_hash *h, u32 reply_hash)
//!
//! Called by `__nf_conntrack_confirm` when another entry took the tuple first. Returns 1 when
//! both packets live: the loser's packet was given the winner's entry, or the loser entered the
//! table in the reply direction only (`IPS_NAT_CLASH`, gone after one second), past
//! `__nf_conntrack_hash_insert`. Returns 0 when the loser's packet is dropped.

use aya_ebpf::{
    macros::{fexit, kretprobe},
    programs::{FExitContext, RetProbeContext},
};
use ctwatch_ebpf::{CONN_READ, Event, Health};

use super::{address_of, return_sp, returned, trampoline_sp};
use crate::{
    conn::{IPS_NAT_CLASH, Memory as _, NFCT_INFO, Probed, nfct},
    context,
    count::{count, count_two, health},
    trace,
};

#[fexit(function = "nf_ct_resolve_clash")]
fn resolve_clash_bpf(ctx: FExitContext) -> i32 {
    let Some(nfct) = nfct(ctx.arg(0)) else { return 0 };
    let ct = nfct & !NFCT_INFO;
    let Some(conn) = Probed::conn(ct) else { return 0 };
    if returned(&ctx, 3) as u32 == 0 {
        if let Some(slot) = context::enter(trampoline_sp(&ctx)) {
            slot.clash = 1;
        }
        count(conn.flow, Event::FailedClash);
        trace::entry(Event::FailedClash, &conn, ct, trampoline_sp(&ctx));
        return 0;
    }
    // Merged, the packet now carries the winner, whose tuple hash `h` is; reply-only, it still
    // carries the loser.
    let merged = address_of(ctx.arg(1)).wrapping_sub(ct) < CONN_READ as u64;
    let reply_only = !merged && conn.status & IPS_NAT_CLASH != 0;
    count_two(conn.flow, Event::ClashResolve, reply_only.then_some(Event::ClashReplyOnly));
    let event = if reply_only { Event::ClashReplyOnly } else { Event::ClashResolve };
    trace::entry(event, &conn, ct, trampoline_sp(&ctx));
    0
}

#[kretprobe]
fn resolve_clash_ret(ctx: RetProbeContext) -> u32 {
    match context::inside(return_sp(&ctx)) {
        Some(slot) if slot.confirm_nfct != 0 => {
            slot.clash = 1;
            // The loser may have been freed by now, but its slab keeps it an nf_conn
            // (SLAB_TYPESAFE_BY_RCU), and its tuple and namespace stay until it is used again,
            // which needs a packet on this CPU's turn.
            if let Some(loser) = Probed::conn(slot.confirm_nfct & !NFCT_INFO) {
                let ct = slot.confirm_nfct & !NFCT_INFO;
                if ctx.ret::<u32>() == 0 {
                    count(loser.flow, Event::FailedClash);
                    trace::entry(Event::FailedClash, &loser, ct, return_sp(&ctx));
                } else {
                    let reply_only = loser.status & IPS_NAT_CLASH != 0;
                    count_two(loser.flow, Event::ClashResolve, reply_only.then_some(Event::ClashReplyOnly));
                    let event = if reply_only { Event::ClashReplyOnly } else { Event::ClashResolve };
                    trace::entry(event, &loser, ct, return_sp(&ctx));
                }
            }
        }
        _ => health(Health::NoEntry),
    }
    0
}

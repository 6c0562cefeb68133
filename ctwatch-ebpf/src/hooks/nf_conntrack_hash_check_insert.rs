//! match-proto: int nf_conntrack_hash_check_insert(struct nf_conn *ct)
//!
//! Returns 0 for an entry that ctnetlink, or since 6.0 a BPF helper, put into the table.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use ctwatch_ebpf::{Event, Health};

use super::{entry_sp, fentry_sp, return_sp, returned, trampoline_sp};
use crate::{
    conn::{Direct, Memory as _, Probed, number, tuple_of},
    context,
    count::count,
    health::health,
    trace,
};

/// Attached only while inserts are traced: counts are subtracted, a single event has to be told apart.
#[fentry(function = "nf_conntrack_hash_check_insert")]
fn check_insert_enter_bpf(ctx: FEntryContext) -> i32 {
    if let Some(slot) = context::enter(fentry_sp(&ctx)) {
        slot.check_ct.set(number(ctx.arg(0)));
    }
    0
}

#[fexit(function = "nf_conntrack_hash_check_insert")]
fn check_insert_bpf(ctx: FExitContext) -> i32 {
    if returned(&ctx, 1) as i32 == 0
        && let Some(conn) = Direct::conn(ctx.arg(0))
    {
        count(conn.flow, tuple_of(ctx.arg(0)), Event::InsertNetlink);
        trace::entry(Event::InsertNetlink, &conn, ctx.arg(0), trampoline_sp(&ctx));
    }
    0
}

#[kprobe]
fn check_insert(ctx: ProbeContext) -> u32 {
    if let Some(ct) = ctx.arg::<u64>(0)
        && let Some(slot) = context::enter(entry_sp(&ctx))
    {
        slot.check_ct.set(ct);
    }
    0
}

#[kretprobe]
fn check_insert_ret(ctx: RetProbeContext) -> u32 {
    let ct = match context::inside(return_sp(&ctx)) {
        Some(slot) => slot.check_ct.take(),
        None => 0,
    };
    if ct == 0 {
        health(Health::NoEntry);
    } else if ctx.ret::<i32>() == 0
        && let Some(conn) = Probed::conn(ct)
    {
        count(conn.flow, tuple_of(ct), Event::InsertNetlink);
        trace::entry(Event::InsertNetlink, &conn, ct, return_sp(&ctx));
    }
    0
}

//! match-proto: void __nf_ct_delete_from_lists(struct nf_conn *ct)
//! match-proto 5.10: void nf_ct_delete_from_lists(struct nf_conn *ct)
//!
//! Runs exactly once for each entry that leaves the table: `nf_ct_delete` comes here only after
//! it has won the DYING bit.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use ctwatch_ebpf::{Caller, Health, delete_event};

use super::entry_sp;
use crate::{
    conn::{Memory as _, Probed},
    context,
    count::{count, health},
    trace,
};

#[kprobe]
fn delete_from_lists(ctx: ProbeContext) -> u32 {
    let Some(ct) = ctx.arg::<u64>(0) else { return 0 };
    let Some(conn) = Probed::conn(ct) else { return 0 };
    let (caller, portid) = match context::inside(entry_sp(&ctx)) {
        Some(slot) if slot.delete_ct == ct => {
            slot.delete_ct = 0;
            (Caller::from_u32(slot.delete_caller), slot.delete_portid)
        }
        _ => {
            health(Health::NoEntry);
            (None, 0)
        }
    };
    let event = delete_event(caller, conn.expired(), portid);
    count(conn.flow, event);
    trace::entry(event, &conn, ct, entry_sp(&ctx));
    0
}

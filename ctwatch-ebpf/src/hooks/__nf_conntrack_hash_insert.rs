//! match-proto: void __nf_conntrack_hash_insert(struct nf_conn *ct, unsigned int hash, unsigned int reply_hash)
//!
//! Runs once for each entry that enters the table in both directions, with its tuples final
//! (after NAT), under a spinlock with softirqs off (5.10 to 7.3). Entries from ctnetlink pass
//! here too: `nf_conntrack_hash_check_insert` counts them apart and userspace subtracts them.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use ctwatch_ebpf::Event;

use crate::{
    conn::{Direct, Memory as _, Probed},
    count::insert,
    trace,
};

use super::{entry_sp, fentry_sp};

#[fentry(function = "__nf_conntrack_hash_insert")]
fn hash_insert_bpf(ctx: FEntryContext) -> i32 {
    if let Some(conn) = Direct::conn(ctx.arg(0)) {
        insert(&conn, ctx.arg(0));
        if trace::on() && !trace::by_netlink(ctx.arg(0), fentry_sp(&ctx)) {
            trace::entry(Event::Insert, &conn, ctx.arg(0), fentry_sp(&ctx));
        }
    }
    0
}

#[kprobe]
fn hash_insert(ctx: ProbeContext) -> u32 {
    if let Some(ct) = ctx.arg::<u64>(0)
        && let Some(conn) = Probed::conn(ct)
    {
        insert(&conn, ct);
        if trace::on() && !trace::by_netlink(ct, entry_sp(&ctx)) {
            trace::entry(Event::Insert, &conn, ct, entry_sp(&ctx));
        }
    }
    0
}

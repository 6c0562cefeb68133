//! match-proto: int __nf_conntrack_confirm(struct sk_buff *skb)
//!
//! Returns 0 (NF_DROP) when the packet's new entry could not enter the table, 1 when it did, or
//! was resolved as a clash, or the packet goes in the reply direction.

use aya_ebpf::{
    Global,
    macros::{fexit, kprobe, kretprobe},
    programs::{FExitContext, ProbeContext, RetProbeContext},
};
use ctwatch_ebpf::{Event, Health};

use super::{entry_sp, return_sp, returned, trampoline_sp};
use crate::{
    conn::{IPS_CONFIRMED, IPS_DYING, Memory as _, NFCT_INFO, Probed, nfct, status, tuple_of},
    context,
    count::{count, insert},
    health::health,
    trace,
};

/// Whether this kernel limits the length of a hash chain (`ip_conntrack_stat.chaintoolong`, 5.15).
#[unsafe(no_mangle)]
static HAS_CHAINTOOLONG: Global<u8> = Global::new(0);
/// Whether inserts are counted here because `__nf_conntrack_hash_insert` was inlined.
#[unsafe(no_mangle)]
static INSERT_AT_CONFIRM: Global<u8> = Global::new(0);

/// `IP_CT_IS_REPLY`: from here on, `enum ip_conntrack_info` means the reply direction.
const IP_CT_IS_REPLY: u64 = 3;

#[kprobe]
fn confirm(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg::<u64>(0)
        && let Some(nfct) = nfct(skb)
        && let Some(slot) = context::enter(entry_sp(&ctx))
    {
        if slot.confirm_nfct.get() != 0 {
            health(Health::NoReturn);
        }
        slot.confirm_nfct.set(nfct);
        slot.clash_ct.set(0);
    }
    0
}

#[kretprobe]
fn confirm_ret(ctx: RetProbeContext) -> u32 {
    let failed = ctx.ret::<u32>() == 0;
    let slot = context::inside(return_sp(&ctx)).filter(|slot| slot.confirm_nfct.get() != 0);
    let Some(slot) = slot else {
        // Nothing is missing where there was nothing to tell.
        if failed || INSERT_AT_CONFIRM.load() != 0 {
            health(Health::NoEntry);
        }
        return 0;
    };
    let nfct = slot.confirm_nfct.take();
    let clash = slot.clash_ct.get() != 0;
    let inserted = INSERT_AT_CONFIRM.load() != 0 && nfct & NFCT_INFO < IP_CT_IS_REPLY;
    if clash || !(failed || inserted) {
        return 0;
    }
    if let Some(conn) = Probed::conn(nfct & !NFCT_INFO) {
        let tuple = tuple_of(nfct & !NFCT_INFO);
        let event = if failed { reason(status(nfct & !NFCT_INFO)) } else { Event::Insert };
        if failed {
            count(conn.flow, tuple, event);
        } else {
            insert(&conn, nfct & !NFCT_INFO);
        }
        trace::entry(event, &conn, nfct & !NFCT_INFO, return_sp(&ctx));
    }
    0
}

/// Only a failure does anything here, so that a packet that entered costs one comparison. Where
/// inserts must be counted at confirmation, userspace attaches the kprobes instead.
#[fexit(function = "__nf_conntrack_confirm")]
fn confirm_bpf(ctx: FExitContext) -> i32 {
    if returned(&ctx, 1) as u32 != 0 {
        return 0;
    }
    let Some(nfct) = nfct(ctx.arg(0)) else { return 0 };
    let ct = nfct & !NFCT_INFO;
    if let Some(slot) = context::inside(trampoline_sp(&ctx))
        && slot.clash_ct.take() == ct
    {
        return 0;
    }
    if let Some(conn) = Probed::conn(ct) {
        let event = reason(status(nfct & !NFCT_INFO));
        count(conn.flow, tuple_of(ct), event);
        trace::entry(event, &conn, ct, trampoline_sp(&ctx));
    }
    0
}

/// Why an entry could not enter the table, from its status (`__nf_conntrack_confirm`, 5.10 to 7.3).
#[inline(always)]
fn reason(status: u64) -> Event {
    if status & IPS_CONFIRMED != 0 {
        // Another copy of the packet confirmed the entry first (bridge flooding).
        Event::FailedOther
    } else if status & IPS_DYING != 0 {
        Event::FailedDying
    } else if HAS_CHAINTOOLONG.load() != 0 {
        Event::FailedChaintoolong
    } else {
        Event::FailedOther
    }
}

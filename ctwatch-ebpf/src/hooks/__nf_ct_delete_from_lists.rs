//! match-proto: void __nf_ct_delete_from_lists(struct nf_conn *ct)
//! match-proto 5.10: void nf_ct_delete_from_lists(struct nf_conn *ct)
//!
//! Runs exactly once for each entry that leaves the table: `nf_ct_delete` comes here only after
//! it has won the DYING bit, with softirqs off, so that nothing nests here (6.1 to 7.3).
//!
//! Why the entry leaves is told by who called `nf_ct_delete`: at a known distance on the stack, or
//! else by a hook there.

use aya_ebpf::{
    EbpfContext as _, Global,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use ctwatch_ebpf::{Caller, FRAME_LIMIT, Health, delete_event};

use super::{
    entry_sp, fentry_sp,
    nf_ct_delete::{TEXT, caller},
};
use crate::{
    conn::{Direct, Memory as _, Probed, number, read, tuple_of},
    context,
    count::{self, health},
    trace,
};

/// Bytes from the stack pointer at the entry to the return address of `nf_ct_delete`; 0 where unknown.
#[unsafe(no_mangle)]
static DELETE_FRAME: Global<u32> = Global::new(0);

/// Words behind a trampoline program's one argument among which the return address of this function
/// is: behind the return value of a program at the return, the frame pointer, and the address of
/// the trampoline's own call (x86-64, 5.5 to 7.3).
const FRAME_WORDS: usize = 4;

#[fentry(function = "__nf_ct_delete_from_lists")]
fn delete_from_lists_bpf(ctx: FEntryContext) -> i32 {
    let Some(conn) = Direct::conn(ctx.arg(0)) else { return 0 };
    let expired = conn.expired();
    // Reading the stack is dear, and needed only where the rest does not tell.
    let (caller, portid) = if expired { (None, 0) } else { asked(entry_of(&ctx)) };
    let event = delete_event(caller, expired, portid);
    count::delete(&conn, tuple_of(ctx.arg(0)), event);
    if trace::on() {
        trace::entry(event, &conn, ctx.arg(0), fentry_sp(&ctx));
    }
    0
}

#[kprobe]
fn delete_from_lists(ctx: ProbeContext) -> u32 {
    let Some(ct) = ctx.arg::<u64>(0) else { return 0 };
    let Some(conn) = Probed::conn(ct) else { return 0 };
    let expired = conn.expired();
    let (caller, portid) = if DELETE_FRAME.load() == 0 {
        noted(ct, entry_sp(&ctx))
    } else if expired {
        (None, 0)
    } else {
        asked(entry_sp(&ctx))
    };
    let event = delete_event(caller, expired, portid);
    count::delete(&conn, tuple_of(ct), event);
    trace::entry(event, &conn, ct, entry_sp(&ctx));
    0
}

/// Who called `nf_ct_delete`, and with what port id, as the hook there has noted.
#[inline(always)]
fn noted(ct: u64, sp: u64) -> (Option<Caller>, u32) {
    match context::inside(sp) {
        Some(slot) if slot.delete_ct == ct => {
            slot.delete_ct = 0;
            (Caller::from_u32(slot.delete_caller), slot.delete_portid)
        }
        _ => {
            health(Health::NoEntry);
            (None, 0)
        }
    }
}

/// The same from the stack, where `sp` is the stack pointer at this function's entry.
#[inline(always)]
fn asked(sp: u64) -> (Option<Caller>, u32) {
    let address = read::<u64>(sp + (u64::from(DELETE_FRAME.load()) & (FRAME_LIMIT - 1))).unwrap_or(0);
    if address < TEXT {
        // Not the frame that was relied on: never guess.
        health(Health::NoEntry);
    }
    let caller = Caller::from_u32(caller(address));
    let portid = match caller {
        Some(Caller::Iterate) => context::inside(number(sp)).map_or(0, |slot| slot.iterate_portid as u32),
        // ctnetlink deletes for somebody, always.
        Some(Caller::Netlink) => 1,
        _ => 0,
    };
    (caller, portid)
}

/// The stack pointer at the function's entry, where its return address into `nf_ct_delete` lies; 0
/// where the trampoline's frame is not what is relied on.
#[inline(always)]
fn entry_of(ctx: &FEntryContext) -> u64 {
    let at = ctx.as_ptr() as u64 + 8;
    let Some(words) = read::<[u64; FRAME_WORDS]>(at) else { return 0 };
    for (index, word) in words.into_iter().enumerate() {
        if caller(word) == Caller::Itself as u32 {
            return at + 8 * index as u64;
        }
    }
    0
}

//! match-proto: bool nf_ct_delete(struct nf_conn *ct, u32 portid, int report)
//!
//! Its caller is why an entry leaves the table. It runs a little too often to be counted (two
//! CPUs may both ask for one removal), so that the kprobe only notes who asked, where the hook
//! behind it cannot find that on the stack; 5.10 calls the part that the compiler split off,
//! `nf_ct_delete.part.0`, with the same registers.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fexit, kprobe},
    programs::{FExitContext, ProbeContext},
};
use aya_log_ebpf::debug;
use ctwatch_ebpf::{Caller, Health, delete_event};

use super::{entry_sp, returned, trampoline_sp};
use crate::{
    arch::{BEHIND_ARGUMENTS, TEXT, return_address_at},
    callers::caller,
    conn::{Direct, Memory as _, read},
    context, count,
    health::health,
    trace,
};

/// Where return addresses lie from a trampoline program's arguments, of which there are 3.
const RETURNS_AT: u64 = 8 * (3 + BEHIND_ARGUMENTS);

/// Returns true exactly once for each entry that leaves the table, so that a trampoline program,
/// which sees result and caller together, needs no second hook.
#[fexit(function = "nf_ct_delete")]
fn delete_bpf(ctx: FExitContext) -> i32 {
    if returned(&ctx, 3) as u8 == 0 {
        return 0;
    }
    let Some(conn) = Direct::conn(ctx.arg(0)) else { return 0 };
    let portid = ctx.arg(1);
    let expired = conn.expired();
    // Reading the stack is dear, and needed only where the rest does not tell.
    let caller = if expired || portid != 0 { None } else { caller_of(&ctx) };
    let event = delete_event(caller, expired, portid);
    count::delete(&conn, ctx.arg(0), event as u32);
    if trace::on() {
        trace::entry(event, &conn, ctx.arg(0), trampoline_sp(&ctx));
    }
    0
}

/// Who called `nf_ct_delete`, from the frame of its trampoline.
#[inline(always)]
fn caller_of(ctx: &FExitContext) -> Option<Caller> {
    let [first, second] = read::<[u64; 2]>(ctx.as_ptr() as u64 + RETURNS_AT)?;
    let mut code = caller(first);
    let mut address = first;
    if code == Caller::Itself as u32 {
        code = caller(second);
        address = second;
    }
    if address < TEXT {
        // Not the frame that was relied on: never guess.
        health(Health::NoEntry);
    }
    Caller::from_u32(code)
}

#[kprobe]
fn delete(ctx: ProbeContext) -> u32 {
    let sp = entry_sp(&ctx);
    let Some(ct) = ctx.arg::<u64>(0) else { return 0 };
    let Some(portid) = ctx.arg::<u32>(1) else { return 0 };
    let Some(address) = read::<u64>(return_address_at(sp)) else { return 0 };
    let caller = caller(address);
    if caller == Caller::Itself as u32 {
        return 0;
    }
    if caller == 0 {
        debug!(&ctx, "nf_ct_delete called from {:x}: cause other", address);
    }
    if let Some(slot) = context::enter(sp) {
        slot.delete_ct.set(ct);
        slot.delete_caller.set(caller);
        slot.delete_portid.set(portid);
    }
    0
}

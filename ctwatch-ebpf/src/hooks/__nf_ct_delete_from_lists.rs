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
use ctwatch_ebpf::{Caller, Event, FRAME_LIMIT, Health, delete_event, event_of_caller};

use super::{entry_sp, fentry_sp};
use crate::{
    arch::{FRAME_WORDS, TEXT},
    callers::{caller, within},
    conn::{Direct, Memory as _, Probed, number, read},
    context, count,
    health::{disbelieve, disbelieved, health},
    slot::Shared,
    trace,
};

/// Bytes from the stack pointer at the entry to the return address of `nf_ct_delete`; 0 where unknown.
#[unsafe(no_mangle)]
static DELETE_FRAME: Global<u32> = Global::new(0);

/// The bytes among which this function's return address lies.
const FRAME: u64 = 8 * FRAME_WORDS as u64;

/// Where this function's return address was found last.
static RETURN_AT: Shared<u64> = Shared::new(0);

#[fentry(function = "__nf_ct_delete_from_lists")]
fn delete_from_lists_bpf(ctx: FEntryContext) -> i32 {
    // Reading the stack is dear, and needed only where the rest does not tell.
    let event = if Direct::expired(ctx.arg(0)) { Event::DeleteTimeout as u32 } else { asked_bpf(&ctx) };
    // Now, because what was read before that would have been kept on the stack meanwhile.
    let Some(conn) = Direct::conn(ctx.arg(0)) else { return 0 };
    count::delete(&conn, ctx.arg(0), event);
    if trace::on() {
        trace::entry_numbered(event, &conn, ctx.arg(0), fentry_sp(&ctx));
    }
    0
}

#[kprobe]
fn delete_from_lists(ctx: ProbeContext) -> u32 {
    let Some(ct) = ctx.arg::<u64>(0) else { return 0 };
    let Some(conn) = Probed::conn(ct) else { return 0 };
    let expired = conn.expired();
    let event = if DELETE_FRAME.load() == 0 {
        noted(ct, expired, entry_sp(&ctx)) as u32
    } else if expired {
        Event::DeleteTimeout as u32
    } else {
        asked(ct, entry_sp(&ctx))
    };
    count::delete(&conn, ct, event);
    trace::entry_numbered(event, &conn, ct, entry_sp(&ctx));
    0
}

/// Why the entry leaves, as the hook on `nf_ct_delete` has noted.
#[inline(always)]
fn noted(ct: u64, expired: bool, sp: u64) -> Event {
    let (code, portid) = note(ct, sp);
    delete_event(Caller::from_u32(code), expired, portid)
}

/// Caller and port id in the note of that hook; zeros where it has left none.
#[inline(always)]
fn note(ct: u64, sp: u64) -> (u32, u32) {
    match context::inside(sp) {
        Some(slot) if slot.delete_ct.get() == ct => {
            slot.delete_ct.set(0);
            (slot.delete_caller.get(), slot.delete_portid.get())
        }
        _ => {
            health(Health::NoEntry);
            (0, 0)
        }
    }
}

/// Why an entry with time left leaves, from the stack, where `sp` is the stack pointer at this function's entry.
#[inline(always)]
fn asked(ct: u64, sp: u64) -> u32 {
    let address = return_of_delete(sp);
    told(ct, caller(address), address, sp)
}

/// The return address of `nf_ct_delete`, where `sp` is the address of this function's.
#[inline(always)]
fn return_of_delete(sp: u64) -> u64 {
    read(sp + (u64::from(DELETE_FRAME.load()) & (FRAME_LIMIT - 1))).unwrap_or(0)
}

/// The number of the event that the return address of `nf_ct_delete` tells.
#[inline(always)]
fn told(ct: u64, code: u32, address: u64, sp: u64) -> u32 {
    match event_of_caller(code) {
        Some(event) => event as u32,
        None => untold(ct, code.into(), address, number(sp)) as u32,
    }
}

/// The number of the event where the caller alone does not tell it.
///
/// What the hook on `nf_ct_delete` noted is asked only where the stack held none of the callers that count, and what it
/// holds is not believed.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn untold(ct: u64, code: u64, address: u64, sp: u64) -> u64 {
    if code == Caller::Iterate as u64 {
        let portid = context::inside(sp).map_or(0, |slot| slot.iterate_portid.get());
        return delete_event(Some(Caller::Iterate), false, portid) as u64;
    }
    // Not the frame that was relied on: never guess.
    let wrong = address < TEXT;
    if wrong {
        disbelieve();
    }
    let (code, portid) = if wrong || disbelieved() { note(ct, sp) } else { (0, 0) };
    delete_event(Caller::from_u32(code), false, portid) as u64
}

/// The same for a trampoline program.
///
/// Its frame is where it was last time unless others have attached programs here or taken them off.
/// Then registers that `nf_ct_delete` saved lie in that place, or a variable of its caller, and none of
/// them is an address inside a caller's text, so that nothing else has to be looked at.
#[inline(always)]
fn asked_bpf(ctx: &FEntryContext) -> u32 {
    let behind = ctx.as_ptr() as u64 + 8;
    // The verifier wants a bound to what is added to this pointer.
    let mut at = behind + (RETURN_AT.get() & (FRAME - 8));
    let mut address = return_of_delete(at);
    let mut code = caller(address);
    if let Some(event) = event_of_caller(code) {
        return event as u32;
    }
    if code != Caller::Iterate as u32 {
        let distance = return_at(number(behind));
        address = 0;
        if distance < FRAME {
            RETURN_AT.set(distance);
            at = behind + distance;
            address = return_of_delete(at);
        }
        code = caller(address);
    }
    told(number(ctx.arg(0)), code, address, at)
}

/// How far from `behind` this function's return address into `nf_ct_delete` lies; [`FRAME`] where it is not found. Not a
/// constant: programs that others attach here change the trampoline's frame.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn return_at(behind: u64) -> u64 {
    let Some(words) = read::<[u64; FRAME_WORDS]>(behind) else { return FRAME };
    let found = (0..).zip(words).find(|(_, word)| within(*word, Caller::Itself));
    found.map_or(FRAME, |(index, _)| 8 * index)
}

//! Handing single events to userspace, where they were asked for.
//!
//! While nothing was, the verifier knows [`TRACE_EVENTS`] to be 0 and removes all of this.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_comm, bpf_get_smp_processor_id, bpf_ktime_get_ns},
};
use ctwatch_ebpf::{
    Event, FlowType,
    loss::{Budget, Traced, Tuple},
};

use crate::{
    conn::{Conn, Memory as _, Probed, number, read, status, tuple_of},
    context,
    filter::{ends_pass, type_passes},
    health::add_one,
    maps::{TRACE_BUDGET, TRACE_ENTRIES, TRACE_RING},
    tuple::fill,
};

/// One bit for each [`Event`] to hand over, at its number.
#[unsafe(no_mangle)]
static TRACE_EVENTS: Global<u32> = Global::new(0);
/// How many events one CPU may hand over in a second.
#[unsafe(no_mangle)]
static TRACE_PER_SECOND: Global<u32> = Global::new(0);
/// `nf_conn.zone`; 0 where this kernel has no zones.
#[unsafe(no_mangle)]
static CONN_ZONE: Global<u32> = Global::new(0);
/// `nf_conn.tuplehash[IP_CT_DIR_REPLY].tuple`; 0 where it is not known.
#[unsafe(no_mangle)]
static CONN_REPLY: Global<u32> = Global::new(0);
/// `nf_conn.mark`; 0 where this kernel has no marks.
#[unsafe(no_mangle)]
static CONN_MARK: Global<u32> = Global::new(0);
/// Whether `TRACE_ENTRIES` asks for anything.
#[unsafe(no_mangle)]
static TRACE_ENTRY: Global<u8> = Global::new(0);
/// `nf_conntrack_zone.id`
#[unsafe(no_mangle)]
static ZONE_ID: Global<u32> = Global::new(0);
/// `nf_conn.ext`; 0 where it is not known how to find the time in it.
#[unsafe(no_mangle)]
static CONN_EXT: Global<u32> = Global::new(0);
/// `nf_ct_ext.offset[NF_CT_EXT_TSTAMP]`
#[unsafe(no_mangle)]
static EXT_TSTAMP: Global<u32> = Global::new(0);
/// `nf_conn_tstamp.start`
#[unsafe(no_mangle)]
static TSTAMP_START: Global<u32> = Global::new(0);
/// `task_struct.flags`; 0 where unknown.
#[unsafe(no_mangle)]
static TASK_FLAGS: Global<u32> = Global::new(0);

/// A kernel thread, ksoftirqd among them (include/linux/sched.h, 5.10 to 7.3).
const PF_KTHREAD: u32 = 0x0020_0000;

/// Whether any event is handed over.
#[inline(always)]
pub fn on() -> bool {
    TRACE_EVENTS.load() != 0
}

/// Whether this one is.
#[inline(always)]
pub fn asked(event: Event) -> bool {
    number_asked(event as u32)
}

#[inline(always)]
fn number_asked(event: u32) -> bool {
    on() && TRACE_EVENTS.load() >> event & 1 != 0
}

/// An event of the entry at `ct`, seen by a program whose function runs at stack pointer `sp`.
#[inline(always)]
pub fn entry(event: Event, conn: &Conn, ct: u64, sp: u64) {
    entry_numbered(event as u32, conn, ct, sp);
}

/// The same for the number of an event.
#[inline(always)]
pub fn entry_numbered(event: u32, conn: &Conn, ct: u64, sp: u64) {
    if number_asked(event) {
        let ct = number(ct);
        // Here and not in `emit`: the stack has 512 bytes for all frames together.
        if entry_passes(conn.flow.pack(), ct, zone_at(ct)) {
            emit(u64::from(event) | status(ct) << 32, conn.flow.pack(), tuple_of(ct), zone_at(ct), sp);
        }
    }
}

/// An event of a flow that has no entry: the tuple and zone that `__nf_conntrack_alloc` was called with.
#[inline(always)]
pub fn refused(event: Event, flow: FlowType, tuple: u64, zone: u64, sp: u64) {
    if asked(event) {
        let zone_at = zone_of(number(zone));
        if entry_passes(flow.pack(), 0, zone_at) {
            emit(event as u64, flow.pack(), number(tuple), zone_at, sp);
        }
    }
}

/// Notes whose flow `__nf_conntrack_alloc` was called for, so that an eviction can name it.
#[inline(always)]
pub fn newcomer(net: u64, zone: u64, orig: u64, sp: u64) {
    if on()
        && let Some(slot) = context::enter(sp)
    {
        slot.alloc_net.set(number(net));
        slot.alloc_zone.set(number(zone));
        slot.alloc_orig.set(number(orig));
    }
}

/// Forgets it at the function's return: the tuple lay on its caller's stack.
#[inline(always)]
pub fn newcomer_left(sp: u64) {
    if on()
        && let Some(slot) = context::inside(sp)
    {
        slot.alloc_orig.set(0);
    }
}

/// Whether the entry at `ct` is on its way into the table through `nf_conntrack_hash_check_insert`,
/// whose return tells of it.
#[inline(always)]
pub fn by_netlink(ct: u64, sp: u64) -> bool {
    on() && context::inside(sp).is_some_and(|slot| slot.check_ct.get() == number(ct))
}

/// The address of a zone's id; 0 where this kernel has no zones.
#[inline(always)]
fn zone_of(zone: u64) -> u64 {
    if CONN_ZONE.load() == 0 { 0 } else { zone + u64::from(ZONE_ID.load()) }
}

/// `what` holds the event's number and, in its upper half, the entry's status.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn emit(what: u64, flow: u64, tuple_at: u64, zone_at: u64, sp: u64) -> u64 {
    // The verifier checks this function with each program that could call it, whether that is the case or not.
    if !on() {
        return 0;
    }
    let event = what as u32;
    // A refused flow has none. Of all others this is the original tuple.
    let has_entry = event != Event::DropTableFull as u32 && event != Event::DropNoMemory as u32;
    let ct = if has_entry { tuple_at - tuple_of(0) } else { 0 };
    let flow = FlowType::unpack(flow);
    // The ends are looked at here, not by a call: the stack has 512 bytes for all frames together.
    if !type_passes(flow) {
        return 0;
    }
    let mut tuple = Tuple::default();
    if !fill(&mut tuple, flow, tuple_at, zone_at) || !ends_pass(&tuple) {
        return 0;
    }
    let Some(ktime_ns) = spend() else { return 0 };
    let left = event >= Event::DeleteTimeout as u32;
    let start_ns = if left { start_of(ct) } else { 0 };
    let comm = comm(sp);
    let Some(mut place) = TRACE_RING.reserve::<Traced>(0) else {
        not_handed_over();
        return 0;
    };
    // Field by field, since a whole one on the stack would take a quarter of it.
    let traced = place.as_mut_ptr();
    // SAFETY: the pointer is to the reserved record, which holds a `Traced` and is aligned for it, and
    // every field of it is written.
    unsafe {
        (&raw mut (*traced).ktime_ns).write(ktime_ns);
        (&raw mut (*traced).start_ns).write(start_ns);
        (&raw mut (*traced).netns).write(flow.netns);
        (&raw mut (*traced).event).write(event);
        (&raw mut (*traced).status).write((what >> 32) as u32);
        (&raw mut (*traced).cpu).write(bpf_get_smp_processor_id());
        (&raw mut (*traced).tuple).write(tuple);
        (&raw mut (*traced).newcomer).write(Tuple::default());
        (&raw mut (*traced).comm).write(comm);
        fill_entry(&mut *traced, flow, ct);
    }
    if event == Event::DeleteEarlyDrop as u32
        && let Some(slot) = context::inside(sp)
        && slot.alloc_orig.get() != 0
        && let Some(flow) = Probed::tuple_flow(slot.alloc_net.get(), slot.alloc_orig.get())
    {
        // SAFETY: as above.
        let newcomer = unsafe { &mut (*traced).newcomer };
        if !fill(newcomer, flow, slot.alloc_orig.get(), zone_of(slot.alloc_zone.get())) {
            *newcomer = Tuple::default();
        }
    }
    place.submit(0);
    0
}

/// Writes the fields that only an entry has: of the one at `ct`, or that there is none where that is 0.
#[inline(always)]
pub fn fill_entry(traced: &mut Traced, flow: FlowType, ct: u64) {
    traced.reply = Tuple::default();
    traced.mark = 0;
    if ct == 0 || CONN_REPLY.load() == 0 {
        return;
    }
    if !fill(&mut traced.reply, flow, reply_of(ct), 0) {
        traced.reply = Tuple::default();
    }
    traced.mark = mark(ct).into();
}

#[inline(always)]
fn reply_of(ct: u64) -> u64 {
    ct + u64::from(CONN_REPLY.load())
}

/// `nf_conn.mark`
#[inline(always)]
fn mark(ct: u64) -> u32 {
    if CONN_MARK.load() == 0 { 0 } else { read(ct + u64::from(CONN_MARK.load())).unwrap_or(0) }
}

/// Whether the user's filter of entries lets an event through: of the entry at `ct`, or of a flow that has none where that
/// is 0. `zone_at` is where its zone lies, 0 where there are none.
#[inline(always)]
pub fn entry_passes(flow: u64, ct: u64, zone_at: u64) -> bool {
    TRACE_ENTRY.load() == 0 || entry_wanted(flow, ct, zone_at) != 0
}

/// In a frame of its own: two tuples take a part of the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn entry_wanted(flow: u64, ct: u64, zone_at: u64) -> u64 {
    if TRACE_ENTRY.load() == 0 {
        return 1;
    }
    let Some(wanted) = TRACE_ENTRIES.get(0) else { return 0 };
    let zone = if zone_at == 0 { Some(0) } else { read::<u16>(zone_at) };
    if !zone.is_some_and(|zone| wanted.passes_zone(zone)) {
        return 0;
    }
    if wanted.entry == 0 {
        return 1;
    }
    if ct == 0 || !wanted.passes_mark(mark(ct)) {
        return 0;
    }
    let flow = FlowType::unpack(flow);
    let mut original = Tuple::default();
    if !fill(&mut original, flow, tuple_of(ct), 0) {
        return 0;
    }
    let mut reply = Tuple::default();
    (fill(&mut reply, flow, reply_of(ct), 0) && wanted.passes_reply(&original, &reply)).into()
}

/// When the entry at `ct` entered the table; 0 where it carries no such time, which the sysctl
/// `nf_conntrack_timestamp` decides when an entry is made.
#[inline(always)]
fn start_of(ct: u64) -> u64 {
    if CONN_EXT.load() == 0 {
        return 0;
    }
    let Some(ext) = read::<u64>(ct + u64::from(CONN_EXT.load())).filter(|ext| *ext != 0) else { return 0 };
    match read::<u8>(ext + u64::from(EXT_TSTAMP.load())) {
        Some(at) if at != 0 => read(ext + u64::from(at) + u64::from(TSTAMP_START.load())).unwrap_or(0),
        _ => 0,
    }
}

/// Takes one event's share of this CPU's budget; the time on CLOCK_MONOTONIC, where some was left.
#[inline(always)]
pub fn spend() -> Option<u64> {
    let budget = TRACE_BUDGET.get_ptr_mut(0)?;
    // SAFETY: no arguments.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the pointer is to this CPU's copy. Where hooks nest, some more may pass than the
    // budget allows; none goes uncounted.
    if !unsafe { (*budget).spend(ktime_ns, u64::from(TRACE_PER_SECOND.load())) } {
        hold_back(budget);
        return None;
    }
    Some(ktime_ns)
}

/// Counts an event that found the ring buffer full.
#[inline(always)]
pub fn not_handed_over() {
    if let Some(budget) = TRACE_BUDGET.get_ptr_mut(0) {
        hold_back(budget);
    }
}

/// Where the zone of the entry at `ct` lies; 0 where this kernel has no zones.
#[inline(always)]
pub fn zone_at(ct: u64) -> u64 {
    zone_of(ct + u64::from(CONN_ZONE.load()))
}

/// Counts an event that is not handed over.
#[inline(always)]
fn hold_back(budget: *mut Budget) {
    // SAFETY: the pointer is into the map, so that the field is too.
    unsafe { add_one(&raw mut (*budget).suppressed) };
}

/// The current process, unless a softirq has borrowed its CPU or it is a kernel thread.
#[inline(always)]
pub fn comm(sp: u64) -> [u8; 16] {
    let (owner, _) = context::owner(sp);
    let nobody = [0; 16];
    if owner & 1 != 0 || TASK_FLAGS.load() == 0 {
        return nobody;
    }
    match read::<u32>(owner + u64::from(TASK_FLAGS.load())) {
        Some(flags) if flags & PF_KTHREAD == 0 => bpf_get_current_comm().unwrap_or(nobody),
        _ => nobody,
    }
}

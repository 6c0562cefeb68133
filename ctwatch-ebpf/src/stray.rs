//! Packets that conntrack could not assign to a flow: counting them by the kernel's words, ranking them, handing them over.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_smp_processor_id, bpf_probe_read_kernel_str_bytes},
};
use ctwatch_ebpf::{
    Event, FlowType, Health,
    invalid::{Key, TracedInvalid, UNSAID, WORDS, Words, hash, is_accepted},
    loss::{Traced, Tuple},
};

use crate::{
    conn::{dport, read, status, tuple_of},
    context, count,
    filter::{ends_pass, type_passes},
    health::health,
    maps::{INVALID_WORDS, INVALIDS, TRACE_RING},
    packet::{Headers, found_last, headers},
    trace,
    tuple::fill,
};

/// `%s` and `%pV`, each with its end: the words lie elsewhere.
const STRING: u32 = u32::from_le_bytes(*b"%s\0\0") & 0x00ff_ffff;
const NESTED: u32 = u32::from_le_bytes(*b"%pV\0");

/// Where the words lie that the kernel logs.
pub enum Logged {
    /// At this address.
    At(u64),
    /// In a `struct va_format` at this address, which begins with theirs.
    Nested(u64),
}

/// Finds the words by a format and its first argument.
#[inline(always)]
pub fn logged(format: u64, argument: u64) -> Option<Logged> {
    let begin = read::<u32>(format)?;
    Some(if begin & 0x00ff_ffff == STRING {
        Logged::At(argument)
    } else if begin == NESTED {
        Logged::Nested(argument)
    } else {
        Logged::At(format)
    })
}

/// A packet that some function of the kernel shows.
pub struct Stray {
    pub skb: u64,
    /// The flow that it was taken for; 0 where there is none.
    pub ct: u64,
    /// [`Key::words`].
    pub words: u64,
    /// Where the function runs.
    pub sp: u64,
}

/// Counts a packet of this type about which the kernel logs words, unless the words show that it is accepted.
#[inline(always)]
pub fn count_logged(flow: FlowType, stray: &mut Stray) {
    if let Some(slot) = context::inside(stray.sp)
        && slot.track_skb.get() == stray.skb
    {
        slot.track_logged.set(1);
    }
    match verdict(stray.words) {
        Some(true) => return,
        Some(false) => {}
        None => stray.words = UNSAID,
    }
    found(flow.pack(), stray.skb, stray.ct, stray.words, stray.sp);
}

/// Whether words are about a packet that is accepted all the same; `None` where there is no room to remember them.
#[inline(always)]
fn verdict(words: u64) -> Option<bool> {
    // SAFETY: entries of this map are never removed.
    if let Some(known) = unsafe { INVALID_WORDS.get(words) } {
        return Some(known.accepted != 0);
    }
    match learn(words) {
        ACCEPTED => Some(true),
        INVALID => Some(false),
        _ => None,
    }
}

const ACCEPTED: u64 = 1;
const INVALID: u64 = 2;

/// Remembers the words at `address`: whether they are about a packet that is accepted ([`ACCEPTED`]) or not
/// ([`INVALID`]); 0 where there is no room. In a frame of its own: the text takes a part of the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn learn(address: u64) -> u64 {
    let mut words = Words { text: [0; WORDS], accepted: 0 };
    // SAFETY: the helper checks the address, and writes no more than the buffer holds.
    if unsafe { bpf_probe_read_kernel_str_bytes(address as *const u8, &mut words.text) }.is_err() {
        health(Health::ReadFailed);
        return 0;
    }
    words.accepted = is_accepted(hash(&words.text)).into();
    // Another CPU may have been first, or there is no room.
    if INVALID_WORDS.insert(address, &words, u64::from(BPF_NOEXIST)).is_err()
        // SAFETY: as in `verdict`.
        && unsafe { INVALID_WORDS.get(address) }.is_none()
    {
        return 0;
    }
    if words.accepted == 0 { INVALID } else { ACCEPTED }
}

/// Counts a packet of this type, ranks it and hands it over, as far as the user's filter wants it. The arguments are the
/// members of [`Stray`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn found(flow: u64, skb: u64, ct: u64, words: u64, sp: u64) -> u64 {
    let flow = FlowType::unpack(flow);
    let Some(Headers { packet, tuple }) = headers(skb, flow.family) else { return 0 };
    *tuple = Tuple::default();
    packet.fill(tuple, flow);
    health(Health::Invalid);
    if !(type_passes(flow) && ends_pass(tuple)) {
        add(Key { flow: FlowType { family: 0, proto: 0, ..flow }.pack(), words }, flow);
        return 0;
    }
    add(Key { flow: flow.pack(), words }, flow);
    let port = if ct == 0 { u16::from_ne_bytes(tuple.dst_part) } else { dport(tuple_of(ct)) };
    count::rank_invalid(flow, port, tuple);
    // Of an entry there is only what the packet was taken for.
    let zone_at = if ct == 0 { 0 } else { trace::zone_at(ct) };
    if trace::asked(Event::InvalidOther) && trace::entry_passes(flow.pack(), ct, zone_at) {
        hand_over(flow.pack(), ct, words, sp);
    }
    0
}

/// Adds one to a count.
#[inline(always)]
fn add(key: Key, flow: FlowType) {
    if INVALIDS.get_ptr_mut(key).is_none() {
        // Whether this CPU made it or another.
        let _ = INVALIDS.insert(key, 0, u64::from(BPF_NOEXIST));
    }
    match INVALIDS.get_ptr_mut(key) {
        // SAFETY: adds to the entry's value alone, which is aligned and never removed; BPF_XADD is older than 5.10.
        Some(count) => unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) count, in(reg) 1_u64) },
        None => count::count_invalid(flow),
    }
}

/// Hands over the packet whose headers were found last on this CPU, within the budget.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hand_over(flow: u64, ct: u64, shown_by: u64, sp: u64) -> u64 {
    let flow = FlowType::unpack(flow);
    let (Some(Headers { packet, tuple }), Some(ktime_ns)) = (found_last(), trace::spend()) else { return 0 };
    let comm = trace::comm(sp);
    let Some(mut place) = TRACE_RING.reserve::<TracedInvalid>(0) else {
        trace::not_handed_over();
        return 0;
    };
    let record = place.as_mut_ptr();
    // SAFETY: the record was just reserved, and is aligned for its type.
    let traced: *mut Traced = unsafe { &raw mut (*record).traced };
    let status = if ct == 0 { 0 } else { status(ct) as u32 };
    // SAFETY: the pointers are into the reserved record, and every field of it is written here or below.
    unsafe {
        (&raw mut (*traced).ktime_ns).write(ktime_ns);
        (&raw mut (*traced).start_ns).write(0);
        (&raw mut (*traced).netns).write(flow.netns);
        (&raw mut (*traced).event).write(Event::InvalidOther as u32);
        (&raw mut (*traced).status).write(status);
        (&raw mut (*traced).cpu).write(bpf_get_smp_processor_id());
        (&raw mut (*traced).tuple).write(*tuple);
        (&raw mut (*traced).newcomer).write(Tuple::default());
        (&raw mut (*traced).comm).write(comm);
        (&raw mut (*record).words).write([0; WORDS]);
        (&raw mut (*record).shown_by).write(shown_by);
        trace::fill_entry(&mut *traced, flow, ct);
    }
    if ct != 0 {
        // SAFETY: as above.
        let known = unsafe { &mut (*traced).newcomer };
        if !fill(known, flow, tuple_of(ct), trace::zone_at(ct)) {
            *known = Tuple::default();
        }
    }
    // SAFETY: entries of this map are never removed.
    if let Some(words) = unsafe { INVALID_WORDS.get(shown_by) } {
        // SAFETY: as above.
        unsafe { (&raw mut (*record).words).write(words.text) };
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*record).tcp).write([0; 16]);
        let has_tcp = packet.copy_tcp(&mut (*record).tcp);
        (&raw mut (*record).has_tcp).write(has_tcp.into());
    }
    place.submit(0);
    0
}

//! Reading a whole tuple: both ends of a flow.

use core::mem::MaybeUninit;

use aya_ebpf::Global;
use ctwatch_ebpf::{FlowType, loss::Tuple};

use crate::conn::{TUPLE_DST_PART, read_into};

/// `nf_conntrack_tuple.src.u3`
#[unsafe(no_mangle)]
pub static TUPLE_SRC: Global<u32> = Global::new(0);
/// `nf_conntrack_tuple.src.u`
#[unsafe(no_mangle)]
static TUPLE_SRC_PART: Global<u32> = Global::new(0);
/// `nf_conntrack_tuple.dst.u3`
#[unsafe(no_mangle)]
pub static TUPLE_DST: Global<u32> = Global::new(0);

/// The tuple at `at`, where all of it can be read.
#[inline(always)]
pub fn read_tuple(flow: FlowType, at: u64, zone_at: u64) -> Option<Tuple> {
    let mut tuple = Tuple::default();
    fill(&mut tuple, flow, at, zone_at).then_some(tuple)
}

/// The same in its place: copies would take room on the stack.
#[inline(always)]
pub fn fill(tuple: &mut Tuple, flow: FlowType, at: u64, zone_at: u64) -> bool {
    tuple.family = flow.family;
    tuple.proto = flow.proto;
    put(&mut tuple.src, at + u64::from(TUPLE_SRC.load()))
        && put(&mut tuple.dst, at + u64::from(TUPLE_DST.load()))
        && put(&mut tuple.src_part, at + u64::from(TUPLE_SRC_PART.load()))
        && put(&mut tuple.dst_part, at + u64::from(TUPLE_DST_PART.load()))
        && (zone_at == 0 || put(&mut tuple.zone, zone_at))
}

/// Reads into a value's place, of which the helper leaves zeros where the address is bad.
#[inline(always)]
pub fn put<T>(place: &mut T, address: u64) -> bool {
    // SAFETY: the bytes of a value that may be written in any order, which its callers know to be integers.
    read_into(address, unsafe { &mut *core::ptr::from_mut(place).cast::<MaybeUninit<T>>() })
}

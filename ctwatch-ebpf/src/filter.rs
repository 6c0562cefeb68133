//! The user's filter.

use aya_ebpf::Global;
use ctwatch_ebpf::{FlowType, loss::Tuple};

use crate::{conn::number, maps::TRACE_FILTERS, tuple::read_tuple};

/// Whether anything is filtered, so that what is not is told by one look.
#[unsafe(no_mangle)]
static FILTERED: Global<u8> = Global::new(0);
/// Whether any of the three below is set.
#[unsafe(no_mangle)]
static FILTER: Global<u8> = Global::new(0);
/// The only address family to count, or 0 for both.
#[unsafe(no_mangle)]
static FILTER_FAMILY: Global<u8> = Global::new(0);
/// The only namespace to count, or 0 for all.
#[unsafe(no_mangle)]
static FILTER_NETNS: Global<u32> = Global::new(0);
/// One bit for each L4 protocol number to count.
#[unsafe(no_mangle)]
static FILTER_PROTO: Global<[u64; 4]> = Global::new([u64::MAX; 4]);

/// Whether `TRACE_FILTERS` asks for anything.
#[unsafe(no_mangle)]
static TRACE_FILTER: Global<u8> = Global::new(0);

/// Whether the user's filter lets a flow through whose original tuple lies where `tuple` says.
#[inline(always)]
pub fn passes(flow: FlowType, tuple: impl FnOnce() -> u64) -> bool {
    FILTERED.load() == 0
        || type_passes(flow) && (TRACE_FILTER.load() == 0 || ends_wanted(flow.pack(), number(tuple())) != 0)
}

/// Whether it lets a flow type through.
#[inline(always)]
pub fn type_passes(flow: FlowType) -> bool {
    FILTER.load() == 0 || type_wanted(flow.pack()) != 0
}

/// Whether it lets these ends through.
#[inline(always)]
pub fn ends_pass(tuple: &Tuple) -> bool {
    TRACE_FILTER.load() == 0 || TRACE_FILTERS.get(0).is_some_and(|filter| filter.passes(tuple))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ends_wanted(flow: u64, tuple: u64) -> u64 {
    read_tuple(FlowType::unpack(flow), tuple, 0).is_some_and(|tuple| ends_pass(&tuple)).into()
}

/// In a frame of its own, so that a program without a filter keeps its values in registers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn type_wanted(flow: u64) -> u64 {
    let flow = FlowType::unpack(flow);
    let family = FILTER_FAMILY.load();
    let netns = FILTER_NETNS.load();
    let [a, b, c, d] = FILTER_PROTO.load();
    let word = match flow.proto >> 6 {
        0 => a,
        1 => b,
        2 => c,
        _ => d,
    };
    let is_wanted = (family == 0 || family == flow.family)
        && (netns == 0 || netns == flow.netns)
        && word >> (flow.proto & 63) & 1 != 0;
    is_wanted.into()
}

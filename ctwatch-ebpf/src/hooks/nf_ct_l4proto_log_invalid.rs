//! match-proto: void nf_ct_l4proto_log_invalid(const struct sk_buff *skb, const struct nf_conn *ct, const struct nf_hook_state *state, const char *fmt, ...)
//!
//! Before 5.17: `(skb, ct, fmt, …)`. The trackers call it with their reason for each packet of a known flow that
//! something is wrong with, whatever the sysctl `nf_conntrack_log_invalid` says (5.10 to 7.3). Not each such packet is
//! invalid in the end: the words show it. It has variable arguments, which no trampoline can have.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use ctwatch_ebpf::FlowType;

use super::entry_sp;
use crate::{
    conn::{Memory as _, Probed, read},
    stray::{Logged, Stray, count_logged, logged},
};

/// No text of the kernel's begins below a blank, and a `nf_hook_state` begins with its hook: 0 to 5.
const FIRST_PRINTABLE: u8 = 0x20;

#[kprobe]
fn ct_log_invalid(ctx: ProbeContext) -> u32 {
    let argument = |at| ctx.arg::<u64>(at).unwrap_or(0);
    let (skb, ct, third, fourth) = (argument(0), argument(1), argument(2), argument(3));
    let Some(first) = read::<u8>(third) else { return 0 };
    let (format, next) = if first < FIRST_PRINTABLE { (fourth, argument(4)) } else { (third, fourth) };
    let words = match logged(format, next) {
        Some(Logged::At(words)) => words,
        Some(Logged::Nested(format)) => read(format).unwrap_or(0),
        None => 0,
    };
    let flow = flow_of(ct);
    if flow != 0 {
        count_logged(FlowType::unpack(flow), &mut Stray { skb, ct, words, sp: entry_sp(&ctx) });
    }
    0
}

/// The flow type of the entry at `ct`, packed; 0 where it cannot be read. In a frame of its own, which is gone when the
/// packet is looked at: together they would take more than the stack's 512 bytes.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_of(ct: u64) -> u64 {
    Probed::conn(ct).map_or(0, |conn| conn.flow.pack())
}

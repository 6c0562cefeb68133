//! match-proto: void nf_l4proto_log_invalid(const struct sk_buff *skb, const struct nf_hook_state *state, u8 protonum, const char *fmt, ...)
//!
//! Before 5.17: `(skb, net, pf, protonum, fmt, …)`. The same as `nf_ct_l4proto_log_invalid` for packets that are
//! invalid whatever flow they belong to. That function calls this one where the sysctl asks for a line in the log.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use ctwatch_ebpf::FlowType;

use super::entry_sp;
use crate::{
    packet::{hook_state, inum},
    stray::{Logged, Stray, count_logged, logged},
};

#[kprobe]
fn log_invalid(ctx: ProbeContext) -> u32 {
    let argument = |at| ctx.arg::<u64>(at).unwrap_or(0);
    let skb = argument(0);
    // A protocol number has 8 bits; a format is an address.
    let new = argument(3) > u64::from(u8::MAX);
    let (place, proto, format, next) = if new {
        (hook_state(argument(1)), argument(2), argument(3), argument(4))
    } else {
        (Some((argument(1), argument(2) as u8)), argument(3), argument(4), argument(5))
    };
    // `nf_ct_l4proto_log_invalid` calls this with a nested format, and its own program has counted the packet.
    let Some(Logged::At(words)) = logged(format, next) else { return 0 };
    if let Some((net, family)) = place
        && let Some(netns) = inum(net)
    {
        let flow = FlowType { netns, family, proto: proto as u8 };
        count_logged(flow, &mut Stray { skb, ct: 0, words, sp: entry_sp(&ctx) });
    }
    0
}

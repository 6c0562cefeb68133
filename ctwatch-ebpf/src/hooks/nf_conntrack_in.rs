//! match-proto: unsigned int nf_conntrack_in(struct sk_buff *skb, const struct nf_hook_state *state)
//!
//! Each packet that tracking meets passes here: at prerouting as it comes, at output as this machine sends it.
//! Attached while latency is measured, and while the kernel counts invalid packets about which it says nothing.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use ctwatch_ebpf::{
    FlowType,
    invalid::{UNSAID, UNSAID_OF_ICMP_ERROR},
    timing::Stage,
};

use super::{entry_sp, fentry_sp, return_sp, trampoline_sp};
use crate::{
    conn::nfct,
    context,
    latency::{clock, enter, leave},
    packet::{Headers, headers, hook_state, inum},
    stray::found,
};

/// `NF_ACCEPT` of uapi/linux/netfilter.h.
const NF_ACCEPT: u32 = 1;

#[kprobe]
fn latency_in(ctx: ProbeContext) -> u32 {
    enter(Stage::In, entry_sp(&ctx));
    0
}

#[kretprobe]
fn latency_in_ret(ctx: RetProbeContext) -> u32 {
    leave(Stage::In, clock(), return_sp(&ctx));
    0
}

#[fentry(function = "nf_conntrack_in")]
fn latency_in_enter_bpf(ctx: FEntryContext) -> i32 {
    enter(Stage::In, fentry_sp(&ctx));
    0
}

#[fexit(function = "nf_conntrack_in")]
fn latency_in_bpf(ctx: FExitContext) -> i32 {
    leave(Stage::In, clock(), trampoline_sp(&ctx));
    0
}

#[kprobe]
fn track(ctx: ProbeContext) -> u32 {
    if let (Some(skb), Some(state)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1))
        && let Some(slot) = context::enter(entry_sp(&ctx))
    {
        slot.track_skb.set(skb);
        slot.track_state.set(state);
        slot.track_logged.set(0);
    }
    0
}

/// A packet that is accepted without an entry is invalid (5.10 to 7.3): one that is not tracked carries
/// `IP_CT_UNTRACKED` in `_nfct`, and one that is refused is dropped. What the kernel said about it was counted there.
#[kretprobe]
fn track_ret(ctx: RetProbeContext) -> u32 {
    let sp = return_sp(&ctx);
    let Some(slot) = context::inside(sp) else { return 0 };
    let skb = slot.track_skb.take();
    if skb == 0 || slot.track_logged.get() != 0 || ctx.ret::<u32>() != NF_ACCEPT || nfct(skb) != Some(0) {
        return 0;
    }
    if let Some((net, family)) = hook_state(slot.track_state.get())
        && let Some(netns) = inum(net)
        && let Some(Headers { packet, .. }) = headers(skb, family)
    {
        let words = if packet.is_icmp_error(family) { UNSAID_OF_ICMP_ERROR } else { UNSAID };
        let flow = FlowType { netns, family, proto: packet.proto };
        found(flow.pack(), skb, 0, words, sp);
    }
    0
}

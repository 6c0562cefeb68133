//! match-proto: unsigned int nf_conntrack_in(struct sk_buff *skb, const struct nf_hook_state *state)
//!
//! Each packet that tracking meets passes here: at prerouting as it comes, at output as this machine sends it.
//! Attached only while latency is measured.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use ctwatch_ebpf::timing::Stage;

use super::{entry_sp, fentry_sp, return_sp, trampoline_sp};
use crate::latency::{clock, enter, leave};

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

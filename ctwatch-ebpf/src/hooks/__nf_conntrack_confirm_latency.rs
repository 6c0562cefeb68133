//! match-proto: int __nf_conntrack_confirm(struct sk_buff *skb)
//!
//! The first packet of each flow passes here as it leaves or reaches a socket; how long that takes.
//! Attached only while latency is measured; what becomes of the packet is told in `__nf_conntrack_confirm.rs`.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use ctwatch_ebpf::timing::Stage;

use super::{entry_sp, fentry_sp, return_sp, trampoline_sp};
use crate::latency::{clock, enter, leave};

#[kprobe]
fn latency_confirm(ctx: ProbeContext) -> u32 {
    enter(Stage::Confirm, entry_sp(&ctx));
    0
}

#[kretprobe]
fn latency_confirm_ret(ctx: RetProbeContext) -> u32 {
    leave(Stage::Confirm, clock(), return_sp(&ctx));
    0
}

#[fentry(function = "__nf_conntrack_confirm")]
fn latency_confirm_enter_bpf(ctx: FEntryContext) -> i32 {
    enter(Stage::Confirm, fentry_sp(&ctx));
    0
}

#[fexit(function = "__nf_conntrack_confirm")]
fn latency_confirm_bpf(ctx: FExitContext) -> i32 {
    leave(Stage::Confirm, clock(), trampoline_sp(&ctx));
    0
}

//! match-proto: void net_rx_action(void)
//! match-proto 5.10 6.1: void net_rx_action(struct softirq_action *h)
//!
//! The receive softirq: all that a machine does for packets that arrive, from the driver's poll to the socket or the
//! next interface. What tracking takes is compared with it. Attached only while latency is measured.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};

use crate::latency::{clock, receive_begins, receive_ends};

#[kprobe]
fn latency_receive(_ctx: ProbeContext) -> u32 {
    receive_begins();
    0
}

#[kretprobe]
fn latency_receive_ret(_ctx: RetProbeContext) -> u32 {
    receive_ends(clock());
    0
}

#[fentry(function = "net_rx_action")]
fn latency_receive_enter_bpf(_ctx: FEntryContext) -> i32 {
    receive_begins();
    0
}

#[fexit(function = "net_rx_action")]
fn latency_receive_bpf(_ctx: FExitContext) -> i32 {
    receive_ends(clock());
    0
}

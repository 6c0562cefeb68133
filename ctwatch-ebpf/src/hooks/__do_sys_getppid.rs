//! match-proto: long int __do_sys_getppid(const struct pt_regs *__unused)
//!
//! Does next to nothing, and ctwatch can call it as often as it likes: what timing it tells is the timing's own length.
//! Attached only for a moment before latency is measured.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use ctwatch_ebpf::timing::Stage;

use super::{entry_sp, fentry_sp, return_sp, trampoline_sp};
use crate::latency::{clock, enter, leave};

#[kprobe]
fn latency_floor(ctx: ProbeContext) -> u32 {
    enter(Stage::Floor, entry_sp(&ctx));
    0
}

#[kretprobe]
fn latency_floor_ret(ctx: RetProbeContext) -> u32 {
    leave(Stage::Floor, clock(), return_sp(&ctx));
    0
}

#[fentry(function = "__do_sys_getppid")]
fn latency_floor_enter_bpf(ctx: FEntryContext) -> i32 {
    enter(Stage::Floor, fentry_sp(&ctx));
    0
}

#[fexit(function = "__do_sys_getppid")]
fn latency_floor_bpf(ctx: FExitContext) -> i32 {
    leave(Stage::Floor, clock(), trampoline_sp(&ctx));
    0
}

//! One file for each kernel function that is watched.

mod __do_sys_getppid;
mod __nf_conntrack_alloc;
mod __nf_conntrack_confirm;
mod __nf_conntrack_confirm_latency;
mod __nf_conntrack_hash_insert;
mod __nf_ct_delete_from_lists;
mod net_ratelimit;
mod net_rx_action;
mod nf_conntrack_hash_check_insert;
mod nf_conntrack_in;
mod nf_ct_delete;
mod nf_ct_iterate_cleanup_net;
mod nf_ct_l4proto_log_invalid;
mod nf_ct_resolve_clash;
mod nf_l4proto_log_invalid;

use aya_ebpf::{
    EbpfContext,
    programs::{FEntryContext, FExitContext},
};

use crate::arch::{entry_sp, return_sp};
use crate::conn::number;

/// An address on the stack that a trampoline program's function runs on: its arguments lie there.
/// (The program's own frame need not: since 6.13 it may be on a private stack.)
#[inline(always)]
fn trampoline_sp(ctx: &FExitContext) -> u64 {
    number(ctx.as_ptr() as u64)
}

/// The same for a program at a function's entry.
#[inline(always)]
fn fentry_sp(ctx: &FEntryContext) -> u64 {
    number(ctx.as_ptr() as u64)
}

/// The value that a function of `arguments` arguments returned. The kernel keeps it behind the
/// last argument (5.5 to 7.3); the helper that reads it came only with 5.17.
#[inline(always)]
fn returned(ctx: &FExitContext, arguments: usize) -> u64 {
    ctx.arg(arguments)
}

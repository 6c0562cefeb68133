//! match-proto: void nf_ct_iterate_cleanup_net(fn *iter, const struct nf_ct_iter_data *iter_data)
//! match-proto 5.10: void nf_ct_iterate_cleanup_net(struct net *net, fn *iter, void *data, u32 portid, int report)
//!
//! Who asked for a walk that removes entries: ctnetlink, which flushes with its port id, or a
//! clean-up, which has none. Runs once for each walk.

use aya_ebpf::{
    Global,
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};

use super::{entry_sp, return_sp};
use crate::{conn::read, context};

/// `nf_ct_iter_data.portid`, where there is such a structure (5.19).
#[unsafe(no_mangle)]
static ITER_PORTID: Global<u32> = Global::new(u32::MAX);

#[kprobe]
fn iterate(ctx: ProbeContext) -> u32 {
    let portid = if ITER_PORTID.load() == u32::MAX {
        ctx.arg::<u32>(3)
    } else {
        ctx.arg::<u64>(1).and_then(|data| read(data + u64::from(ITER_PORTID.load())))
    };
    if let Some(portid) = portid
        && let Some(slot) = context::enter(entry_sp(&ctx))
    {
        slot.iterate_portid.set(portid);
    }
    0
}

#[kretprobe]
fn iterate_ret(ctx: RetProbeContext) -> u32 {
    if let Some(slot) = context::inside(return_sp(&ctx)) {
        slot.iterate_portid.set(0);
    }
    0
}

//! Reading nf_conn, tuple, net and sk_buff at offsets that userspace took from the kernel's BTF.
//!
//! The offsets are read-only globals: the loader freezes them, so the verifier sees constants.

use core::mem::MaybeUninit;

use aya_ebpf::{
    Global,
    helpers::{bpf_jiffies64, bpf_probe_read_kernel, bpf_probe_read_kernel_buf},
};
use ctwatch_ebpf::{CONN_READ, FlowType, Health};

use crate::count::health;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(0);)*
    };
}

offsets! {
    /// `nf_conn.timeout`
    CONN_TIMEOUT;
    /// `nf_conn.tuplehash[IP_CT_DIR_ORIGINAL].tuple`
    CONN_TUPLE;
    /// `nf_conn.status`
    CONN_STATUS;
    /// `nf_conn.ct_net`
    CONN_NET;
    /// The same with each of the next three, added up before: a sum here would cost each flow.
    CONN_L3NUM;
    CONN_PROTONUM;
    CONN_DPORT;
    /// `nf_conntrack_tuple.src.l3num`
    TUPLE_L3NUM;
    /// `nf_conntrack_tuple.dst.protonum`
    TUPLE_PROTONUM;
    /// `net.ns.inum`
    NET_INUM;
    /// `nf_conntrack_tuple.dst.u`
    TUPLE_DST_PART;
    /// `sk_buff._nfct`
    SKB_NFCT;
}

/// `IPS_CONFIRMED`, `IPS_DYING`, `IPS_NAT_CLASH` of uapi/linux/netfilter/nf_conntrack_common.h.
pub const IPS_CONFIRMED: u64 = 1 << 3;
pub const IPS_DYING: u64 = 1 << 9;
pub const IPS_NAT_CLASH: u64 = 1 << 12;

/// The low bits of `sk_buff._nfct` hold `enum ip_conntrack_info` (`NFCT_INFOMASK`).
pub const NFCT_INFO: u64 = 7;

/// What the hooks need of an entry.
pub struct Conn {
    pub flow: FlowType,
    pub timeout: u32,
    /// The destination port of the original direction as it lies in memory; of ICMP, type and code.
    pub dport: u16,
}

impl Conn {
    /// `nf_ct_is_expired()` of include/net/netfilter/nf_conntrack.h, 5.10 to 7.3.
    #[inline(always)]
    pub fn expired(&self) -> bool {
        // SAFETY: no arguments.
        let now = unsafe { bpf_jiffies64() } as u32;
        self.timeout.wrapping_sub(now) as i32 <= 0
    }
}

/// Reads one value of kernel memory.
#[inline(always)]
pub fn read<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and reports a fault instead of taking it.
    match unsafe { bpf_probe_read_kernel(address as *const T) } {
        Ok(value) => Some(value),
        Err(_) => {
            health(Health::ReadFailed);
            None
        }
    }
}

/// Fills a buffer with kernel memory, in place: what [`read`] returns is copied, by many instructions
/// where it is large. False, and nothing filled, where the address is bad.
#[inline(always)]
pub fn read_into<T>(address: u64, buffer: &mut MaybeUninit<T>) -> bool {
    // SAFETY: the buffer is that long, and bytes need no alignment; nothing reads it unless the helper
    // has filled all of it.
    let bytes = unsafe { core::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    // SAFETY: the helper checks the source address.
    let read = unsafe { bpf_probe_read_kernel_buf(address as *const u8, bytes) }.is_ok();
    if !read {
        health(Health::ReadFailed);
    }
    read
}

/// `nf_conn.status`: of no use to counting, so that it is read only where it is asked for.
#[inline(always)]
pub fn status(ct: u64) -> u64 {
    read(ct + u64::from(CONN_STATUS.load())).unwrap_or(0)
}

/// How a program may read kernel memory.
pub trait Memory {
    /// The entry at `ct`.
    fn conn(ct: u64) -> Option<Conn>;
    /// The flow type of the tuple at `tuple` in the namespace at `net`.
    fn tuple_flow(net: u64, tuple: u64) -> Option<FlowType>;
}

/// By helper calls: any program may.
pub struct Probed;

/// By plain loads, which the verifier allows through a typed argument of a trampoline program
/// (5.5) and makes harmless where the address is bad.
pub struct Direct;

impl Memory for Probed {
    #[inline(always)]
    fn conn(ct: u64) -> Option<Conn> {
        let mut bytes = MaybeUninit::<[u64; CONN_READ / 8]>::uninit();
        // One long read is cheaper than several.
        if !read_into(ct, &mut bytes) {
            return None;
        }
        let base = bytes.as_ptr() as u64;
        let net: u64 = load(base, CONN_NET.load());
        Some(Conn {
            flow: FlowType {
                netns: read(net + u64::from(NET_INUM.load()))?,
                family: load::<u16>(base, CONN_L3NUM.load()) as u8,
                proto: load(base, CONN_PROTONUM.load()),
            },
            timeout: load(base, CONN_TIMEOUT.load()),
            dport: load(base, CONN_DPORT.load()),
        })
    }

    #[inline(always)]
    fn tuple_flow(net: u64, tuple: u64) -> Option<FlowType> {
        Some(FlowType {
            netns: read(net + u64::from(NET_INUM.load()))?,
            family: read::<u16>(tuple + u64::from(TUPLE_L3NUM.load()))? as u8,
            proto: read(tuple + u64::from(TUPLE_PROTONUM.load()))?,
        })
    }
}

impl Memory for Direct {
    #[inline(always)]
    fn conn(ct: u64) -> Option<Conn> {
        let net: u64 = load(ct, CONN_NET.load());
        Some(Conn {
            flow: FlowType {
                netns: load(net, NET_INUM.load()),
                family: load::<u16>(ct, CONN_L3NUM.load()) as u8,
                proto: load(ct, CONN_PROTONUM.load()),
            },
            timeout: load(ct, CONN_TIMEOUT.load()),
            dport: load(ct, CONN_DPORT.load()),
        })
    }

    #[inline(always)]
    fn tuple_flow(net: u64, tuple: u64) -> Option<FlowType> {
        Some(FlowType {
            netns: load(net, NET_INUM.load()),
            family: load::<u16>(tuple, TUPLE_L3NUM.load()) as u8,
            proto: load(tuple, TUPLE_PROTONUM.load()),
        })
    }
}

/// A member of what lies at `base`: a copy on this frame, or a kernel object behind a typed
/// argument. The verifier checks both: the offset against the copy's length (userspace has checked
/// it before), or the access against the object's type.
#[inline(always)]
fn load<T: Copy>(base: u64, offset: u32) -> T {
    // SAFETY: as said above; members are aligned as the kernel aligned them, and a copy starts on
    // an 8-byte boundary as the object does.
    unsafe { ((base + u64::from(offset)) as *const T).read() }
}

/// The destination port of the tuple at `tuple`, as in [`Conn::dport`].
#[inline(always)]
pub fn dport(tuple: u64) -> u16 {
    read(tuple + u64::from(TUPLE_DST_PART.load())).unwrap_or(0)
}

/// A typed pointer as a number. The verifier allows little arithmetic on pointers; their bits,
/// read back by a helper, are an ordinary number.
#[inline(always)]
pub fn number(pointer: u64) -> u64 {
    read(&raw const pointer as u64).unwrap_or(0)
}

/// The address of an entry's original tuple.
#[inline(always)]
pub fn tuple_of(ct: u64) -> u64 {
    ct + u64::from(CONN_TUPLE.load())
}

/// `sk_buff._nfct`: the entry's address and `enum ip_conntrack_info` in one word.
#[inline(always)]
pub fn nfct(skb: u64) -> Option<u64> {
    read(skb + u64::from(SKB_NFCT.load()))
}

//! Reading nf_conn, tuple, net and sk_buff at offsets that userspace took from the kernel's BTF.
//!
//! What every flow meets is read by single instructions into which the loader has written the offset
//! ([`Field`]). The other offsets are read-only globals: the loader freezes them, so the verifier sees
//! constants.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    Global,
    helpers::{bpf_jiffies64, bpf_probe_read_kernel, bpf_probe_read_kernel_buf},
};
use ctwatch_ebpf::{AF_INET, AF_INET6, CONN_READ, FlowType, Health, field::Field};

use crate::health::health;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(0);)*
    };
}

offsets! {
    /// `nf_conn.tuplehash[IP_CT_DIR_ORIGINAL].tuple`
    CONN_TUPLE;
    /// `nf_conn.status`
    CONN_STATUS;
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
    /// How many bytes of an entry are read: no more than `CONN_READ`.
    CONN_LENGTH;
}

/// `IPS_CONFIRMED`, `IPS_DYING`, `IPS_NAT_CLASH` of uapi/linux/netfilter/nf_conntrack_common.h.
pub const IPS_CONFIRMED: u64 = 1 << 3;
pub const IPS_DYING: u64 = 1 << 9;
pub const IPS_NAT_CLASH: u64 = 1 << 12;

/// The low bits of `sk_buff._nfct` hold `enum ip_conntrack_info` (`NFCT_INFOMASK`).
pub const NFCT_INFO: u64 = 7;

/// Loads a member of what lies at `base`: a copy on this frame, or a kernel object behind a typed
/// argument. The verifier checks both: the offset against the copy's length (userspace has checked
/// it before), or the access against the object's type. Of `l3num`, which has 16 bits, the lower byte
/// is read, where an address family fits (x86-64 is little-endian).
macro_rules! field {
    ($size:ident, $base:expr, $field:ident) => {{
        let value: u64;
        // SAFETY: as said above; it reads memory and does nothing else.
        unsafe {
            asm!(
                concat!("{0} = *(", stringify!($size), " *)({1} + {2})"),
                out(reg) value,
                in(reg) $base,
                const Field::$field.placeholder(),
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        // SAFETY: a load fills the rest of the register with zeros, which saves clearing it again.
        unsafe { core::hint::assert_unchecked(value <= <$size>::MAX as u64) };
        value as $size
    }};
}

/// An entry's members, where `base` is the entry or a copy, and reading the namespace's number differs.
macro_rules! conn {
    ($base:expr, $inum:expr) => {
        Conn {
            flow: FlowType {
                netns: $inum,
                family: field!(u8, $base, ConnL3num),
                proto: field!(u8, $base, ConnProtonum),
            },
            timeout: field!(u32, $base, ConnTimeout),
            dport: field!(u16, $base, ConnDport),
        }
    };
}

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
        over(self.timeout)
    }
}

/// Whether an entry's timeout is over.
#[inline(always)]
fn over(timeout: u32) -> bool {
    // SAFETY: no arguments.
    let now = unsafe { bpf_jiffies64() } as u32;
    timeout.wrapping_sub(now) as i32 <= 0
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
    read_beginning(address, buffer, size_of::<T>())
}

/// The same for the first `length` bytes, no more than the buffer has. The caller reads no others.
#[inline(always)]
fn read_beginning<T>(address: u64, buffer: &mut MaybeUninit<T>, length: usize) -> bool {
    let length = length.min(size_of::<T>());
    // SAFETY: the buffer is at least that long, and bytes need no alignment; nothing reads it unless the
    // helper has filled that part.
    let bytes = unsafe { core::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), length) };
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

/// A refused flow.
pub struct Newcomer {
    pub flow: FlowType,
    /// As [`Conn::dport`].
    pub dport: u16,
}

/// Bytes of `nf_conntrack_tuple` (5.10 to 7.3).
const TUPLE_READ: usize = 40;

impl Probed {
    /// The flow of the tuple at `tuple` in the namespace at `net`. `None` where one cannot be read or is no tuple.
    #[inline(always)]
    pub fn newcomer(net: u64, tuple: u64) -> Option<Newcomer> {
        let mut bytes = MaybeUninit::<[u64; TUPLE_READ / 8]>::uninit();
        // One long read is cheaper than several.
        if !read_into(tuple, &mut bytes) {
            return None;
        }
        let base = bytes.as_ptr() as u64;
        // Conntrack has no others: this is no tuple.
        let family = field!(u16, base, TupleL3num);
        if family != u16::from(AF_INET) && family != u16::from(AF_INET6) {
            return None;
        }
        let netns = read(net + u64::from(NET_INUM.load()))?;
        let flow = FlowType { netns, family: family as u8, proto: field!(u8, base, TupleProtonum) };
        Some(Newcomer { flow, dport: field!(u16, base, TupleDport) })
    }
}

/// Registers of the kernel's code that refuses a flow, as a kprobe program at the entry of `net_ratelimit` gets them.
pub struct Registers {
    pub net: u64,
    pub zone: u64,
    pub orig: u64,
}

impl Registers {
    /// From `pt_regs`, which a kprobe program loads directly.
    #[inline(always)]
    pub fn of(regs: u64) -> Self {
        Self {
            net: field!(u64, regs, RefusedNet),
            zone: field!(u64, regs, RefusedZone),
            orig: field!(u64, regs, RefusedOrig),
        }
    }
}

/// By plain loads, which the verifier allows through a typed argument of a trampoline program
/// (5.5) and makes harmless where the address is bad.
pub struct Direct;

impl Memory for Probed {
    #[inline(always)]
    fn conn(ct: u64) -> Option<Conn> {
        let mut bytes = MaybeUninit::<[u64; CONN_READ / 8]>::uninit();
        // One long read is cheaper than several.
        if !read_beginning(ct, &mut bytes, CONN_LENGTH.load() as usize) {
            return None;
        }
        let base = bytes.as_ptr() as u64;
        let net = field!(u64, base, ConnNet);
        Some(conn!(base, read(net + u64::from(NET_INUM.load()))?))
    }

    #[inline(always)]
    fn tuple_flow(net: u64, tuple: u64) -> Option<FlowType> {
        // Conntrack has no others: this is no tuple.
        let family = read::<u16>(tuple + u64::from(TUPLE_L3NUM.load()))?;
        if family != u16::from(AF_INET) && family != u16::from(AF_INET6) {
            return None;
        }
        Some(FlowType {
            netns: read(net + u64::from(NET_INUM.load()))?,
            family: family as u8,
            proto: read(tuple + u64::from(TUPLE_PROTONUM.load()))?,
        })
    }
}

impl Direct {
    /// [`Conn::expired`] of the entry at `ct`, for who needs the rest of it only later.
    #[inline(always)]
    pub fn expired(ct: u64) -> bool {
        over(field!(u32, ct, ConnTimeout))
    }
}

impl Memory for Direct {
    #[inline(always)]
    fn conn(ct: u64) -> Option<Conn> {
        let net = field!(u64, ct, ConnNet);
        Some(conn!(ct, field!(u32, net, NetInum)))
    }

    #[inline(always)]
    fn tuple_flow(net: u64, tuple: u64) -> Option<FlowType> {
        Some(FlowType {
            netns: field!(u32, net, NetInum),
            family: field!(u8, tuple, TupleL3num),
            proto: field!(u8, tuple, TupleProtonum),
        })
    }
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

/// The same number, of which the verifier knows nothing: paths that differ in it alone are one path to it, which it
/// checks once. `unknown` is any number that it does not know.
#[inline(always)]
pub fn forget(mut number: u64, unknown: u64) -> u64 {
    // SAFETY: adds and takes away the same.
    unsafe {
        asm!("{0} += {1}", "{0} -= {1}", inout(reg) number, in(reg) unknown, options(pure, nomem, nostack, preserves_flags));
    }
    number
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

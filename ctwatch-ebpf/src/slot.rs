//! What one execution context carries from a function's entry to its return.

/// Slots for CPUs; a power of two.
pub const CPUS: u32 = 1024;
/// Slots that tasks share; a power of two.
pub const TASKS: u32 = 4096;
/// All slots.
pub const CONTEXTS: u32 = CPUS + TASKS;

/// One slot. A field is 0 when its function is not being executed.
#[repr(C)]
pub struct Context {
    /// The task's address, or the CPU number with bit 0 set (tasks are aligned).
    pub owner: u64,
    /// `ct` of the `nf_ct_delete` entered last.
    pub delete_ct: u64,
    /// The code of its [`ctwatch_ebpf::Caller`], 0 where unknown.
    pub delete_caller: u32,
    /// Its `portid`.
    pub delete_portid: u32,
    /// `portid` of the `nf_ct_iterate_cleanup_net` that is being executed.
    pub iterate_portid: u64,
    /// `net` and `orig` of `__nf_conntrack_alloc`.
    pub alloc_net: u64,
    pub alloc_orig: u64,
    /// Its `zone`, noted only while single events are handed over.
    pub alloc_zone: u64,
    /// The stack pointer at its entry.
    pub alloc_sp: u64,
    /// Whether it refused the flow because the table is full.
    pub refused: u64,
    /// `sk_buff._nfct` at the entry of `__nf_conntrack_confirm`.
    pub confirm_nfct: u64,
    /// The same at the entry of `nf_ct_resolve_clash`.
    pub clash_nfct: u64,
    /// The entry whose packet `nf_ct_resolve_clash` dealt with last.
    pub clash_ct: u64,
    /// `ct` of `nf_conntrack_hash_check_insert`.
    pub check_ct: u64,
    /// `skb` and `state` of `nf_conntrack_in`.
    pub track_skb: u64,
    pub track_state: u64,
    /// Whether the kernel logged words about that packet.
    pub track_logged: u64,
}

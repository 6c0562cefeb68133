//! What one execution context carries from a function's entry to its return.

use core::cell::UnsafeCell;

/// Slots for CPUs; a power of two.
pub const CPUS: u32 = 1024;
/// Slots that tasks share; a power of two.
pub const TASKS: u32 = 4096;
/// All slots.
pub const CONTEXTS: u32 = CPUS + TASKS;

/// A word that several CPUs may read and write. Each access reads or writes all of it. Programs check a value before they
/// rely on it.
#[repr(transparent)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: the accesses are volatile and each is one instruction, and every bit pattern of a number is a value. Rust's
// atomics do not exist for BPF.
unsafe impl<T: Copy> Sync for Shared<T> {}

impl<T: Copy + Default> Shared<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the pointer is to the word itself.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.0.get().write_volatile(value) };
    }

    /// What it holds; it holds 0 from then on.
    #[inline(always)]
    pub fn take(&self) -> T {
        let value = self.get();
        self.set(T::default());
        value
    }
}

/// One slot. A field is 0 when its function is not being executed.
#[repr(C)]
pub struct Context {
    /// The task's address, or the CPU number with bit 0 set (tasks are aligned).
    pub owner: Shared<u64>,
    /// `ct` of the `nf_ct_delete` entered last.
    pub delete_ct: Shared<u64>,
    /// The code of its [`ctwatch_ebpf::Caller`], 0 where unknown.
    pub delete_caller: Shared<u32>,
    /// Its `portid`.
    pub delete_portid: Shared<u32>,
    /// `portid` of the `nf_ct_iterate_cleanup_net` that is being executed.
    pub iterate_portid: Shared<u32>,
    _padding: u32,
    /// `net` and `orig` of `__nf_conntrack_alloc`.
    pub alloc_net: Shared<u64>,
    pub alloc_orig: Shared<u64>,
    /// Its `zone`, noted only while single events are handed over.
    pub alloc_zone: Shared<u64>,
    /// The stack pointer at its entry.
    pub alloc_sp: Shared<u64>,
    /// Whether it refused the flow because the table is full.
    pub refused: Shared<u64>,
    /// `sk_buff._nfct` at the entry of `__nf_conntrack_confirm`.
    pub confirm_nfct: Shared<u64>,
    /// The same at the entry of `nf_ct_resolve_clash`.
    pub clash_nfct: Shared<u64>,
    /// The entry whose packet `nf_ct_resolve_clash` dealt with last.
    pub clash_ct: Shared<u64>,
    /// `ct` of `nf_conntrack_hash_check_insert`.
    pub check_ct: Shared<u64>,
    /// `skb` and `state` of `nf_conntrack_in`.
    pub track_skb: Shared<u64>,
    pub track_state: Shared<u64>,
    /// Whether the kernel logged words about that packet.
    pub track_logged: Shared<u64>,
}

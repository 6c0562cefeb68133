//! x86-64: registers, stacks, what lies around a trampoline's arguments, and where text lies (5.5 to 7.3).

use aya_ebpf::programs::{ProbeContext, RetProbeContext};

/// Kernel and module text lies in the uppermost 2 GiB (Documentation/arch/x86/x86_64/mm.rst).
pub const TEXT: u64 = 0xffff_ffff_8000_0000;

/// `THREAD_SIZE` without KASAN (arch/x86/include/asm/page_64_types.h).
pub const THREAD_SIZE: u64 = 16 << 10;

/// Words among which a return address lies behind a trampoline program's arguments: behind the return value of a
/// program at the return, the frame pointer, and the address of the trampoline's own call.
pub const FRAME_WORDS: usize = 4;

/// Words between the arguments of a program at the return and the first return address: the return value, and the
/// saved frame pointer. First comes the address inside the function that called the trampoline, unless the kernel jumps
/// there (7.3), then the address that called the function.
pub const BEHIND_ARGUMENTS: u64 = 2;

/// The stack pointer at a function's entry.
#[inline(always)]
pub fn entry_sp(ctx: &ProbeContext) -> u64 {
    // SAFETY: the kernel hands every kprobe program a valid pt_regs.
    unsafe { (*ctx.regs).rsp as u64 }
}

/// The stack pointer after a function's return: just above where it was at the entry.
#[inline(always)]
pub fn return_sp(ctx: &RetProbeContext) -> u64 {
    // SAFETY: the kernel hands every kretprobe program a valid pt_regs.
    unsafe { (*ctx.regs).rsp as u64 }
}

/// Where the address lies that a function returns to, from the stack pointer at its entry.
#[inline(always)]
pub const fn return_address_at(entry_sp: u64) -> u64 {
    entry_sp
}

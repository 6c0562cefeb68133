//! Whose code an address lies in.

use aya_ebpf::Global;
use ctwatch_ebpf::CALLERS;

/// Kernel and module text on x86-64 lies in the uppermost 2 GiB (Documentation/arch/x86/x86_64/mm.rst).
pub const TEXT: u64 = 0xffff_ffff_8000_0000;

// Constants rather than a map, which every removal would have to look up: the verifier knows them.

/// Where the code of each caller begins, those that a busy server meets most first.
#[unsafe(no_mangle)]
static CALLER_STARTS: [Global<u64>; CALLERS] = [const { Global::new(0) }; CALLERS];
/// The first address after it; 0 ends the list.
#[unsafe(no_mangle)]
static CALLER_ENDS: [Global<u64>; CALLERS] = [const { Global::new(0) }; CALLERS];
/// Its [`ctwatch_ebpf::Caller`] as a number.
#[unsafe(no_mangle)]
static CALLER_CODES: [Global<u64>; CALLERS] = [const { Global::new(0) }; CALLERS];

/// The code of the [`ctwatch_ebpf::Caller`] whose text holds `address`, 0 where none does.
#[inline(always)]
pub fn caller(address: u64) -> u32 {
    for ((start, end), code) in CALLER_STARTS.iter().zip(&CALLER_ENDS).zip(&CALLER_CODES) {
        let end = end.load();
        if end == 0 {
            break;
        }
        if address >= start.load() && address < end {
            return code.load() as u32;
        }
    }
    0
}

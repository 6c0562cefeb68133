//! Whose code an address lies in.

use aya_ebpf::Global;
use ctwatch_ebpf::{ALLOC_PARTS, CALLERS, Caller};

use crate::conn::forget;

// Constants rather than a map, which every removal would have to look up: the verifier knows them.

/// Where the code of each caller begins, those that a busy server meets most first.
#[unsafe(no_mangle)]
static CALLER_STARTS: [Global<u64>; CALLERS] = [const { Global::new(0) }; CALLERS];
/// The first address after it; 0 ends the list.
#[unsafe(no_mangle)]
static CALLER_ENDS: [Global<u64>; CALLERS] = [const { Global::new(0) }; CALLERS];
/// Its [`Caller`] as a number.
#[unsafe(no_mangle)]
static CALLER_CODES: [Global<u64>; CALLERS] = [const { Global::new(0) }; CALLERS];

/// Where the text of `__nf_conntrack_alloc` begins, and of what the compiler moved away from it. Apart from the others:
/// each refusal looks for it, and it is the last of them.
#[unsafe(no_mangle)]
static ALLOC_STARTS: [Global<u64>; ALLOC_PARTS] = [const { Global::new(0) }; ALLOC_PARTS];
/// The first address after each; 0 where there are no more.
#[unsafe(no_mangle)]
static ALLOC_ENDS: [Global<u64>; ALLOC_PARTS] = [const { Global::new(0) }; ALLOC_PARTS];

/// Whether `address` lies in the text of `__nf_conntrack_alloc`.
#[inline(always)]
pub fn in_alloc(address: u64) -> bool {
    macro_rules! any {
        ($($index:literal)*) => {
            false $(|| address >= ALLOC_STARTS[$index].load() && address < ALLOC_ENDS[$index].load())*
        };
    }
    any!(0 1 2 3)
}

/// The code of the [`Caller`] whose text holds `address`, 0 where none does.
#[inline(always)]
pub fn caller(address: u64) -> u32 {
    // The verifier must not follow what comes next once for each caller, nor for each range that an address can lie in.
    let unknown = address;
    forget(among(forget(address, unknown), |_| true).into(), unknown) as u32
}

/// Whether `address` lies in the text of that caller.
///
/// Cheaper for the verifier than [`caller`]: it drops the ranges of all others before it looks at any address
/// (7.3: a third of the time that the program on removals takes to load).
#[inline(always)]
pub fn within(address: u64, wanted: Caller) -> bool {
    among(address, |code| code == wanted as u32) != 0
}

/// The code of the caller whose text holds `address` among those that are wanted, 0 where none does.
#[inline(always)]
fn among(address: u64, wanted: impl Fn(u32) -> bool) -> u32 {
    // Written out: in a loop, finding the place of each number costs more than comparing it.
    macro_rules! first {
        ($($index:literal)*) => {$({
            let code = at($index, address, &wanted);
            if code != 0 {
                return code;
            }
        })*};
    }
    first!(0 1 2);
    for index in 3..CALLERS {
        if CALLER_ENDS[index].load() == 0 {
            break;
        }
        let code = at(index, address, &wanted);
        if code != 0 {
            return code;
        }
    }
    0
}

/// The same for one of them. Behind the last, where nothing ends at 0, nothing is found.
#[inline(always)]
fn at(index: usize, address: u64, wanted: impl Fn(u32) -> bool) -> u32 {
    let code = CALLER_CODES[index].load() as u32;
    if wanted(code) && address >= CALLER_STARTS[index].load() && address < CALLER_ENDS[index].load() {
        code
    } else {
        0
    }
}

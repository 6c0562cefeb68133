//! Addresses of symbols by their names, from the kernel itself.
//!
//! A program of type `BPF_PROG_TYPE_SYSCALL` may call `bpf_kallsyms_lookup_name` (kernel/bpf/syscall.c, 5.16 to 7.3). It
//! runs once, as a system call of this process, and is attached to nothing.

use std::io;
use std::os::fd::AsRawFd as _;

use aya_obj::generated::{BPF_F_SLEEPABLE, bpf_cmd, bpf_insn, bpf_prog_type};

use super::bpf::{bpf, bpf_fd, zeroed};

/// Bytes of a name, with the zero at its end. They lie on the program's stack.
const NAME: usize = 64;
/// `BPF_FUNC_kallsyms_lookup_name`.
const LOOKUP: i32 = 179;

// Where the program keeps what: registers, and places behind the frame pointer.
const CONTEXT: u8 = 6;
const FRAME: u8 = 10;
const FOUND: i16 = -8;
const TEXT: i16 = FOUND - 64;

/// The addresses of these symbols, 0 where there is none. An error where this process may not see addresses, or the
/// kernel cannot look for them.
pub(super) fn addresses<const N: usize>(names: [&str; N]) -> io::Result<[u64; N]> {
    let code = program(&names).ok_or(io::ErrorKind::InvalidInput)?;
    let mut attr = zeroed();
    // SAFETY: the variant for BPF_PROG_LOAD; every byte of it was set to zero.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SYSCALL as u32;
    load.prog_flags = BPF_F_SLEEPABLE;
    load.insns = code.as_ptr() as u64;
    load.insn_cnt = u32::try_from(code.len()).map_err(io::Error::other)?;
    load.license = c"Dual MIT/GPL".as_ptr() as u64;
    // SAFETY: the code and the licence that attr points to live until the call returns.
    let program = unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) }?;
    let mut found = [0_u64; N];
    let mut attr = zeroed();
    // SAFETY: the variant for BPF_PROG_TEST_RUN; every byte of it was set to zero.
    let run = unsafe { &mut attr.test };
    run.prog_fd = program.as_raw_fd().cast_unsigned();
    run.ctx_in = found.as_mut_ptr() as u64;
    run.ctx_size_in = u32::try_from(size_of_val(&found)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes `found`, which is as long as said and lives until the call returns.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(found)
}

/// Looks for each name and stores its address in the context. `None` where a name is too long.
fn program(names: &[&str]) -> Option<Vec<bpf_insn>> {
    let mut code = vec![insn(0xbf, CONTEXT, 1, 0, 0)];
    for (place, name) in (0..).zip(names) {
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        let size = i32::try_from(text.len()).ok().filter(|_| text.len() <= NAME)?;
        text.resize(text.len().next_multiple_of(4), 0);
        for (at, word) in (0..).zip(text.chunks_exact(4)) {
            let word = i32::from_ne_bytes(word.try_into().ok()?);
            code.push(insn(0x62, FRAME, 0, TEXT + 4 * at, word));
        }
        code.extend([
            insn(0x7a, FRAME, 0, FOUND, 0),
            insn(0xbf, 1, FRAME, 0, 0),
            insn(0x07, 1, 0, 0, i32::from(TEXT)),
            insn(0xb7, 2, 0, 0, size),
            insn(0xb7, 3, 0, 0, 0),
            insn(0xbf, 4, FRAME, 0, 0),
            insn(0x07, 4, 0, 0, i32::from(FOUND)),
            insn(0x85, 0, 0, 0, LOOKUP),
            insn(0x79, 1, FRAME, FOUND, 0),
            insn(0x7b, CONTEXT, 1, 8 * place, 0),
        ]);
    }
    code.extend([insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)]);
    Some(code)
}

fn insn(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(to, from), off, imm }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_lies_on_the_stack_with_its_end() {
        let code = program(&["abcdefg", "ab"]).unwrap();
        let words: Vec<(i16, [u8; 4])> = code
            .iter()
            .filter(|insn| insn.code == 0x62)
            .map(|insn| (insn.off, insn.imm.to_ne_bytes()))
            .collect();
        assert_eq!(words, [(TEXT, *b"abcd"), (TEXT + 4, *b"efg\0"), (TEXT, *b"ab\0\0")]);
        let sizes = code.iter().filter(|insn| insn.code == 0xb7 && insn.dst_reg() == 2);
        assert_eq!(sizes.map(|insn| insn.imm).collect::<Vec<_>>(), [8, 3]);
    }

    #[test]
    fn what_is_too_long_is_not_looked_for() {
        let name = "x".repeat(NAME);
        assert!(program(&[&name[1..]]).is_some());
        assert!(program(&[&name]).is_none());
        assert_eq!(usize::try_from(FOUND - TEXT), Ok(NAME), "its room on the stack");
    }
}

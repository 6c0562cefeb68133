//! A classic BPF program that refuses events of unwanted flow types before they are queued.
//!
//! It pays where a filter leaves out much: an event refused costs no room in the queue and no system call. The kernel
//! makes the message all the same.

use nix::libc::{
    self, BPF_ABS, BPF_B, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MISC, BPF_RET,
    BPF_TAX, BPF_W, sock_filter,
};

use super::entry::cta;
use super::message::{FAMILY_HEADER, HEADER};
use crate::model::Filter;

/// Ancillary loads (`linux/filter.h`): the offset of an attribute of kind X, searched from offset A.
const FIND_ATTRIBUTE: u32 = (libc::SKF_AD_OFF + 12).cast_unsigned();
/// The same inside the nest at offset A.
const FIND_NESTED: u32 = (libc::SKF_AD_OFF + 16).cast_unsigned();

const TAKE: u32 = u32::MAX;
const REFUSE: u32 = 0;

/// Where the family and the first attribute lie.
const FAMILY_AT: u32 = 16;
const ATTRIBUTES_AT: u32 = 20;
const _: () = assert!(FAMILY_AT as usize == HEADER && ATTRIBUTES_AT as usize == HEADER + FAMILY_HEADER);

#[expect(clippy::cast_possible_truncation, reason = "operation codes have 16 bits")]
const fn op(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Returns `verdict` where A is `value`.
fn if_equal(program: &mut Vec<sock_filter>, value: u32, verdict: u32) {
    program.push(sock_filter { jt: 0, jf: 1, ..op(BPF_JMP | BPF_JEQ | BPF_K, value) });
    program.push(op(BPF_RET | BPF_K, verdict));
}

/// The program for a filter; empty where every flow type is wanted. What cannot be told is let through: the reader
/// looks again.
pub(super) fn program(filter: &Filter) -> Vec<sock_filter> {
    let mut program = Vec::new();
    if let Some(family) = filter.family {
        program.push(op(BPF_LD | BPF_B | BPF_ABS, FAMILY_AT));
        program.push(sock_filter { jt: 1, jf: 0, ..op(BPF_JMP | BPF_JEQ | BPF_K, family.into()) });
        program.push(op(BPF_RET | BPF_K, REFUSE));
    }
    if let Some(protos) = &filter.protos {
        program.push(op(BPF_LD | BPF_IMM, ATTRIBUTES_AT));
        let path = [
            (cta::TUPLE_ORIG, FIND_ATTRIBUTE),
            (cta::TUPLE_PROTO, FIND_NESTED),
            (cta::PROTO_NUM, FIND_NESTED),
        ];
        for (kind, find) in path {
            program.push(op(BPF_LDX | BPF_IMM, kind.into()));
            program.push(op(BPF_LD | BPF_W | BPF_ABS, find));
            if_equal(&mut program, 0, TAKE);
        }
        program.push(op(BPF_MISC | BPF_TAX, 0));
        // Behind the attribute's header of 4 bytes.
        program.push(op(BPF_LD | BPF_B | BPF_IND, 4));
        for proto in (0..=u8::MAX).filter(|proto| protos.contains(*proto)) {
            if_equal(&mut program, proto.into(), TAKE);
        }
        program.push(op(BPF_RET | BPF_K, REFUSE));
    } else if !program.is_empty() {
        program.push(op(BPF_RET | BPF_K, TAKE));
    }
    program
}

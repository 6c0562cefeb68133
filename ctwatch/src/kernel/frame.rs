//! How deep the stack is where a function calls another, from its machine code.
//!
//! Who asked for a removal is told by the return address of `nf_ct_delete`. A hook on the function
//! that it calls finds that address at a fixed distance on the stack: the compiler's frame. To read
//! it from the code saves a second hook on every removal.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// Instructions that a function may have.
const MOST: usize = 4096;

/// Bytes from the stack pointer at the entry of `callee` to the return address of the function whose
/// `code` lies at `start`. `None` where it does not call `callee`, or not always at the same depth, or
/// does with its stack what this cannot follow.
pub fn distance(code: &[u8], start: u64, callee: u64) -> Option<u32> {
    let end = start.checked_add(u64::try_from(code.len()).ok()?)?;
    // The depth at each instruction that was met: bytes pushed since the entry.
    let mut known: BTreeMap<u64, i64> = BTreeMap::new();
    let mut ahead = vec![(start, 0_i64)];
    let mut found = None;
    while let Some((at, depth)) = ahead.pop() {
        if at < start || at >= end {
            // The part that the compiler moved away (`.cold`), or a tail call.
            continue;
        }
        match known.insert(at, depth) {
            Some(before) if before == depth => continue,
            Some(_) => return None,
            None => {}
        }
        let offset = usize::try_from(at - start).ok()?;
        let instruction = Decoder::with_ip(64, &code[offset..], at, DecoderOptions::NONE).decode();
        if instruction.is_invalid() || known.len() > MOST {
            return None;
        }
        let next = instruction.next_ip();
        match instruction.flow_control() {
            FlowControl::Next => ahead.push((next, depth + pushed(&instruction)?)),
            FlowControl::Call | FlowControl::IndirectCall => {
                if instruction.near_branch_target() == callee
                    && found.replace(depth + 8).is_some_and(|before| before != depth + 8)
                {
                    return None;
                }
                ahead.push((next, depth));
            }
            FlowControl::ConditionalBranch => {
                ahead.push((next, depth));
                ahead.push((instruction.near_branch_target(), depth));
            }
            FlowControl::UnconditionalBranch => {
                let target = instruction.near_branch_target();
                if target == callee {
                    // A tail call: the callee's return address is the caller's own.
                    return None;
                }
                ahead.push((target, depth));
            }
            FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
            | FlowControl::Interrupt => {}
            FlowControl::XbeginXabortXend => return None,
        }
    }
    found.and_then(|distance| u32::try_from(distance).ok())
}

/// Bytes that an instruction pushes; `None` where it sets the stack pointer in another way.
fn pushed(instruction: &Instruction) -> Option<i64> {
    let implicit = -i64::from(instruction.stack_pointer_increment());
    if implicit != 0 {
        return (instruction.mnemonic() != Mnemonic::Leave).then_some(implicit);
    }
    let writes_stack_pointer = instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().full_register() == Register::RSP;
    let by = || match instruction.op1_kind() {
        OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(instruction.immediate(1).cast_signed()),
        _ => None,
    };
    match instruction.mnemonic() {
        _ if !writes_stack_pointer => Some(0),
        Mnemonic::Sub => by(),
        Mnemonic::Add => by().map(|by| -by),
        Mnemonic::Cmp | Mnemonic::Test => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 0xffff_ffff_c000_1000;

    /// `call` from `at` to the callee, which lies 0x1000 behind the start.
    fn call(at: usize) -> [u8; 5] {
        let to = 0x1000 - i32::try_from(at).unwrap() - 5;
        let [a, b, c, d] = to.to_le_bytes();
        [0xe8, a, b, c, d]
    }

    fn of(parts: &[&[u8]]) -> Option<u32> {
        let mut code = vec![0x0f, 0x1f, 0x44, 0x00, 0x00]; // nop: where ftrace hooks in
        for part in parts {
            if *part == b"CALL" {
                let call = call(code.len());
                code.extend(call);
            } else {
                code.extend_from_slice(part);
            }
        }
        distance(&code, START, START + 0x1000)
    }

    const PUSH_RBP: &[u8] = &[0x55];
    const PUSH_R12: &[u8] = &[0x41, 0x54];
    const POP_RBP: &[u8] = &[0x5d];
    const POP_R12: &[u8] = &[0x41, 0x5c];
    const SUB_16: &[u8] = &[0x48, 0x83, 0xec, 0x10];
    const ADD_16: &[u8] = &[0x48, 0x83, 0xc4, 0x10];
    const RET: &[u8] = &[0xc3];
    const CALL: &[u8] = b"CALL";
    const ALIGN: &[u8] = &[0x48, 0x83, 0xe4, 0xf0]; // and rsp, -16

    #[test]
    fn pushes_and_room_for_variables_add_up() {
        assert_eq!(of(&[CALL, RET]), Some(8));
        assert_eq!(of(&[PUSH_R12, PUSH_RBP, CALL, POP_RBP, POP_R12, RET]), Some(24));
        assert_eq!(of(&[PUSH_RBP, SUB_16, CALL, ADD_16, CALL_AFTER, POP_RBP, RET]), Some(32));
    }

    /// A call of something else, at whatever depth.
    const CALL_AFTER: &[u8] = &[0xe8, 0x00, 0x10, 0x00, 0x00];

    #[test]
    fn a_frame_made_after_an_early_return_is_seen() {
        // test rdi, rdi; je over the body to the return
        let early = [0x48, 0x85, 0xff, 0x74, 0x07];
        assert_eq!(of(&[&early, PUSH_RBP, CALL, POP_RBP, RET]), Some(16));
    }

    #[test]
    fn what_cannot_be_followed_is_no_distance() {
        assert_eq!(of(&[PUSH_RBP, POP_RBP, RET]), None, "no call");
        assert_eq!(of(&[CALL, PUSH_RBP, CALL, POP_RBP, RET]), None, "two depths");
        assert_eq!(of(&[ALIGN, CALL, RET]), None, "an aligned stack");
        assert_eq!(of(&[&[0x06], CALL]), None, "no instruction");
        let jump = [0xe9, 0xf6, 0x0f, 0x00, 0x00];
        assert_eq!(of(&[&jump]), None, "a tail call");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(code in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = distance(&code, START, START + 0x1000);
        }
    }
}

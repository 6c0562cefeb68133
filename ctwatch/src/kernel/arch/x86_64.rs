//! x86-64: what the stack and the registers hold where a function calls another, from its machine code.
//!
//! Who asked for a removal is told by the return address of `nf_ct_delete`. A hook on the function
//! that it calls finds that address at a fixed distance on the stack: the compiler's frame. Whose
//! flow `__nf_conntrack_alloc` refuses is told by its arguments: where it calls `net_ratelimit`, some
//! register still holds each. To read both from the code saves two hooks on every flow.

use std::collections::BTreeMap;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

/// What `uname -m` prints on such a kernel; the second under `setarch i686`, where a 64-bit program runs all the same.
pub const MACHINES: [&str; 2] = ["x86_64", "i686"];

/// The system call `getppid`.
pub const GETPPID: &str = "__do_sys_getppid";

/// Instructions that a function may have.
const MOST: usize = 4096;

/// Where indirect branches may land.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// A piece of a function's machine code.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Where it lies in the kernel.
    pub start: u64,
    /// All of it.
    pub code: &'a [u8],
}

impl<'a> Piece<'a> {
    /// The code from an address on; `None` if that lies elsewhere.
    fn from(&self, at: u64) -> Option<&'a [u8]> {
        self.code.get(usize::try_from(at.checked_sub(self.start)?).ok()?..).filter(|code| !code.is_empty())
    }
}

/// What holds at one place of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// Bytes pushed since the entry.
    depth: i64,
    /// The argument that each register holds, by the register's number.
    holds: [Option<u8>; 16],
}

/// Integer arguments, in order (System V ABI for x86-64).
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Registers that a call may change.
const SCRATCH: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// `pt_regs` from its beginning (arch/x86/include/asm/ptrace.h).
const PT_REGS: [Register; 15] = [
    Register::R15,
    Register::R14,
    Register::R13,
    Register::R12,
    Register::RBP,
    Register::RBX,
    Register::R11,
    Register::R10,
    Register::R9,
    Register::R8,
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
];

/// Bytes from the stack pointer at the entry of `callee` to the return address of the function whose
/// `code` lies at `start`. `None` where it does not call `callee`, or not always at the same depth, or
/// does with its stack what this cannot follow.
pub fn distance(code: &[u8], start: u64, callee: u64) -> Option<u32> {
    let depth = at_calls(&[Piece { start, code }], callee)?.depth;
    // The stack holds words. After an `enter` of an odd size, which no compiler makes, an address would lie across two.
    if depth % 8 != 0 {
        return None;
    }
    u32::try_from(depth + 8).ok()
}

/// The places in `pt_regs`, in bytes, of registers that hold the caller's first arguments whenever
/// `callee` is entered from there; `None` for one that is in no register. The caller is entered at the first of its
/// `pieces`; the others are what the compiler moved away (`.cold`).
pub fn arguments(pieces: &[Piece<'_>], callee: u64) -> [Option<u32>; ARGUMENTS.len()] {
    let state = at_calls(pieces, callee);
    std::array::from_fn(|argument| {
        let holds = state?.holds;
        let held = |register: &Register| holds[register.number()].map(usize::from) == Some(argument);
        let place = PT_REGS.iter().position(held)?;
        u32::try_from(8 * place).ok()
    })
}

/// What holds at every call of `callee`.
fn at_calls(pieces: &[Piece<'_>], callee: u64) -> Option<State> {
    let entry = pieces.first()?;
    let mut info = InstructionInfoFactory::new();
    let mut known: BTreeMap<u64, State> = BTreeMap::new();
    let mut ahead = vec![(entry.start, State::at_entry())];
    let mut found: Option<State> = None;
    while let Some((at, state)) = ahead.pop() {
        let Some(code) = pieces.iter().find_map(|piece| piece.from(at)) else {
            // A tail call.
            continue;
        };
        let state = match known.get(&at) {
            None => state,
            Some(before) if before.depth != state.depth => return None,
            Some(before) if before.both(state) == *before => continue,
            Some(before) => before.both(state),
        };
        known.insert(at, state);
        let instruction = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
        if instruction.is_invalid() || known.len() > MOST {
            return None;
        }
        let next = instruction.next_ip();
        match instruction.flow_control() {
            FlowControl::Next => ahead.push((next, state.after(&instruction, &mut info)?)),
            FlowControl::Call | FlowControl::IndirectCall => {
                if instruction.near_branch_target() == callee {
                    match &mut found {
                        Some(before) if before.depth != state.depth => return None,
                        Some(before) => *before = before.both(state),
                        None => found = Some(state),
                    }
                }
                // What ftrace puts at the entry, or behind its `endbr64`, keeps every register.
                let offset = at.wrapping_sub(entry.start);
                let traced = offset == 0 || offset == 4 && entry.code.starts_with(&ENDBR64);
                ahead.push((next, if traced { state } else { state.after_call() }));
            }
            FlowControl::ConditionalBranch => {
                ahead.push((next, state));
                ahead.push((instruction.near_branch_target(), state));
            }
            FlowControl::UnconditionalBranch => {
                let target = instruction.near_branch_target();
                if target == callee {
                    // A tail call: the callee's return address is the caller's own.
                    return None;
                }
                ahead.push((target, state));
            }
            FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
            | FlowControl::Interrupt => {}
            FlowControl::XbeginXabortXend => return None,
        }
    }
    found
}

impl State {
    fn at_entry() -> Self {
        let mut holds = [None; 16];
        for (argument, register) in (0..).zip(ARGUMENTS) {
            holds[register.number()] = Some(argument);
        }
        Self { depth: 0, holds }
    }

    /// What holds whichever of two ways led here.
    fn both(mut self, other: Self) -> Self {
        for (mine, theirs) in self.holds.iter_mut().zip(other.holds) {
            *mine = mine.filter(|argument| theirs == Some(*argument));
        }
        self
    }

    fn after_call(mut self) -> Self {
        for register in SCRATCH {
            self.holds[register.number()] = None;
        }
        self
    }

    /// `None` where the instruction sets the stack pointer in a way that cannot be followed.
    fn after(mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Option<Self> {
        self.depth += pushed(instruction)?;
        let moved = (instruction.mnemonic() == Mnemonic::Mov && instruction.op1_register().is_gpr64())
            .then(|| self.holds[instruction.op1_register().number()])
            .flatten();
        let writes = |access| {
            matches!(
                access,
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            )
        };
        for used in info.info(instruction).used_registers() {
            let register = used.register().full_register();
            if writes(used.access()) && register.is_gpr64() {
                self.holds[register.number()] = None;
            }
        }
        if instruction.op0_register().is_gpr64() && moved.is_some() {
            self.holds[instruction.op0_register().number()] = moved;
        }
        Some(self)
    }
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

    fn assembled(parts: &[&[u8]]) -> Vec<u8> {
        let mut code = vec![0x0f, 0x1f, 0x44, 0x00, 0x00]; // nop: where ftrace hooks in
        for part in parts {
            if *part == b"CALL" {
                let call = call(code.len());
                code.extend(call);
            } else {
                code.extend_from_slice(part);
            }
        }
        code
    }

    fn of(parts: &[&[u8]]) -> Option<u32> {
        distance(&assembled(parts), START, START + 0x1000)
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

    fn in_one_piece(code: &[u8], callee: u64) -> [Option<u32>; ARGUMENTS.len()] {
        arguments(&[Piece { start: START, code }], callee)
    }

    /// The places of the first three arguments.
    fn held(parts: &[&[u8]]) -> [Option<u32>; 3] {
        let [first, second, third, ..] = in_one_piece(&assembled(parts), START + 0x1000);
        [first, second, third]
    }

    const MOV_R15_RDX: &[u8] = &[0x49, 0x89, 0xd7];
    const MOV_RBP_RDI: &[u8] = &[0x48, 0x89, 0xfd];
    const MOV_R14_RSI: &[u8] = &[0x49, 0x89, 0xf6];
    const MOV_R14D_ESI: &[u8] = &[0x41, 0x89, 0xf6];
    const XOR_EBP_EBP: &[u8] = &[0x31, 0xed];

    #[test]
    fn arguments_are_found_where_a_call_does_not_reach_them() {
        let saved = [MOV_R15_RDX, MOV_RBP_RDI, MOV_R14_RSI];
        assert_eq!(held(&[&saved[..], &[CALL_AFTER, CALL, RET]].concat()), [Some(32), Some(8), Some(0)]);
        assert_eq!(held(&[CALL_AFTER, CALL, RET]), [None; 3], "not saved before another call");
        assert_eq!(held(&[CALL, RET]), [Some(112), Some(104), Some(96)], "still where they came");
    }

    #[test]
    fn what_was_written_over_is_no_argument() {
        assert_eq!(held(&[MOV_RBP_RDI, XOR_EBP_EBP, CALL_AFTER, CALL, RET])[0], None);
        assert_eq!(held(&[MOV_R14D_ESI, CALL_AFTER, CALL, RET])[1], None, "half of one");
        assert_eq!(held(&[MOV_RBP_RDI, POP_RBP, CALL_AFTER, CALL, RET])[0], None);
    }

    #[test]
    fn an_argument_must_be_there_on_every_way() {
        // test rdi, rdi; je over what follows
        let skip = |bytes: u8| [0x48, 0x85, 0xff, 0x74, bytes];
        let way = skip(2);
        let saved: [&[u8]; 2] = [MOV_R15_RDX, MOV_RBP_RDI];
        let found = held(&[&saved[..], &[&way, XOR_EBP_EBP, CALL_AFTER, CALL, RET]].concat());
        assert_eq!(found, [None, None, Some(0)]);
        // Two calls, as on 7.3.
        let way = skip(6);
        let found = held(&[&saved[..], &[CALL_AFTER, &way, CALL, RET, CALL, RET]].concat());
        assert_eq!(found, [Some(32), None, Some(0)]);
    }

    #[test]
    fn a_part_that_was_moved_away_is_followed_there_and_back() {
        /// `jmp` from one address to another.
        fn jump(from: u64, to: u64) -> Vec<u8> {
            let distance = i32::try_from(to.cast_signed() - from.cast_signed()).unwrap() - 5;
            [&[0xe9][..], &distance.to_le_bytes()].concat()
        }
        // test rdi, rdi; je over the jump to the cold part; a call of something else; the call.
        let mut main = assembled(&[MOV_R15_RDX, MOV_RBP_RDI, &[0x48, 0x85, 0xff, 0x74, 5]]);
        let (cold, away) = (START + 0x800, START + u64::try_from(main.len()).unwrap());
        main.extend(jump(away, cold));
        let back = away + 5;
        main.extend(CALL_AFTER);
        main.extend(call(main.len()));
        main.extend(RET);
        let places = |cold_code: &[u8]| {
            let pieces = [Piece { start: START, code: &main }, Piece { start: cold, code: cold_code }];
            let [first, _, third, ..] = arguments(&pieces, START + 0x1000);
            [first, third]
        };
        // ud2 ends the way; one that leads back has changed a register, or not.
        assert_eq!(places(&[0x0f, 0x0b]), [Some(32), Some(0)]);
        assert_eq!(places(&jump(cold, back)), [Some(32), Some(0)]);
        assert_eq!(places(&[XOR_EBP_EBP, &jump(cold + 2, back)].concat()), [None, Some(0)]);
        // And a call from there is one too.
        let distance = (START + 0x1000 - cold - 2 - 5).to_le_bytes();
        let calls = [XOR_EBP_EBP, &[0xe8], &distance[..4], &jump(cold + 7, back)].concat();
        assert_eq!(places(&calls), [None, Some(0)]);
    }

    #[test]
    fn what_ftrace_calls_at_the_entry_keeps_the_registers() {
        let mut code = assembled(&[CALL, RET]);
        code[..5].copy_from_slice(&[0xe8, 0, 0, 0, 1]);
        assert_eq!(in_one_piece(&code, START + 0x1000)[0], Some(112));
        let landing = [&ENDBR64, &code[..]].concat();
        assert_eq!(in_one_piece(&landing, START + 0x1004)[0], Some(112));
        let pushes = [&[0x55, 0x90, 0x90, 0x90], &code[..]].concat();
        assert_eq!(in_one_piece(&pushes, START + 0x1004)[0], None, "an ordinary call");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(code in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = distance(&code, START, START + 0x1000);
            let _ = in_one_piece(&code, START + 0x1000);
        }
    }
}

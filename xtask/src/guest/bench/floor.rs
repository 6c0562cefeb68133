//! The floor: four programs that add one to a counter and do nothing else. What they cost, any observer pays that
//! hears of refusals, confirmations, evictions and removals through BPF trampolines. An entry trampoline is cheaper
//! than one that sees the return, so the return is watched only where the event is in it.
//!
//! Loaded by bare system calls, so that nothing of ctwatch, and no other loader, is in the figure.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use anyhow::Context;
use nix::libc;

use super::super::space::checked;

/// A function, and whether its return is watched.
pub(in super::super) type Hook = (&'static str, bool);

/// Refusals and failed evictions show only at a return.
const HOOKS: [Hook; 4] = [
    ("__nf_conntrack_alloc", true),
    ("__nf_conntrack_confirm", false),
    ("early_drop", true),
    ("nf_ct_delete", false),
];

/// Numbers of uapi/linux/bpf.h.
mod uapi {
    pub(super) const MAP_CREATE: i64 = 0;
    pub(super) const MAP_LOOKUP_ELEM: i64 = 1;
    pub(super) const PROG_LOAD: i64 = 5;
    pub(super) const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub(super) const RAW_TRACEPOINT_OPEN: i64 = 17;
    pub(super) const BTF_GET_FD_BY_ID: i64 = 19;
    pub(super) const BTF_GET_NEXT_ID: i64 = 23;
    pub(super) const MAP_TYPE_ARRAY: u32 = 2;
    pub(super) const PROG_TYPE_TRACING: u32 = 26;
    pub(super) const PSEUDO_MAP_VALUE: u64 = 2;
    pub(super) const TRACE_FENTRY: u32 = 24;
    pub(super) const TRACE_FEXIT: u32 = 25;
}

/// Where the kernel shows its types, and the module's where conntrack is one.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
const MODULE_TYPES: &str = "/sys/kernel/btf/nf_conntrack";

/// The programs, attached until dropped.
#[derive(Debug)]
pub(in super::super) struct Floor {
    counters: OwnedFd,
    programs: usize,
    _held: Vec<OwnedFd>,
}

impl Floor {
    /// Loads and attaches them.
    pub(super) fn attach() -> anyhow::Result<Self> {
        Self::on(&HOOKS)
    }

    /// The same with programs for other functions.
    pub(in super::super) fn on(hooks: &[Hook]) -> anyhow::Result<Self> {
        let is_module = fs::exists(MODULE_TYPES)?;
        let module = is_module.then(|| module_types("nf_conntrack")).transpose()?;
        let types = if is_module {
            checked(Command::new("bpftool").args(["-B", TYPES, "btf", "dump", "file", MODULE_TYPES]))?
        } else {
            checked(Command::new("bpftool").args(["btf", "dump", "file", TYPES]))?
        };
        let counters = create_counters(hooks.len())?;
        let mut held = Vec::new();
        for (number, (function, at_return)) in (0..).zip(hooks.iter().copied()) {
            let id = function_type(&types, function).with_context(|| format!("no type of {function}"))?;
            let program = load(id, at_return, module.as_ref(), &counters, number)
                .with_context(|| format!("load a program for {function}"))?;
            let mut attr = Attr::default();
            attr.u32(8, program.as_raw_fd().cast_unsigned());
            held.push(attr.open(uapi::RAW_TRACEPOINT_OPEN).with_context(|| format!("attach to {function}"))?);
            held.push(program);
        }
        held.extend(module);
        Ok(Self { counters, programs: hooks.len(), _held: held })
    }

    /// How often each ran, in the order in which they were named.
    pub(in super::super) fn counts(&self) -> anyhow::Result<Vec<u64>> {
        let mut counts = vec![0_u64; self.programs];
        let key = 0_u32;
        let mut attr = Attr::default();
        attr.u32(0, self.counters.as_raw_fd().cast_unsigned());
        attr.u64(8, &raw const key as u64);
        attr.u64(16, counts.as_mut_ptr() as u64);
        attr.call(uapi::MAP_LOOKUP_ELEM).context("read the counters")?;
        Ok(counts)
    }
}

/// `union bpf_attr`: long enough for every command used here, zero where nothing was put.
#[derive(Default)]
struct Attr([u64; 16]);

impl Attr {
    fn u32(&mut self, offset: usize, value: u32) {
        let word = &mut self.0[offset / 8];
        *word |= u64::from(value) << (offset % 8 * 8);
    }

    fn u64(&mut self, offset: usize, value: u64) {
        self.0[offset / 8] = value;
    }

    fn call(&mut self, command: i64) -> io::Result<i32> {
        // SAFETY: the pointer is to as many bytes as are given, and what they point to outlives the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of_val(&self.0)) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            i32::try_from(result).map_err(io::Error::other)
        }
    }

    fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the call gave a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// The number of a function in what `bpftool btf dump` prints.
fn function_type(types: &str, function: &str) -> Option<u32> {
    let name = format!("FUNC '{function}'");
    let line = types.lines().find(|line| line.contains(&name))?;
    line.strip_prefix('[')?.split_once(']')?.0.parse().ok()
}

/// One array entry with a counter for each program.
fn create_counters(programs: usize) -> anyhow::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr.u32(0, uapi::MAP_TYPE_ARRAY);
    attr.u32(4, 4);
    attr.u32(8, u32::try_from(8 * programs)?);
    attr.u32(12, 1);
    attr.open(uapi::MAP_CREATE).context("create the counters")
}

/// The type information of a module, found by its name.
fn module_types(module: &str) -> anyhow::Result<OwnedFd> {
    let mut id = 0;
    loop {
        let mut attr = Attr::default();
        attr.u32(0, id);
        attr.call(uapi::BTF_GET_NEXT_ID).with_context(|| format!("the kernel shows no types of {module}"))?;
        id = u32::try_from(attr.0[0] >> 32)?;
        let mut attr = Attr::default();
        attr.u32(0, id);
        let types = attr.open(uapi::BTF_GET_FD_BY_ID)?;
        let mut name = [0_u8; 64];
        // struct bpf_btf_info: name and its length are behind the data, its size and the id.
        let mut info = [0_u64; 4];
        info[2] = name.as_mut_ptr() as u64;
        info[3] = u64::try_from(name.len())?;
        let mut attr = Attr::default();
        attr.u32(0, types.as_raw_fd().cast_unsigned());
        attr.u32(4, u32::try_from(size_of_val(&info))?);
        attr.u64(8, info.as_mut_ptr() as u64);
        attr.call(uapi::OBJ_GET_INFO_BY_FD)?;
        if name.split(|byte| *byte == 0).next() == Some(module.as_bytes()) {
            return Ok(types);
        }
    }
}

/// `counter[number] += 1; return 0`.
fn load(
    function: u32,
    at_return: bool,
    module: Option<&OwnedFd>,
    counters: &OwnedFd,
    number: u32,
) -> anyhow::Result<OwnedFd> {
    // struct bpf_insn as a word: code, registers (destination, source), offset, immediate.
    let insn = |code: u64, destination: u64, source: u64, immediate: u32| {
        code | destination << 8 | source << 12 | u64::from(immediate) << 32
    };
    let code = [
        insn(0x18, 1, uapi::PSEUDO_MAP_VALUE, counters.as_raw_fd().cast_unsigned()),
        insn(0, 0, 0, number * 8),
        insn(0x79, 2, 1, 0),
        insn(0x07, 2, 0, 1),
        insn(0x7b, 1, 2, 0),
        insn(0xb7, 0, 0, 0),
        insn(0x95, 0, 0, 0),
    ];
    let mut log = vec![0_u8; 16 << 10];
    let mut attr = Attr::default();
    attr.u32(0, uapi::PROG_TYPE_TRACING);
    attr.u32(4, u32::try_from(code.len())?);
    attr.u64(8, code.as_ptr() as u64);
    attr.u64(16, c"GPL".as_ptr() as u64);
    attr.u32(24, 1);
    attr.u32(28, u32::try_from(log.len())?);
    attr.u64(32, log.as_mut_ptr() as u64);
    attr.u64(48, u64::from_le_bytes(*b"floor\0\0\0") | u64::from(b'0' + u8::try_from(number)?) << 40);
    attr.u32(68, if at_return { uapi::TRACE_FEXIT } else { uapi::TRACE_FENTRY });
    attr.u32(108, function);
    if let Some(module) = module {
        attr.u32(112, module.as_raw_fd().cast_unsigned());
    }
    attr.open(uapi::PROG_LOAD).map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        anyhow::anyhow!("{error}\n{}", String::from_utf8_lossy(&log[..end]))
    })
}

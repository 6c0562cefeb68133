//! Programs on BPF trampolines of functions that live in a module.
//!
//! aya (through 0.16) attaches fentry and fexit programs to functions of vmlinux only. So the maps
//! are aya's, and the programs that this file loads share them: the same object is parsed once
//! more, its references are pointed at aya's maps, and `BPF_PROG_LOAD` gets the function's number
//! in the module's type information together with that BTF object's descriptor.

use std::{
    collections::HashSet,
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{
    Object,
    generated::{bpf_attach_type, bpf_attr, bpf_btf_info, bpf_cmd, bpf_prog_type},
};
use nix::libc;

use crate::kernel::plan::Method;

/// An attached program. Dropping it detaches.
#[derive(Debug)]
pub struct Trampoline {
    /// The program.
    pub program: OwnedFd,
    _link: OwnedFd,
}

/// The object, ready to give programs that use aya's maps.
#[derive(Debug)]
pub struct Trampolines {
    object: Object,
    /// The module's BTF object; `None` where the functions are vmlinux's own.
    btf: Option<OwnedFd>,
}

impl Trampolines {
    /// Parses `data` again and points it at the maps of `ebpf`, which was loaded from the same
    /// bytes. `module` is the module that holds the functions, or `None` for vmlinux.
    pub fn new(data: &[u8], ebpf: &Ebpf, module: Option<&str>) -> Result<Self> {
        let mut object = Object::parse(data).context("cannot parse the eBPF object")?;
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let maps = object.maps.clone();
        let fds: Vec<(&str, RawFd, &aya_obj::Map)> = maps
            .iter()
            .filter_map(|(name, map)| {
                let fd = map_data(ebpf.map(name)?)?.fd().as_fd().as_raw_fd();
                Some((name.as_str(), fd, map))
            })
            .collect();
        object.relocate_maps(fds.into_iter(), &text).context("cannot relocate map references")?;
        object.relocate_calls(&text).context("cannot relocate calls")?;
        let btf = module.map(btf_object).transpose()?;
        Ok(Self { object, btf })
    }

    /// Loads `program` for the function with this type number and attaches it.
    pub fn attach(&self, program: &str, method: Method, function: u32) -> Result<Trampoline> {
        let attach_type = match method {
            Method::Fentry => bpf_attach_type::BPF_TRACE_FENTRY,
            Method::Fexit => bpf_attach_type::BPF_TRACE_FEXIT,
            Method::Kprobe | Method::Kretprobe => bail!("{program} is not a trampoline program"),
        };
        let parsed = self
            .object
            .programs
            .get(program)
            .with_context(|| format!("the object has no program {program}"))?;
        let code = &self.object.functions[&parsed.function_key()].instructions;
        let mut attr = zeroed();
        // SAFETY: the variant for BPF_PROG_LOAD; every byte of it was set to zero.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
        load.expected_attach_type = attach_type as u32;
        load.insns = code.as_ptr() as u64;
        load.insn_cnt = u32::try_from(code.len())?;
        load.license = parsed.license.as_ptr() as u64;
        load.attach_btf_id = function;
        // BPF_OBJ_NAME_LEN is 16 with its terminator; the rest stays zero.
        for (to, from) in load.prog_name.iter_mut().take(15).zip(program.bytes()) {
            *to = from.cast_signed();
        }
        if let Some(btf) = &self.btf {
            load.__bindgen_anon_1.attach_btf_obj_fd = btf.as_raw_fd().cast_unsigned();
        }
        let fd = load_program(&mut attr)
            .with_context(|| format!("the kernel does not accept program {program}"))?;
        let mut attr = zeroed();
        attr.raw_tracepoint.prog_fd = fd.as_raw_fd().cast_unsigned();
        let link = bpf_fd(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)
            .with_context(|| format!("cannot attach program {program}"))?;
        Ok(Trampoline { program: fd, _link: link })
    }
}

/// Loads once in silence; if that fails, again with the verifier's log, whose end names the fault.
fn load_program(attr: &mut bpf_attr) -> Result<OwnedFd> {
    let first = match bpf_fd(bpf_cmd::BPF_PROG_LOAD, attr) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut log = vec![0_u8; 256 << 10];
    // SAFETY: the variant for BPF_PROG_LOAD, as the caller filled it.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.log_level = 1;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = u32::try_from(log.len())?;
    if let Ok(fd) = bpf_fd(bpf_cmd::BPF_PROG_LOAD, attr) {
        return Ok(fd);
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n");
    // The verifier gives a reason for what it rejects; a kernel that allows no such program gives none.
    if tail.is_empty() {
        return Err(first)
            .context("it refuses programs of this type altogether; use --source kprobe or netlink");
    }
    Err(first).context(tail)
}

const fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// The BTF object that the kernel keeps for a module.
fn btf_object(module: &str) -> Result<OwnedFd> {
    let mut id = 0;
    loop {
        let mut attr = zeroed();
        attr.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
        // SAFETY: attr holds the id to start from and nothing else.
        unsafe { bpf(bpf_cmd::BPF_BTF_GET_NEXT_ID, &mut attr) }
            .with_context(|| format!("the kernel has no type information of {module}"))?;
        // SAFETY: the kernel has just written the field.
        id = unsafe { attr.__bindgen_anon_6.next_id };
        let mut attr = zeroed();
        attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
        let fd = match bpf_fd(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr) {
            Ok(fd) => fd,
            // The object went away between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => {
                return Err(error).context("cannot open the kernel's BTF objects (needs CAP_SYS_ADMIN)");
            }
        };
        let mut name = [0_u8; 64];
        // SAFETY: plain data of the kernel's interface.
        let mut info: bpf_btf_info = unsafe { mem::zeroed() };
        info.name = name.as_mut_ptr() as u64;
        info.name_len = u32::try_from(name.len())?;
        let mut attr = zeroed();
        attr.info.bpf_fd = fd.as_raw_fd().cast_unsigned();
        attr.info.info = (&raw mut info) as u64;
        attr.info.info_len = u32::try_from(size_of::<bpf_btf_info>())?;
        // SAFETY: info and the name it points to live until the call returns.
        unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
        if info.kernel_btf != 0 && &name[..end] == module.as_bytes() {
            return Ok(fd);
        }
    }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain data, for which the kernel wants unused bytes to be zero.
    unsafe { mem::zeroed() }
}

/// # Safety
///
/// Every address in `attr` must be valid for what `command` does with it.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes no more than the size given; the caller answers for
    // the addresses inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the callers here fill attr with addresses of live buffers only.
    let fd = unsafe { bpf(command, attr) }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

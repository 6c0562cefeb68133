//! What aya does not read of `bpf(2)`: the statistics of a loaded program.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info};
use nix::libc;

/// What the kernel says of a program's runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramStats {
    /// Nanoseconds spent in it while statistics were on (5.1).
    pub run_ns: u64,
    /// Runs while statistics were on.
    pub runs: u64,
    /// Runs skipped because another program ran on that CPU (trampolines 5.12, kprobes 6.7).
    pub missed: u64,
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a program.
pub fn program_stats(program: BorrowedFd<'_>) -> io::Result<ProgramStats> {
    // SAFETY: the kernel's plain data; all zeroes asks for no arrays.
    let mut info: bpf_prog_info = unsafe { mem::zeroed() };
    // SAFETY: the kernel demands that unused bytes of the union be zero.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.info.bpf_fd = program.as_raw_fd().cast_unsigned();
    attr.info.info = (&raw mut info) as u64;
    attr.info.info_len = u32::try_from(size_of::<bpf_prog_info>()).unwrap_or(0);
    // SAFETY: attr describes a live buffer of the length it gives; an older kernel fills less of
    // it, and a newer one no more than asked.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<bpf_attr>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ProgramStats { run_ns: info.run_time_ns, runs: info.run_cnt, missed: info.recursion_misses })
}

//! The system call `bpf(2)`.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::{io, mem};

use aya_obj::generated::{bpf_attr, bpf_cmd};
use nix::libc;

/// What every call begins with.
pub fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain data, for which the kernel wants unused bytes to be zero.
    unsafe { mem::zeroed() }
}

/// # Safety
///
/// Every address in `attr` must be valid for what `command` does with it.
pub unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes no more than the size given; the caller answers for
    // the addresses inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A command that opens something.
///
/// # Safety
///
/// As for [`bpf`], and `command` must return a new descriptor.
pub unsafe fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller answers for the addresses inside.
    let fd = unsafe { bpf(command, attr) }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

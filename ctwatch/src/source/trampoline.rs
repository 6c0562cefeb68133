//! Programs on BPF trampolines of kernel functions, those in modules included.
//!
//! `BPF_PROG_LOAD` gets the function's number in the type information that describes it, and that
//! BTF object's descriptor where it is a module's (5.11).

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use aya_obj::generated::bpf_cmd;
use nix::libc;

use super::sys::{bpf, bpf_fd, btf_name, zeroed};

/// Attaches a program to the function for which it was loaded. Closing the link detaches.
pub(super) fn attach(program: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut attr = zeroed();
    attr.raw_tracepoint.prog_fd = program.as_raw_fd().cast_unsigned();
    // SAFETY: attr holds a descriptor and nothing else.
    unsafe { bpf_fd(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr) }.context("the kernel makes no trampoline")
}

/// The BTF object that the kernel keeps for a module.
pub(super) fn btf_object(module: &str) -> Result<OwnedFd> {
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
        // SAFETY: attr holds the id and nothing else.
        let fd = match unsafe { bpf_fd(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr) } {
            Ok(fd) => fd,
            // The object went away between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => {
                return Err(error).context("cannot open the kernel's BTF objects (needs CAP_SYS_ADMIN)");
            }
        };
        if btf_name(fd.as_fd())? == (true, module.as_bytes().to_vec()) {
            return Ok(fd);
        }
    }
}

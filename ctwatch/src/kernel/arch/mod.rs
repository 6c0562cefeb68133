//! What userspace knows of the architecture. The netlink source needs none of it.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::{GETPPID, MACHINES, Piece, arguments, distance};

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "ctwatch is written for x86-64 only. Another architecture needs a file beside kernel/arch/x86_64.rs, and the eBPF half \
     has to learn its registers and stack frames"
);

//! Everything that depends on the machine's architecture. The netlink source needs none of it.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::{GETPPID, MACHINES, arguments, distance};

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "ctwatch is written for x86-64 only. Another architecture needs a file beside kernel/arch/x86_64.rs, and one beside \
     src/arch/x86_64.rs of ctwatch-ebpf"
);

//! Everything that depends on the architecture of the kernel that runs the programs.

#[cfg(bpf_target_arch = "x86_64")]
mod x86_64;

#[cfg(bpf_target_arch = "x86_64")]
pub use x86_64::{BEHIND_ARGUMENTS, FRAME_WORDS, TEXT, THREAD_SIZE, entry_sp, return_address_at, return_sp};

#[cfg(not(bpf_target_arch = "x86_64"))]
compile_error!(
    "these programs are written for x86-64 kernels only: build them with `cargo xtask build`. Another architecture needs \
     a file beside arch/x86_64.rs, and one beside kernel/arch/x86_64.rs of ctwatch"
);

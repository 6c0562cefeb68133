//! Where things lie in the checkout.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the checkout: of the one that `cargo xtask` was called in, else of the one this was built from.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// What xtask makes itself (kernels, tools, static binaries) lies here wherever cargo's own target directory is.
pub(crate) fn target(part: &str) -> PathBuf {
    root().join("target").join(part)
}

/// The eBPF object that the `ctwatch` crate embeds; `.cargo/config.toml` names the same file.
pub(crate) fn ebpf_object() -> PathBuf {
    env::var_os("CTWATCH_EBPF_OBJECT").map_or_else(|| target("ebpf/ctwatch-ebpf"), PathBuf::from)
}

/// Where programs lie that were fetched for tests and are not installed.
pub(crate) fn fetched() -> PathBuf {
    target("tools/fetched/usr/bin")
}

/// The program `name`, looked for also where a user without root may not look, and among the fetched ones.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .chain([fetched()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

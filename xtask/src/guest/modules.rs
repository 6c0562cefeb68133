//! Loading conntrack, and taking it out again with everything that leans on it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, delete_module};

use super::space::checked;
use super::wait;

/// What the scenarios need beside what nft loads on demand.
const NEEDED: [&str; 4] = ["nf_conntrack", "nf_conntrack_netlink", "nf_tables", "nft_ct"];

/// Whether the kernel has connection tracking now; looking loads nothing.
pub(super) fn present() -> bool {
    Path::new("/sys/module/nf_conntrack").exists()
        || Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists()
}

/// Loads conntrack, its netlink half and nftables.
pub(super) fn load() -> anyhow::Result<()> {
    for module in NEEDED {
        if !Path::new("/sys/module").join(module).exists() {
            let loaded = checked(Command::new("modprobe").arg(module));
            // Built in: no file for modprobe to find, and nothing to do.
            if !present() {
                loaded?;
            }
        }
    }
    anyhow::ensure!(present(), "nf_conntrack is not there after modprobe");
    Ok(())
}

/// Removes nf_conntrack and every module that uses it.
pub(super) fn unload() -> anyhow::Result<()> {
    checked(Command::new("nft").args(["flush", "ruleset"]))?;
    remove("nf_conntrack")?;
    anyhow::ensure!(!present(), "nf_conntrack is still there after its removal");
    Ok(())
}

fn remove(module: &str) -> anyhow::Result<()> {
    let here = Path::new("/sys/module").join(module);
    if !here.exists() {
        return Ok(());
    }
    for holder in fs::read_dir(here.join("holders")).with_context(|| format!("who uses {module}"))? {
        let holder = holder?.file_name();
        remove(&holder.to_string_lossy())?;
    }
    let name = std::ffi::CString::new(module)?;
    // nft frees rules after a grace period, and only then gives the module back.
    wait::until(&format!("the removal of {module}"), Duration::from_secs(20), || {
        match delete_module(&name, DeleteModuleFlags::O_NONBLOCK) {
            Ok(()) | Err(Errno::ENOENT) => Ok(Ok(())),
            Err(errno @ (Errno::EAGAIN | Errno::EBUSY)) => {
                let text = fs::read_to_string("/proc/modules")?;
                let users =
                    text.lines().find(|line| line.split(' ').next() == Some(module)).unwrap_or_default();
                Ok(Err(format!("{errno}: {users}")))
            }
            Err(errno) => Err(errno).with_context(|| format!("remove {module}")),
        }
    })
}

//! Whether ctnetlink is there, without causing it to be loaded: only /sys, /proc and a file list are read.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::OnceLock;

use crate::kernel::facts::{self, Presence};

/// Why there is nothing to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Connection tracking itself is not loaded.
    Conntrack,
    /// Its netlink module is not loaded.
    Ctnetlink,
    /// Nothing shows that this kernel has it built in.
    Unproven,
}

impl Missing {
    /// What brings it.
    pub const fn way_out(self) -> &'static str {
        match self {
            Self::Conntrack => "it loads when a firewall rule or NAT needs it; ctwatch never loads it",
            Self::Ctnetlink => "to load it: sudo modprobe nf_conntrack_netlink",
            Self::Unproven => "needed: a kernel that has it, or that shows its symbols (CONFIG_KALLSYMS)",
        }
    }

    /// What is missing.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Conntrack => "connection tracking (nf_conntrack) is not loaded: there is nothing to watch",
            Self::Ctnetlink => "the module nf_conntrack_netlink is not loaded, and ctwatch loads no module",
            Self::Unproven => {
                "nothing shows that this kernel has ctnetlink (CONFIG_NF_CT_NETLINK), and trying could load a module"
            }
        }
    }
}

/// Looks whether both are there.
pub fn check() -> Result<(), Missing> {
    let module = Path::new("/sys/module/nf_conntrack_netlink");
    match facts::presence() {
        Presence::Absent => Err(Missing::Conntrack),
        _ if module.join("initstate").exists() => match fs::read_to_string(module.join("initstate")) {
            Ok(state) if state.trim() == "live" => Ok(()),
            _ => Err(Missing::Ctnetlink),
        },
        // It cannot be built in where what it builds on is a module.
        Presence::Module => Err(Missing::Ctnetlink),
        // Code that is built in has no directory of its own unless it has parameters.
        Presence::BuiltIn if module.exists() || is_built_in() => Ok(()),
        Presence::BuiltIn => Err(Missing::Unproven),
    }
}

/// From the kernel's own symbols, or the list that comes with it: read once, since the kernel stays what it is.
fn is_built_in() -> bool {
    static BUILT_IN: OnceLock<bool> = OnceLock::new();
    *BUILT_IN.get_or_init(find_built_in)
}

fn find_built_in() -> bool {
    let release =
        nix::sys::utsname::uname().ok().map(|system| system.release().to_string_lossy().into_owned());
    let listed = release
        .and_then(|release| fs::read_to_string(format!("/lib/modules/{release}/modules.builtin")).ok())
        .is_some_and(|list| list.lines().any(|line| line.ends_with("/nf_conntrack_netlink.ko")));
    listed
        || fs::File::open("/proc/kallsyms").is_ok_and(|file| {
            BufReader::new(file).lines().map_while(Result::ok).any(|line| is_own_symbol(&line))
        })
}

/// A line of kallsyms that names a function of ctnetlink in the kernel image. Names are shown where addresses are not.
fn is_own_symbol(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace().skip(2);
    words.next().is_some_and(|name| name.starts_with("ctnetlink_")) && words.next().is_none()
}

/// Numbers that change when a module that the sockets depend on is loaded anew.
pub fn identity() -> [Option<u64>; 2] {
    use std::os::unix::fs::MetadataExt as _;
    // sysfs makes a new inode for each load (fs/kernfs, 5.10 to 7.3).
    ["/sys/module/nf_conntrack", "/sys/module/nf_conntrack_netlink"]
        .map(|path| fs::metadata(path).ok().map(|directory| directory.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_symbols_of_the_image_prove_it() {
        assert!(is_own_symbol("0000000000000000 t ctnetlink_dump_table"));
        assert!(!is_own_symbol("0000000000000000 t ctnetlink_dump_table\t[nf_conntrack_netlink]"));
        assert!(!is_own_symbol("0000000000000000 t nf_ctnetlink_x"));
        assert!(!is_own_symbol(""));
    }
}

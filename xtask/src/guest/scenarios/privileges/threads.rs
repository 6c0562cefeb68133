//! What the kernel says of the rights of a process's threads.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;
use nix::unistd::Pid;

/// A set of capabilities, as the kernel numbers them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities(u64);

impl Capabilities {
    /// As the kernel writes them.
    pub(super) fn parse(hexadecimal: &str) -> anyhow::Result<Self> {
        Ok(Self(u64::from_str_radix(hexadecimal, 16)?))
    }

    /// One for each.
    pub(super) const fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Numbers of uapi/linux/capability.h.
const NUMBERS: [(&str, u32); 9] = [
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYSLOG", 34),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// The set of these.
pub(super) fn of_names(names: &[&str]) -> anyhow::Result<Capabilities> {
    let mut bits = 0;
    for name in names {
        let (_, number) =
            NUMBERS.iter().find(|(known, _)| known == name).with_context(|| format!("{name}?"))?;
        bits |= 1 << number;
    }
    Ok(Capabilities(bits))
}

/// The text of a `status` file.
#[derive(Debug)]
pub(super) struct Status(String);

impl Status {
    /// Of a process's first thread; `None` where it has ended.
    pub(super) fn read(pid: Pid) -> Option<Self> {
        fs::read_to_string(format!("/proc/{pid}/status")).ok().map(Self)
    }

    fn line(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// Whether it is kept only until its parent waits for it: it has its sets until then, but no filter.
    pub(super) fn has_ended(&self) -> bool {
        self.line("State").unwrap_or_default().starts_with(['Z', 'X'])
    }

    /// The sets must be exactly these, the ambient one like the inheritable one.
    pub(super) fn check(
        &self,
        kept: Capabilities,
        bounding: Capabilities,
        inherited: Capabilities,
    ) -> anyhow::Result<()> {
        let sets = [
            ("CapEff", kept),
            ("CapPrm", kept),
            ("CapInh", inherited),
            ("CapAmb", inherited),
            ("CapBnd", bounding),
        ];
        for (name, wanted) in sets {
            let text = self.line(name).with_context(|| format!("no {name}: {}", self.0))?;
            let found = Capabilities::parse(text)?;
            anyhow::ensure!(
                found == wanted,
                "{name} is {found:?} and not {wanted:?} in {:?}",
                self.line("Name")
            );
        }
        anyhow::ensure!(!self.has_ended(), "{:?} has ended", self.line("Name"));
        // 2 is a filter.
        for (name, wanted) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
            let found = self.line(name);
            anyhow::ensure!(found == Some(wanted), "{name} is {found:?} in {:?}", self.line("Name"));
        }
        Ok(())
    }
}

/// Compares each thread of a process; its programs must not inherit anything.
pub(super) fn check(pid: Pid, kept: Capabilities, bounding: Capabilities) -> anyhow::Result<()> {
    let mut seen = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One may end meanwhile.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        Status(status).check(kept, bounding, Capabilities(0))?;
        seen += 1;
    }
    anyhow::ensure!(seen > 0, "no threads");
    Ok(())
}

/// A child of any thread of the process, by the name of the program that it runs.
pub(super) fn child_called(pid: Pid, name: &str) -> Option<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let children = threads.flatten().filter_map(|thread| children_of(&thread.path())).flatten();
    children.into_iter().find(|child| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    })
}

fn children_of(thread: &Path) -> Option<Vec<Pid>> {
    let text = fs::read_to_string(thread.join("children")).ok()?;
    text.split_whitespace().map(|child| child.parse().ok().map(Pid::from_raw)).collect()
}

/// Whether one of its threads waits in a write to stdout.
pub(super) fn writes(pid: Pid) -> anyhow::Result<bool> {
    let write = nix::libc::SYS_write.to_string();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // The number of the call and its first argument; a thread that ended has none.
        let call = fs::read_to_string(thread?.path().join("syscall")).unwrap_or_default();
        let mut words = call.split_whitespace();
        if words.next() == Some(&write) && words.next() == Some("0x1") {
            return Ok(true);
        }
    }
    Ok(false)
}

//! Which capabilities a process of ctwatch keeps once it has started, and why; which system calls it can still make.
//!
//! The rest is given up before the process starts a thread, so that all threads have the same. What is needed only to
//! open a file is given up too: the file stays open ([`held`](crate::kernel::held)).

mod apply;
mod filter;
mod report;

pub use apply::{Refused, Restricted, restrict};
pub use report::{Report, report};
pub use rustix::thread::CapabilitySet;

/// What a process does after its start that takes rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "any of them may go together")]
pub struct Work {
    /// Reads the kernel's symbols and memory. Their files are opened before rights are given up.
    pub facts: bool,
    /// Attaches programs to the kernel, also later, and reads what they count.
    pub probes: bool,
    /// Enters network namespaces and asks ctnetlink there.
    pub namespaces: bool,
    /// Has other programs list rules, and reads the kernel's log.
    pub rules: bool,
    /// Writes a file where the caller wants it, or removes one at its end.
    pub writes: bool,
    /// Answers clients and the service manager.
    pub serves: bool,
}

/// A capability that is kept, and what for.
pub type Right = (CapabilitySet, &'static str);

const PROBES: [Right; 3] = [
    (CapabilitySet::SYS_ADMIN, "finds the type information of modules, has the kernel time programs"),
    (CapabilitySet::PERFMON, "attaches programs to kernel functions, again when the module comes back"),
    (CapabilitySet::BPF, "loads programs, reads what they count"),
];
const NAMESPACES: [Right; 4] = [
    (CapabilitySet::DAC_READ_SEARCH, "reaches mounts of namespaces in directories of other users"),
    (CapabilitySet::NET_ADMIN, "asks ctnetlink"),
    (CapabilitySet::SYS_PTRACE, "sees in which namespace a process of another user is"),
    (CapabilitySet::SYS_ADMIN, "enters network namespaces"),
];
const RULES: [Right; 4] = [
    (CapabilitySet::DAC_READ_SEARCH, "reads the names of rule tables in namespaces of other users"),
    (CapabilitySet::NET_ADMIN, "nft and iptables list rules"),
    (CapabilitySet::NET_RAW, "iptables asks for a table through a raw socket"),
    (CapabilitySet::SYSLOG, "reads the kernel's log"),
];
const WRITES: [Right; 1] = [(CapabilitySet::DAC_OVERRIDE, "writes into a directory of another user")];

impl Work {
    /// No work that takes rights.
    pub const NOTHING: Self =
        Self { facts: false, probes: false, namespaces: false, rules: false, writes: false, serves: false };

    /// What it keeps. A capability that serves two ends stands there twice.
    pub fn rights(self) -> impl Iterator<Item = Right> {
        let parts: [(bool, &[Right]); 4] = [
            (self.probes, &PROBES),
            (self.namespaces, &NAMESPACES),
            (self.rules, &RULES),
            (self.writes, &WRITES),
        ];
        parts.into_iter().filter(|(does, _)| *does).flat_map(|(_, rights)| rights.iter().copied())
    }

    /// The same as a set.
    pub fn capabilities(self) -> CapabilitySet {
        self.rights().map(|(capability, _)| capability).fold(CapabilitySet::empty(), CapabilitySet::union)
    }
}

/// How to run ctwatch without root: the capabilities go to one file, which only one group may run.
pub fn advice(command: &str, capabilities: &str) -> String {
    format!(
        "run ctwatch as root (sudo {command}), or let one group run it and nobody else, once: \
         sudo chgrp GROUP FILE && sudo chmod 0750 FILE && sudo setcap {capabilities}+ep FILE"
    )
}

/// The same for what asks ctnetlink.
pub fn advice_for_namespaces(command: &str) -> String {
    let all = advice(command, "cap_net_admin,cap_sys_admin,cap_sys_ptrace");
    format!("{all} (the last two only for namespaces other than its own)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_come_with_the_work_that_takes_them() {
        assert_eq!(Work::NOTHING.capabilities(), CapabilitySet::empty());
        let probes = Work { probes: true, ..Work::NOTHING }.capabilities();
        assert_eq!(probes, CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN);
        let namespaces = Work { namespaces: true, ..Work::NOTHING }.capabilities();
        assert!(namespaces.contains(CapabilitySet::SYS_PTRACE) && !namespaces.contains(CapabilitySet::BPF));
        let both = Work { probes: true, namespaces: true, ..Work::NOTHING };
        assert_eq!(both.capabilities(), probes | namespaces);
    }

    #[test]
    fn no_work_takes_modules_kernel_memory_or_the_rights_of_another_user() {
        let all =
            Work { facts: true, probes: true, namespaces: true, rules: true, writes: true, serves: true }
                .capabilities();
        let never = CapabilitySet::SYS_MODULE
            | CapabilitySet::SYS_RAWIO
            | CapabilitySet::SYS_BOOT
            | CapabilitySet::SETUID
            | CapabilitySet::SETGID
            | CapabilitySet::SETPCAP
            | CapabilitySet::SETFCAP
            | CapabilitySet::SYS_CHROOT
            | CapabilitySet::MKNOD
            | CapabilitySet::KILL;
        assert!(!all.intersects(never), "{all:?}");
    }
}

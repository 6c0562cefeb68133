//! What keeps programs from running on this kernel, and the way out.

use std::fmt;

use ctwatch_ebpf::CONN_READ;
use serde::Serialize;

use super::arch::MACHINES;
use super::facts::{Availability, Facts, Presence, offset_names};
use crate::model::SourceKind;
use crate::privileges::advice;

/// Why a source cannot run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The source.
    pub kind: SourceKind,
    /// Each obstacle.
    pub obstacles: Vec<Obstacle>,
}

/// One thing in the way, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// What is missing.
    pub missing: String,
    /// How to mend it.
    pub mend: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} source cannot run here", self.kind.name())?;
        for Obstacle { missing, mend } in &self.obstacles {
            write!(f, "\n  missing: {missing}\n  way out: {mend}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// In one line: the first obstacle.
    pub fn brief(&self) -> String {
        let first = self.obstacles.first().map_or("", |obstacle| obstacle.missing.as_str());
        format!("{} needs {first}", self.kind.name())
    }
}

/// What keeps programs from running, apart from tracking not being there yet.
pub fn obstacles(kind: SourceKind, facts: &Facts) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let mut add = |missing: String, mend: &str| {
        found.push(Obstacle { missing, mend: mend.to_owned() });
    };
    if !facts.machine.is_empty() && !MACHINES.contains(&facts.machine.as_str()) {
        add(
            format!("a kernel for {}: this is one for {}", MACHINES[0], facts.machine),
            "a ctwatch that was built for this machine, or --source netlink",
        );
        return found;
    }
    let caps = facts.capabilities;
    if !caps.sys_admin {
        let lacking: Vec<&str> = [
            (caps.bpf, "CAP_BPF (load programs)"),
            (caps.perfmon, "CAP_PERFMON (attach them to kernel functions)"),
            (caps.net_admin, "CAP_NET_ADMIN (read tracking state)"),
        ]
        .into_iter()
        .filter_map(|(has, name)| (!has).then_some(name))
        .collect();
        if !lacking.is_empty() {
            let mend = advice("ctwatch", "cap_bpf,cap_perfmon,cap_net_admin,cap_syslog");
            add(format!("{} (before Linux 5.8: CAP_SYS_ADMIN)", lacking.join(", ")), &mend);
            // Without rights nothing else could be read; the rest would only mislead.
            return found;
        }
    }
    if kind == SourceKind::Kprobe && !facts.kprobes {
        add(
            "kprobes: this kernel was built without CONFIG_KPROBES or CONFIG_KPROBE_EVENTS".into(),
            "a kernel that has them (every stock distribution kernel does)",
        );
    }
    if facts.lockdown.as_deref() == Some("confidentiality") {
        add(
            "the right to read kernel memory: kernel lockdown is in confidentiality mode".into(),
            "boot with lockdown=integrity, or without lockdown",
        );
    }
    match &facts.btf {
        Availability::Present => {}
        Availability::Absent => add(
            "/sys/kernel/btf/vmlinux: this kernel was built without CONFIG_DEBUG_INFO_BTF".into(),
            "a kernel that has it (stock Debian since 5.10, Ubuntu since 20.10, RHEL since 8.2)",
        ),
        Availability::Unreadable(why) => add(
            format!("usable kernel type information: {why}"),
            "please report this with the output of `ctwatch facts`",
        ),
    }
    if facts.btf == Availability::Present {
        let lacking: Vec<&str> = offset_names().filter(|name| !facts.offsets.contains_key(*name)).collect();
        if !lacking.is_empty() && facts.conntrack != Presence::Absent {
            add(
                format!("the layout of connection tracking in BTF ({})", lacking.join(", ")),
                "a kernel whose nf_conntrack carries type information",
            );
        }
        if facts.conn_length() > CONN_READ {
            add(
                format!("a struct nf_conn with all that ctwatch reads in its first {CONN_READ} bytes"),
                "a kernel without lock debugging, which makes the structure larger",
            );
        }
    }
    if facts.symbols.hidden {
        add(
            "kernel symbol addresses: the kernel hides them".into(),
            "run as root or give CAP_SYSLOG, and check that sysctl kernel.kptr_restrict is not 2",
        );
    }
    found
}

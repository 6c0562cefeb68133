//! What /proc says about processes of the guest.

use std::fs;

use anyhow::Context;
use nix::unistd::Pid;

/// A line of `/proc/PID/status`.
pub(super) fn status(pid: Pid, name: &str) -> anyhow::Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name} of process {pid}"))?.trim().to_owned())
}

/// A line of it that has an amount of memory, in KiB.
pub(super) fn memory_kib(pid: Pid, name: &str) -> anyhow::Result<u64> {
    let amount = status(pid, name)?;
    let number = amount.strip_suffix(" kB").and_then(|amount| amount.parse().ok());
    number.with_context(|| format!("{name} of process {pid}: {amount}"))
}

/// The processes that a process of one thread started, or that its first thread did.
pub(super) fn children(pid: Pid) -> anyhow::Result<Vec<Pid>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.split_whitespace().map(|child| Ok(Pid::from_raw(child.parse()?))).collect()
}

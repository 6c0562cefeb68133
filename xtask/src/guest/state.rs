//! The state each scenario starts from: tracking on in both families, an empty table, nothing that expires by itself.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;

use super::space::{Space, checked};
use super::{wait, witness};

/// More than any scenario makes, so that the limit never interferes unless it is the subject.
const MAX: u32 = 262_144;
/// Few enough entries a bucket for no chain to get long by chance (an entry is hashed twice).
const BUCKETS: u32 = 65_536;
/// Seconds; longer than any scenario runs.
const NEVER: u32 = 900;

/// The packets that open a flow, counted where they leave: a witness beside conntrack's own.
pub(super) const RULES: &str = "table inet watched {
  chain out { type filter hook output priority 0; ct state new counter; }
}
";

/// Timeouts that an entry of the scenarios can have.
const TIMEOUTS: [&str; 18] = [
    "generic_timeout",
    "udp_timeout",
    "udp_timeout_stream",
    "icmp_timeout",
    "icmpv6_timeout",
    "gre_timeout",
    "gre_timeout_stream",
    "tcp_timeout_syn_sent",
    "tcp_timeout_syn_recv",
    "tcp_timeout_established",
    "tcp_timeout_fin_wait",
    "tcp_timeout_close_wait",
    "tcp_timeout_last_ack",
    "tcp_timeout_time_wait",
    "tcp_timeout_close",
    "sctp_timeout_closed",
    "sctp_timeout_cookie_wait",
    "sctp_timeout_cookie_echoed",
];

/// Brings a namespace to that state.
pub(super) fn fresh(space: &Space) -> anyhow::Result<()> {
    prepare(space)?;
    checked(space.command("conntrack").arg("-F"))?;
    wait::until("an empty table", Duration::from_secs(20), || {
        let count = witness::count(space)?;
        Ok(if count == 0 { Ok(()) } else { Err(format!("{count} entries in {}", space.label())) })
    })
}

/// The same without touching the entries.
fn prepare(space: &Space) -> anyhow::Result<()> {
    rules(space, RULES)?;
    let first = space.label() == "init";
    space.enter(|| {
        if first {
            set("nf_conntrack_max", MAX)?;
            buckets(BUCKETS)?;
        }
        for timeout in TIMEOUTS {
            let name = format!("nf_conntrack_{timeout}");
            // Which protocols have a tracker of their own differs by kernel and configuration.
            if sysctl(&name).exists() {
                set(&name, NEVER)?;
            }
        }
        Ok(())
    })?;
    // Any address of this prefix is local: as many distinct IPv6 destinations as 127.0.0.0/8 gives for IPv4.
    checked(space.command("ip").args(["-6", "route", "replace", "local", "fd00:c7::/64", "dev", "lo"]))?;
    Ok(())
}

/// Replaces all nft rules of a namespace.
pub(super) fn rules(space: &Space, rules: &str) -> anyhow::Result<()> {
    let mut child = space
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start nft")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(b"flush ruleset\n")?;
        input.write_all(rules.as_bytes())?;
    }
    let output = child.wait_with_output().context("nft")?;
    anyhow::ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Writes a conntrack sysctl of the namespace that the calling thread is in.
pub(super) fn set(name: &str, value: u32) -> anyhow::Result<()> {
    fs::write(sysctl(name), value.to_string()).with_context(|| format!("set {name} to {value}"))
}

/// The limit of entries in the namespace that the calling thread is in; none without connection tracking.
pub(super) fn limit() -> Option<u32> {
    fs::read_to_string(sysctl("nf_conntrack_max")).ok()?.trim().parse().ok()
}

/// Sets the number of hash buckets, which all namespaces share.
pub(super) fn buckets(count: u32) -> anyhow::Result<()> {
    fs::write("/sys/module/nf_conntrack/parameters/hashsize", count.to_string())
        .with_context(|| format!("set the number of buckets to {count}"))
}

fn sysctl(name: &str) -> std::path::PathBuf {
    Path::new("/proc/sys/net/netfilter").join(name)
}

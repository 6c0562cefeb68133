//! A kube-proxy that sets what its configuration says. It is a script of that name: it sets the limit as kube-proxy does,
//! and then waits for its input to end.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::super::super::space::checked;
use super::super::super::trial::equal;
use super::super::super::{modules, state, wait};
use super::super::init;
use super::{configuration_folders, doctor, no_files_left, shell, sysctl};

const PROGRAM: &str = "/tmp/kube-proxy";
const CONFIGURATION: &str = "/tmp/kube-proxy.conf";
const FILE: &str = "/etc/sysctl.d/90-x.conf";
/// What `FILE` asks for, and what kube-proxy sets.
const WANTED: u64 = 524_288;
const LEAST: u64 = 200_000;
const ROOT: u32 = 0;
const NOBODY: u32 = 65_534;

const SCRIPT: &str = r#"#!/bin/sh
conf="${1#--config=}"
key() { sed -n "s/^  $1: //p" "$conf"; }
if [ "$(id -u)" = 0 ] && [ "$(key maxPerCore)" -gt 0 ]; then
  key min > /proc/sys/net/netfilter/nf_conntrack_max || exit 1
fi
echo started
read -r _
"#;

/// A running kube-proxy; it ends with its input.
struct Proxy(Child);

impl Proxy {
    /// Returns when it has set what it sets.
    fn start(uid: u32) -> anyhow::Result<Self> {
        let mut command = Command::new(PROGRAM);
        command
            .arg(format!("--config={CONFIGURATION}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .uid(uid);
        let mut proxy = Self(command.spawn().context("start kube-proxy")?);
        let mut told = [0; 8];
        let output = proxy.0.stdout.as_mut().context("no output")?;
        output.read_exact(&mut told).context("kube-proxy did not start")?;
        Ok(proxy)
    }

    fn stop(mut self) -> anyhow::Result<()> {
        drop(self.0.stdin.take());
        wait::until("the end of kube-proxy", Duration::from_secs(10), || {
            Ok(self.0.try_wait()?.map(drop).ok_or_else(|| "it runs".to_owned()))
        })
    }
}

fn configure(per_core: u64, least: u64) -> anyhow::Result<()> {
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nconntrack:\n  \
         maxPerCore: {per_core}\n  min: {least}\nmode: iptables\n"
    );
    fs::write(CONFIGURATION, text).context(CONFIGURATION)
}

/// A file that has its reader wait, for a writer or for the kernel's next message, is not read: doctor comes back and says
/// nothing of what was told.
fn waits_for_no_file(told: &str) -> anyhow::Result<()> {
    let pipe: fn() -> anyhow::Result<()> = || Ok(mkfifo(CONFIGURATION, Mode::S_IRWXU)?);
    let log: fn() -> anyhow::Result<()> = || Ok(symlink("/proc/kmsg", CONFIGURATION)?);
    let sysfs: fn() -> anyhow::Result<()> = || Ok(symlink("/sys/kernel/uevent_seqnum", CONFIGURATION)?);
    let none: fn() -> anyhow::Result<()> = || Ok(());
    let regular = "it is no regular file";
    for (make, why) in [(pipe, regular), (log, regular), (sysfs, regular), (none, "there is no such file")] {
        fs::remove_file(CONFIGURATION)?;
        make()?;
        let sick = doctor(&[], 0)?;
        sick.expect(1, "warning")?;
        let finding = sick.finding("limit-not-applied")?;
        let meaning = finding["meaning"].as_str().unwrap_or_default();
        let said = format!("What {CONFIGURATION} says is not known: {why}");
        anyhow::ensure!(meaning.contains(&said) && !finding.to_string().contains(told), "{finding}");
    }
    Ok(())
}

/// Why the file is not in force, and that doctor's words mend it: without them the remedy lasts until the next start.
pub(super) fn wins() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    fs::write(PROGRAM, SCRIPT)?;
    fs::set_permissions(PROGRAM, fs::Permissions::from_mode(0o755))?;
    fs::write(FILE, format!("net.netfilter.nf_conntrack_max = {WANTED}\n"))?;
    checked(Command::new("sysctl").args(["-p", FILE]))?;
    equal("in force by the file", sysctl("max")?, WANTED)?;

    configure(1, LEAST)?;
    let proxy = Proxy::start(ROOT)?;
    equal("in force by kube-proxy", sysctl("max")?, LEAST)?;
    let sick = doctor(&[], 0)?;
    sick.expect(1, "warning")?;
    let finding = sick.finding("limit-not-applied")?;
    equal("configured", finding["evidence"]["configured"]["value"].as_u64(), Some(WANTED))?;
    equal("in force", finding["evidence"]["in_force"]["value"].as_u64(), Some(LEAST))?;
    let meaning = finding["meaning"].as_str().unwrap_or_default();
    let said = format!("kube-proxy's configuration {CONFIGURATION} says 200,000 (maxPerCore 1 for each of");
    anyhow::ensure!(meaning.contains(&said), "{meaning}");
    let remedy = sick.remedy("limit-not-applied", "nf_conntrack_max")?.clone();
    let left_out = remedy["left_out"].to_string();
    let mended = left_out.contains(CONFIGURATION) && left_out.contains("write `maxPerCore: 0`");
    anyhow::ensure!(mended, "{left_out}");
    shell(&remedy, "commands")?;
    equal("in force by the remedy", sysctl("max")?, WANTED)?;
    proxy.stop()?;
    let proxy = Proxy::start(ROOT)?;
    equal("in force after the next start", sysctl("max")?, LEAST)?;
    shell(&remedy, "commands")?;
    proxy.stop()?;
    configure(0, LEAST)?;
    let proxy = Proxy::start(ROOT)?;
    equal("in force where kube-proxy leaves it alone", sysctl("max")?, WANTED)?;
    doctor(&[], 0)?.expect(0, "ok")?;
    proxy.stop()?;

    // Its own value is not in force.
    configure(1, WANTED)?;
    let proxy = Proxy::start(ROOT)?;
    state::set("nf_conntrack_max", u32::try_from(LEAST)?)?;
    let sick = doctor(&[], 0)?;
    sick.expect(1, "warning")?;
    let what = sick.finding("limit-not-applied")?["what"].as_str().unwrap_or_default();
    let told = format!("kube-proxy's configuration {CONFIGURATION} sets nf_conntrack_max to 524,288");
    anyhow::ensure!(what.contains(&told), "{what}");
    waits_for_no_file(&told)?;
    proxy.stop()?;

    // Anybody may call a process kube-proxy.
    configure(1, 2 * WANTED)?;
    let proxy = Proxy::start(NOBODY)?;
    let sick = doctor(&[], 0)?;
    let evidence = &sick.finding("limit-not-applied")?["evidence"];
    equal("configured by the file alone", evidence["configured"]["value"].as_u64(), Some(WANTED))?;
    anyhow::ensure!(!sick.object.to_string().contains(CONFIGURATION), "{}", sick.object);
    proxy.stop()?;
    for file in [FILE, PROGRAM, CONFIGURATION] {
        fs::remove_file(file)?;
    }
    no_files_left()
}

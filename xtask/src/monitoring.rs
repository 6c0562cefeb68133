//! `cargo xtask monitoring`: what `contrib/` has for monitoring, checked with the programs that will read it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::packages;
use crate::paths;
use crate::step::{self, Step};
use crate::vm::apt::Suite;

/// Debian's Prometheus, from the suite whose C library is the oldest that still gets updates.
const SUITE: &str = "bookworm";
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// The exporter and the flight recorder.
const SERVICES: [&str; 2] = ["ctwatch.service", "ctwatch-record.service"];
/// systemd's own word for the exposure of a service (0 to 10): above this it is no longer "OK".
const MOST_EXPOSED: f64 = 4.9;

/// Checks all of it.
pub(crate) fn run() -> Result<()> {
    fetch()?;
    rules()?;
    units()?;
    native()
}

/// Prometheus's programs by their names, fetched where the machine has none.
pub(crate) fn programs() -> Result<Vec<(&'static str, PathBuf)>> {
    fetch()?;
    PROGRAMS.iter().map(|name| Ok((*name, program(name)?))).collect()
}

/// Fetches Prometheus where the machine has none, without installing it.
fn fetch() -> Result<()> {
    if PROGRAMS.iter().all(|name| paths::program(name).is_some()) {
        return Ok(());
    }
    let step = Step::begin("fetching Prometheus");
    let directory = paths::target("tools/fetched");
    let download = directory.join("packages");
    if download.exists() {
        fs::remove_dir_all(&download)?;
    }
    Suite::open(SUITE)?.download(&["prometheus".to_owned()], &download)?;
    for entry in fs::read_dir(&download)? {
        step::run(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&directory))?;
    }
    step.end();
    Ok(())
}

fn program(name: &str) -> Result<PathBuf> {
    paths::program(name).with_context(|| format!("{name} is not there"))
}

/// Rules and alerts: each one silent and firing, and each names a finding that doctor explains.
fn rules() -> Result<()> {
    let step = Step::begin("rules and alerts");
    let directory = paths::root().join("contrib/prometheus");
    let promtool = program("promtool")?;
    step::run(Command::new(&promtool).current_dir(&directory).args(["check", "rules", "ctwatch.rules.yml"]))?;
    step::run(Command::new(&promtool).current_dir(&directory).args([
        "test",
        "rules",
        "ctwatch.rules.test.yml",
    ]))?;
    let rules = fs::read_to_string(directory.join("ctwatch.rules.yml"))?;
    let tests = fs::read_to_string(directory.join("ctwatch.rules.test.yml"))?;
    let values = |key: &str| -> Vec<String> {
        rules
            .lines()
            .filter_map(|line| line.trim().strip_prefix(key))
            .map(|value| value.trim().to_owned())
            .collect()
    };
    for alert in values("- alert:") {
        let firing = format!("alertname: {alert}\n        exp_alerts:");
        let silent = format!("alertname: {alert}}}");
        if !tests.contains(&firing) || !tests.contains(&silent) {
            bail!("{alert} is not tested both silent and firing");
        }
    }
    let explained = step::read(Command::new(build::debug()?).args(["doctor", "explain"]))?;
    for finding in values("finding:").iter().filter(|finding| *finding != "none") {
        if !explained.lines().any(|line| line.split_whitespace().next() == Some(finding)) {
            bail!("an alert names the finding {finding}, which doctor does not explain");
        }
    }
    step.end();
    Ok(())
}

/// systemd takes the units, and finds the services little exposed.
fn units() -> Result<()> {
    let step = Step::begin("systemd units");
    packages::ensure_programs("the check of units", &[("systemd-analyze", "systemd")])?;
    let from = paths::root().join("contrib/systemd");
    // What a unit starts must exist, and ctwatch need not be installed here.
    let scratch = paths::target("tools/units");
    fs::create_dir_all(&scratch)?;
    let binary = build::debug()?;
    for service in SERVICES {
        let text = fs::read_to_string(from.join(service))?;
        if !text.contains("ExecStart=/usr/bin/ctwatch ") {
            bail!("{service} does not start /usr/bin/ctwatch");
        }
        fs::write(scratch.join(service), text.replace("/usr/bin/ctwatch", &binary.display().to_string()))?;
    }
    fs::copy(from.join("ctwatch.socket"), scratch.join("ctwatch.socket"))?;
    let units = SERVICES.into_iter().chain(["ctwatch.socket"]).map(|unit| scratch.join(unit));
    let told = step::output(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(units))?;
    if !told.status.success() || !told.stderr.trim().is_empty() {
        bail!("systemd-analyze verify: {}\n{}", told.status, told.stderr);
    }
    for service in SERVICES {
        let unit = scratch.join(service);
        let security =
            step::read(Command::new("systemd-analyze").args(["security", "--offline=true"]).arg(unit))?;
        let begin = format!("Overall exposure level for {service}: ");
        let exposure: f64 = security
            .lines()
            .find_map(|line| line.split_once(&begin)?.1.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("systemd-analyze security says no exposure:\n{security}"))?;
        if exposure > MOST_EXPOSED {
            bail!("the exposure of {service} is {exposure}, more than {MOST_EXPOSED}");
        }
    }
    step.end();
    Ok(())
}

/// Scrapes by netlink on this machine, in a network namespace that ends with the test.
fn native() -> Result<()> {
    let step = Step::begin("a real Prometheus on this machine");
    packages::ensure_programs(
        "monitoring",
        &[
            ("unshare", "util-linux"),
            ("ip", "iproute2"),
            ("nft", "nftables"),
            ("conntrack", "conntrack"),
            ("wget", "wget"),
        ],
    )?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "a network namespace needs root: run this as root, or the same in a guest by `cargo xtask test --guests --kernel 6.12 prometheus::`"
        );
    }
    if !Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
        bail!(
            "conntrack is not loaded on this machine, and no test loads it; run the same in a guest by `cargo xtask test --guests --kernel 6.12 prometheus::`"
        );
    }
    let ctwatch = build::debug()?;
    let path = env::var("PATH").unwrap_or_default();
    // Its own mounts: names of namespaces are mounts.
    let inside = "mount -t tmpfs none /run && ip link set lo up && exec \"$0\" guest test --source netlink \
                  --results /dev/null export::counts export::clients export::textfile prometheus::";
    step::run_shown(
        Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", inside])
            .arg(env::current_exe()?)
            .env("CTWATCH", ctwatch)
            .env("PATH", format!("{path}:{}", paths::fetched().display())),
    )?;
    step.end();
    Ok(())
}

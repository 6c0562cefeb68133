//! The .deb in a clean Debian: installed, checked, run by systemd in a guest, and removed without a trace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::guest_protocol::{Line, Outcome};
use crate::packages;
use crate::paths::{self, program};
use crate::step::{self, Step, say};
use crate::vm::apt::Suite;
use crate::vm::boot::{Guest, Terminal};
use crate::vm::initramfs::Initramfs;
use crate::vm::kernels;

const SUITE: &str = "trixie";
const KERNEL: &str = "6.12";
/// What the checks use in that Debian.
const PACKAGES: [&str; 4] = ["systemd", "man-db", "nftables", "iproute2"];

/// What the tools of Debian write for themselves whatever is installed.
const OTHERS: [&str; 5] =
    ["var/lib/dpkg/", "var/log/", "var/cache/man/", "var/cache/ldconfig/", "run/systemd"];

const CHECK: &[u8] = include_bytes!("check.sh");
const CHECK_UNIT: &[u8] = b"[Unit]\nAfter=basic.target\n[Service]\nType=oneshot\nExecStart=/check.sh\n";
/// The lines with which `check.sh` reports what it saw.
const CHECKS: [&str; 6] = [
    "packaged::service",
    "packaged::second_process",
    "packaged::watchdog",
    "packaged::socket",
    "packaged::stop",
    "packaged::recorder",
];

/// Makes the package and does all of it.
pub(crate) fn run() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a clean Debian to install in needs root: run this as root");
    }
    let root = root()?;
    let binary = build::dist()?;
    alone(&binary)?;
    let package = super::deb(&binary)?;
    let before = files(&root)?;
    let installed = Step::begin("installing the .deb in a clean Debian");
    fs::copy(&package, root.join("ctwatch.deb"))?;
    let checked = inside(&root, "dpkg --install /ctwatch.deb")
        .and_then(|_| looks_right(&root))
        .and_then(|()| runs(&root));
    // Removed also where a check failed: the system is used again.
    let removed = inside(&root, "dpkg --purge ctwatch");
    fs::remove_file(root.join("ctwatch.deb"))?;
    checked?;
    removed?;
    let after = files(&root)?;
    let left: Vec<&String> = after.symmetric_difference(&before).collect();
    if !left.is_empty() {
        bail!("installing and removing the .deb left a trace: {left:?}");
    }
    installed.end();
    Ok(())
}

/// As in an image from scratch: it runs where there is no other file.
fn alone(binary: &Path) -> Result<()> {
    let root = paths::target("package/scratch");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    fs::copy(binary, root.join("ctwatch"))?;
    let version = step::read(Command::new("chroot").arg(&root).args(["/ctwatch", "--version"]))?;
    if version.trim() != format!("ctwatch {}", super::version()) {
        bail!("alone in a directory ctwatch says {version:?}");
    }
    Ok(())
}

/// A small Debian, made once.
fn root() -> Result<PathBuf> {
    let root = paths::target("package/debian");
    let made = root.with_extension("made");
    if fs::read_to_string(&made).is_ok_and(|text| text == PACKAGES.join("\n")) {
        return Ok(root);
    }
    packages::ensure_programs(
        "a clean Debian",
        &[("mmdebstrap", "mmdebstrap"), ("unshare", "util-linux"), ("busybox", "busybox-static")],
    )?;
    let step = Step::begin("making a clean Debian");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(paths::target("package"))?;
    Suite::open(SUITE)?.root(&PACKAGES, &root)?;
    fs::write(&made, PACKAGES.join("\n"))?;
    step.end();
    Ok(root)
}

/// What a shell in it says. Its mounts end with it.
fn inside(root: &Path, command: &str) -> Result<String> {
    let script = "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" /bin/sh -c \"$1\"";
    step::read(
        Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "sh", "-c", script])
            .arg(root)
            .arg(command)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn looks_right(root: &Path) -> Result<()> {
    let version = inside(root, "ctwatch --version")?;
    if version.trim() != format!("ctwatch {}", super::version()) {
        bail!("the installed ctwatch says {version:?}");
    }
    let page = inside(root, "man -w ctwatch")?;
    if page.trim() != "/usr/share/man/man1/ctwatch.1.gz" {
        bail!("man -w ctwatch says {page:?}");
    }
    // With the man page, which the unit names.
    let said = inside(
        root,
        "systemd-analyze verify /usr/lib/systemd/system/ctwatch.service \
         /usr/lib/systemd/system/ctwatch-record.service \
         /usr/lib/systemd/system/ctwatch.socket 2>&1",
    )?;
    if !said.trim().is_empty() {
        bail!("systemd-analyze verify: {said}");
    }
    inside(root, "cd / && md5sum --quiet --check /var/lib/dpkg/info/ctwatch.md5sums").map(drop)
}

/// systemd runs the service in a guest: it counts by programs in the kernel with the rights that the unit leaves it.
fn runs(root: &Path) -> Result<()> {
    let step = Step::begin("the service under systemd in a guest");
    let kernel = kernels::ensure(KERNEL)?;
    let busybox = program("busybox").context("busybox is not installed")?;
    let files = Initramfs::of_system(root)?
        .with_file("check.sh", 0o755, CHECK)
        .with_file("usr/lib/systemd/system/ctwatch-check.service", 0o644, CHECK_UNIT)
        // Debian's own modprobe is in a package that nothing else here needs.
        .with_file("opt/busybox", 0o755, &fs::read(busybox)?);
    let guest = Guest {
        memory: 1536,
        append: "systemd.unit=ctwatch-check.service".to_owned(),
        limit: Duration::from_mins(15),
        ..Guest::new(&kernel, &files, Vec::new())
    };
    let mut passed = BTreeSet::new();
    let mut failed = Vec::new();
    let end = guest.boot(Terminal::None, |line| {
        if let Line::Test { test, result, detail, .. } = line {
            say(format!("{test}: {detail}"));
            if result == Outcome::Ok {
                passed.insert(test)
            } else {
                failed.push(test.clone());
                false
            };
        }
    })?;
    let missing: Vec<&str> = CHECKS.into_iter().filter(|check| !passed.contains(*check)).collect();
    if !failed.is_empty() || !missing.is_empty() || !end.complete {
        bail!("under systemd: failed {failed:?}, not passed {missing:?}: {}", end.explain());
    }
    step.end();
    Ok(())
}

/// Every path in it but for what other tools keep for themselves.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let all = step::read(Command::new("find").current_dir(root).args([
        ".",
        "-xdev",
        "-mindepth",
        "1",
        "-printf",
        "%P\\n",
    ]))?;
    let own = |path: &&str| !OTHERS.iter().any(|other| path.starts_with(other));
    Ok(all.lines().filter(own).map(str::to_owned).collect())
}

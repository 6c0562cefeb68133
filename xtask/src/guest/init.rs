//! The guest's PID 1: mounts, starts the work as a child, reaps what is left to it, powers off.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use super::report::Report;
use super::{modules, space::Space, state};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is mounted where; the ones a kernel may lack are not required.
const MOUNTS: [(&str, &str, &str, bool); 10] = [
    ("proc", "/proc", "proc", true),
    ("sys", "/sys", "sysfs", true),
    ("dev", "/dev", "devtmpfs", true),
    ("pts", "/dev/pts", "devpts", false),
    ("run", "/run", "tmpfs", true),
    ("tmp", "/tmp", "tmpfs", true),
    ("tracefs", "/sys/kernel/tracing", "tracefs", false),
    ("debugfs", "/sys/kernel/debug", "debugfs", false),
    ("bpf", "/sys/fs/bpf", "bpf", false),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", false),
];

/// Is PID 1: sets the guest up, runs `args` in a child and powers off. Never returns.
pub(super) fn run(args: &[String]) -> ! {
    if let Err(error) = set_up().and_then(|()| work(args)) {
        eprintln!("init: {error:#}");
    }
    sync();
    let refused = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("init: power off: {refused:?}");
    // PID 1 must not exit: the kernel would panic and hide the line above.
    loop {
        std::thread::park();
    }
}

fn set_up() -> anyhow::Result<()> {
    for (source, target, kind, required) in MOUNTS {
        let made = fs::create_dir_all(target).map_err(anyhow::Error::from).and_then(|()| {
            mount(Some(source), target, Some(kind), MsFlags::empty(), None::<&str>)?;
            Ok(())
        });
        // EBUSY: the kernel mounts devtmpfs itself where CONFIG_DEVTMPFS_MOUNT reaches an initramfs.
        if let Err(error) = made {
            let busy = error.downcast_ref() == Some(&nix::errno::Errno::EBUSY);
            anyhow::ensure!(!required || busy, "mount {kind} on {target}: {error:#}");
        }
    }
    // Else it is called (none), on every screen and in every report.
    fs::write("/proc/sys/kernel/hostname", "guest").context("set the host name")?;
    Space::init().command("ip").args(["link", "set", "lo", "up"]).env("PATH", PATH).status().context("ip")?;
    Ok(())
}

/// Runs the worker and reaps every other process that loses its parent, until the worker ends.
fn work(args: &[String]) -> anyhow::Result<()> {
    let worker = Command::new("/proc/self/exe")
        .arg("guest")
        .args(args)
        .env("PATH", PATH)
        .env("HOME", "/")
        .env("TERM", std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned()))
        .spawn()
        .context("start the worker")?;
    let worker = Pid::from_raw(i32::try_from(worker.id())?);
    loop {
        match waitpid(None, None).context("wait")? {
            WaitStatus::Exited(pid, 0) if pid == worker => return Ok(()),
            status if status.pid() == Some(worker) => anyhow::bail!("the worker ended: {status:?}"),
            _ => {}
        }
    }
}

/// An interactive shell that owns the console.
pub(super) fn shell() -> anyhow::Result<ExitCode> {
    modules::load()?;
    state::fresh(&Space::init())?;
    let status = Command::new("/bin/busybox")
        .args(["setsid", "-c", "/bin/sh", "-i"])
        .status()
        .context("start a shell")?;
    Ok(exit_code(status.code()))
}

/// One command; its exit code goes to the result channel too.
pub(super) fn command(words: &str, conntrack: bool, results: &Path) -> anyhow::Result<ExitCode> {
    let mut report = Report::open(results)?;
    if conntrack {
        modules::load()?;
        state::fresh(&Space::init())?;
    }
    let status = Command::new("/bin/sh").args(["-c", words]).status().context("start the command")?;
    report.end(status.code().unwrap_or(128))?;
    Ok(exit_code(status.code()))
}

fn exit_code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

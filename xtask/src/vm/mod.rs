//! Guests: stock kernels under qemu, with ctwatch and what tests need in an initramfs.

pub(crate) mod apt;
pub(crate) mod boot;
pub(crate) mod cpio;
pub(crate) mod initramfs;
pub(crate) mod kernels;
pub(crate) mod modules;

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::build;
use crate::guest_protocol::Line;
use crate::packages::{self, Need};
use crate::step::say;
use boot::{Guest, Terminal};
use initramfs::Initramfs;

/// How long a command in a guest may take.
const COMMAND_LIMIT: Duration = Duration::from_mins(30);

/// Everything guests are made of, built once for any number of boots.
pub(crate) fn prepare() -> Result<Initramfs> {
    prepare_with(&[])
}

/// The same with more of the host's programs in it.
pub(crate) fn prepare_with(more: &[Need]) -> Result<Initramfs> {
    packages::ensure_programs("guests", more)?;
    let names: Vec<&str> = more.iter().map(|(name, _)| *name).collect();
    ensure_programs()?;
    let (ctwatch, init) = build::ctwatch_and_guest_init()?;
    Initramfs::new(&init, &ctwatch, &names)
}

/// The same around another ctwatch.
pub(crate) fn prepare_around(ctwatch: &Path) -> Result<Initramfs> {
    ensure_programs()?;
    Initramfs::new(&build::guest_init()?, ctwatch, &[])
}

fn ensure_programs() -> Result<()> {
    packages::ensure_programs(
        "guests",
        &[
            ("qemu-system-x86_64", "qemu-system-x86"),
            ("busybox", "busybox-static"),
            ("nft", "nftables"),
            ("conntrack", "conntrack"),
            ("ip", "iproute2"),
            ("tc", "iproute2"),
            ("xtables-nft-multi", "iptables"),
            ("bpftool", "bpftool"),
            ("kmod", "kmod"),
            ("tmux", "tmux"),
            ("getent", "libc-bin"),
            ("xz", "xz-utils"),
            ("zstd", "zstd"),
            ("dpkg-deb", "dpkg"),
        ],
    )
}

/// `cargo xtask vm`: a command, or a shell, on this terminal.
pub(crate) fn run(kernel: &str, command: &[String], no_conntrack: bool) -> Result<ExitCode> {
    let kernel = kernels::ensure(kernel)?;
    let initramfs = prepare()?;
    let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let (args, limit) = if command.is_empty() {
        if !on_terminal {
            bail!("a shell needs a terminal; give a command after `--`");
        }
        say(format!("a shell on {}; `exit` ends it, Ctrl-A x stops the guest", kernel.release));
        (vec!["shell".to_owned()], Duration::MAX)
    } else {
        let mut args = vec!["command".to_owned()];
        args.extend(no_conntrack.then(|| "--no-conntrack".to_owned()));
        args.extend(["--".to_owned(), command.join(" ")]);
        (args, COMMAND_LIMIT)
    };
    session(&Guest { limit, ..Guest::new(&kernel, &initramfs, args) })
}

/// Boots a guest whose terminal is this one, and ends as it ends.
pub(crate) fn session(guest: &Guest<'_>) -> Result<ExitCode> {
    let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let terminal = if on_terminal { Terminal::Tty(terminal_size()) } else { Terminal::Pipe };
    let mut exit = None;
    let end = guest.boot(terminal, |line| {
        if let Line::End { exit: Some(code), .. } = line {
            exit = Some(code);
        }
    })?;
    match exit {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        // A shell and the demo end when the user has seen enough, and report nothing.
        None if end.powered_off() && !guest.reports() => Ok(ExitCode::SUCCESS),
        None => bail!("the guest ended without a result: {}", end.explain()),
    }
}

/// Rows and columns of this terminal.
fn terminal_size() -> (u16, u16) {
    let size = Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
    size.ok()
        .and_then(|out| {
            let text = String::from_utf8(out.stdout).ok()?;
            let (rows, columns) = text.trim().split_once(' ')?;
            Some((rows.parse().ok()?, columns.parse().ok()?))
        })
        .filter(|&(rows, columns)| rows > 0 && columns > 0)
        .unwrap_or((24, 80))
}

//! What xtask on the host and its copy inside a guest agree on.
//!
//! The host puts the guest's arguments, a JSON array of strings, at [`ARGS_FILE`]; the guest's init hands them to
//! `guest::main`. Serial lines connect the two: `/dev/ttyS0` is the console (but for a shell), `/dev/ttyS1` carries one [`Line`] of
//! JSON each, and [`TERMINAL`] is where the user sees what a command prints. [`TERMINAL_MODE`] comes from the
//! kernel's command line: with words for `stty`, that line is the standard streams of init and all its children; as
//! [`PIPED`], the work in the guest gets a pipe that is carried there, since the user's end is no terminal either.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::termios::tcdrain;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use serde::Deserialize;

use crate::bench::figure::Figure;

/// Where the guest finds its arguments.
pub(crate) const ARGS_FILE: &str = "/etc/ctwatch-guest.json";
/// The serial line for what the user sees and types.
pub(crate) const TERMINAL: &str = "/dev/ttyS2";
/// The variable of init with words for `stty`, joined by commas, or [`PIPED`].
pub(crate) const TERMINAL_MODE: &str = "CTWATCH_TERMINAL";
/// See [`TERMINAL_MODE`].
pub(crate) const PIPED: &str = "piped";

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// All it compared was equal.
    Ok,
    /// Something was not; the detail says what.
    Failed,
    /// It cannot run on this kernel; the detail says why.
    Skipped,
}

/// One line of results.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    /// A test ended.
    Test {
        /// Its name.
        test: String,
        /// How it ended.
        result: Outcome,
        /// Why, when it did not pass.
        #[serde(default)]
        detail: String,
        /// How long it took, in seconds of the guest.
        #[serde(default)]
        seconds: f64,
    },
    /// Something was measured.
    Figure {
        /// What.
        figure: Figure,
    },
    /// All is done; a guest that stops without this line died.
    End {
        /// Always true.
        #[serde(rename = "end")]
        _end: bool,
        /// The status of the command, as a shell tells it.
        exit: Option<i32>,
    },
}

/// As init, before anything else: makes the user's terminal, if there is one, the standard streams.
pub(crate) fn attach_terminal(args: &[String]) -> Result<()> {
    let Some(mode) = mode().filter(|mode| mode != PIPED) else { return Ok(()) };
    // An interactive shell starts its own session and takes the terminal itself.
    if args.first().is_none_or(|mode| mode != "shell") {
        setsid().context("starting a session")?;
    }
    // Its node on the file system that will be seen later, else programs could not tell the terminal's name.
    mount(Some("dev"), "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>).context("mounting /dev")?;
    let terminal = open_terminal(&mode)?;
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)?;
    Ok(())
}

fn mode() -> Option<String> {
    std::env::var(TERMINAL_MODE).ok()
}

fn open_terminal(mode: &str) -> Result<File> {
    let open = || OpenOptions::new().read(true).write(true).open(TERMINAL);
    let terminal = open().with_context(|| format!("opening {TERMINAL}"))?;
    let status = Command::new("/bin/busybox").arg("stty").args(mode.split(',')).stdin(open()?).status();
    anyhow::ensure!(status.context("starting stty")?.success(), "stty refused {mode}");
    Ok(terminal)
}

/// Carries what the work prints to the user, whose end is a pipe or a file.
#[derive(Debug)]
pub(crate) struct Relay {
    ending: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Relay {
    /// As init's worker: begins where the user's end asks for it.
    pub(crate) fn start() -> Result<Option<Self>> {
        if mode().as_deref() != Some(PIPED) {
            return Ok(None);
        }
        let terminal = open_terminal("raw,-echo")?;
        let (reader, writer) = std::io::pipe().context("making a pipe")?;
        dup2_stdin(File::open("/dev/null")?)?;
        dup2_stdout(&writer)?;
        dup2_stderr(&writer)?;
        let ending = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ending);
        Ok(Some(Self { ending, thread: thread::spawn(move || carry(reader, terminal, &until)) }))
    }

    /// Waits until all that was printed is with the user. What the work left running may still hold the pipe: that
    /// is not waited for.
    pub(crate) fn end(self) {
        self.ending.store(true, Ordering::Release);
        if let Ok(Err(error)) = self.thread.join() {
            eprintln!("guest: {error:#}");
        }
    }
}

fn carry(mut from: PipeReader, mut to: File, ending: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // Looked at before the pipe, so that an empty pipe seen afterwards stays empty.
        let last = ending.load(Ordering::Acquire);
        let mut polled = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut polled, if last { PollTimeout::ZERO } else { PollTimeout::from(50_u8) })?;
        if ready == 0 {
            if last {
                break;
            }
            continue;
        }
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        to.write_all(&buffer[..count])?;
    }
    tcdrain(&to).context("writing out the terminal line")
}

/// As init's worker: outlives the Ctrl-C that is meant for the command it runs, and still reports how that ended.
pub(crate) fn outlive_interrupt() -> Result<()> {
    extern "C" fn ignore(_: i32) {}
    // A handler, since an ignored signal would stay ignored in the command.
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: the handler does nothing, so it is safe at any moment.
        unsafe { sigaction(signal, &action) }.context("setting a signal handler")?;
    }
    Ok(())
}

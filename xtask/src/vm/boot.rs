//! One boot of a guest under qemu.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::termios;

use super::initramfs::Initramfs;
use super::kernels::Kernel;
use crate::complaints::{self, Complaint};
use crate::guest_protocol::{Line, PIPED, TERMINAL_MODE};
use crate::paths::{self, program};
use crate::step::{self, say};

/// A guest about to boot.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    /// What it boots.
    pub kernel: &'a Kernel,
    /// What is in it.
    pub initramfs: &'a Initramfs,
    /// What `guest::main` is told.
    pub args: Vec<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Added to the kernel's command line.
    pub append: String,
    /// One virtual nanosecond is one instruction: for measuring; allows one CPU only.
    pub count_instructions: bool,
    /// A guest that still runs after this is stopped.
    pub limit: Duration,
    /// So is one that gives no result for so long, where its results come one by one.
    pub silence: Duration,
}

/// Where the guest's terminal line goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Terminal {
    /// Nowhere.
    None,
    /// The standard streams of xtask, which are no terminal.
    Pipe,
    /// The terminal of xtask with its rows and columns.
    Tty((u16, u16)),
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct End {
    /// Whether it said that it was done.
    pub complete: bool,
    /// Why it was stopped.
    stopped: Option<String>,
    status: ExitStatus,
    qemu: String,
    /// What its kernel said when it crashed.
    crash: Option<Complaint>,
    /// The last lines of its console.
    pub console: String,
}

impl End {
    /// Whether it switched itself off, as a guest does at its end.
    pub(crate) fn powered_off(&self) -> bool {
        self.stopped.is_none() && self.status.success()
    }

    /// Whether its kernel crashed, and not by the emulator's fault.
    pub(crate) fn crashed(&self) -> bool {
        self.crash.is_some() && !self.emulator_failed()
    }

    /// Whether its kernel crashed by the emulator's fault.
    pub(crate) fn emulator_failed(&self) -> bool {
        self.crash.as_ref().is_some_and(Complaint::is_emulators)
    }

    /// Why a guest that is not complete ended, with what it last said.
    pub(crate) fn explain(&self) -> String {
        let why = match (&self.crash, &self.stopped) {
            (Some(crash), _) => format!("its kernel crashed: {crash}"),
            (None, Some(why)) => why.clone(),
            (None, None) if self.status.success() => "it powered off early".to_owned(),
            (None, None) => format!("qemu ended with {}", self.status),
        };
        let mut parts = vec![why];
        for (title, said) in [("qemu", &self.qemu), ("console", &self.console)] {
            if !said.trim().is_empty() {
                parts.push(format!("--- {title}\n{}", said.trim_end()));
            }
        }
        parts.join("\n")
    }
}

impl<'a> Guest<'a> {
    /// A guest that will hand these arguments to `guest::main`.
    pub(crate) fn new(kernel: &'a Kernel, initramfs: &'a Initramfs, args: Vec<String>) -> Self {
        Self {
            kernel,
            initramfs,
            args,
            cpus: 2,
            memory: 1024,
            append: String::new(),
            count_instructions: false,
            limit: Duration::from_mins(10),
            silence: Duration::MAX,
        }
    }

    /// Whether its work ends with a line of results.
    pub(crate) fn reports(&self) -> bool {
        self.args.first().is_some_and(|mode| mode == "command" || mode == "test")
    }

    /// Boots it, passes on each line of its results as it comes, and waits for its end.
    pub(crate) fn boot(&self, terminal: Terminal, mut on_line: impl FnMut(Line)) -> Result<End> {
        let scratch = Scratch::new(&self.kernel.release)?;
        let initramfs = scratch.path("initramfs");
        fs::write(&initramfs, self.initramfs.for_boot(self.kernel, &self.args)?)
            .with_context(|| format!("writing {}", initramfs.display()))?;
        let results = scratch.path("results");
        fs::write(&results, "")?;
        let (mut qemu, attached) = self.qemu(&scratch, terminal)?;
        let kept = matches!(terminal, Terminal::Tty(_)).then(|| termios::tcgetattr(std::io::stdin()));
        let mut child = qemu.spawn().context("cannot start qemu-system-x86_64")?;
        let mut state = State::default();
        let stopped = if attached {
            let stopped = wait(&mut child, self.limit)?;
            for line in fs::read_to_string(&results)?.lines() {
                state.take(line, &mut on_line);
            }
            stopped
        } else {
            follow(&mut child, self.limit, self.silence, |line| state.take(line, &mut on_line))?
        };
        let status = child.wait().context("waiting for qemu")?;
        if let Some(Ok(settings)) = kept {
            termios::tcsetattr(std::io::stdin(), termios::SetArg::TCSADRAIN, &settings)
                .context("restoring the terminal")?;
        }
        let console = fs::read(scratch.path("console")).unwrap_or_default();
        let qemu = fs::read_to_string(scratch.path("qemu")).unwrap_or_default();
        Ok(End {
            complete: state.complete,
            stopped,
            status,
            qemu: step::tail(&qemu, 10),
            crash: complaints::all(&printable(&console)).into_iter().find(Complaint::is_crash),
            console: ends(&printable(&console)),
        })
    }

    /// The qemu command, and whether its standard streams are the guest's terminal (else they carry results).
    fn qemu(&self, scratch: &Scratch, terminal: Terminal) -> Result<(Command, bool)> {
        let mut qemu =
            Command::new(program("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?);
        // Hardware acceleration can fail after its own start-up on machines that only seem to have it, so it is
        // never tried unasked.
        if std::env::var("CTWATCH_ACCEL").is_ok_and(|accel| accel == "kvm") && !self.count_instructions {
            qemu.args(["-accel", "kvm", "-cpu", "host"]);
        } else if self.count_instructions {
            qemu.args(["-accel", "tcg", "-cpu", "max", "-icount", "shift=0,sleep=off"]);
        } else {
            qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        }
        let cpus = if self.count_instructions { 1 } else { self.cpus };
        // busybox's cttyhack gives a shell the console for its terminal.
        let shell = self.args == ["shell"] && matches!(terminal, Terminal::Tty(_));
        let console = if shell { "ttyS2" } else { "ttyS0" };
        // The kernel's test of the timer counts interrupts against a busy loop: an emulator that is not scheduled on
        // a busy machine fails it, and the kernel panics ("IO-APIC + timer doesn't work", seen on 7.3).
        let fixed = format!("console={console} quiet oops=panic panic=-1 no_timer_check rdinit=/init");
        let mut append = vec![fixed, self.append.clone()];
        let file = |name: &str| format!("file:{}", scratch.path(name).display());
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"])
            .args(["-smp", &cpus.to_string(), "-m", &self.memory.to_string()])
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(scratch.path("initramfs"))
            .args(["-serial", &file("console")]);
        let attached = match terminal {
            Terminal::None => {
                qemu.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped());
                false
            }
            Terminal::Pipe => {
                append.push(format!("{TERMINAL_MODE}={PIPED}"));
                qemu.args(["-serial", &file("results"), "-serial", "stdio"]).stdin(Stdio::null());
                true
            }
            Terminal::Tty((rows, columns)) => {
                let term = std::env::var("TERM")
                    .ok()
                    .filter(|term| !term.contains([' ', '"', '=']))
                    .unwrap_or_default();
                append.push(format!("TERM={term} {TERMINAL_MODE}=sane,rows,{rows},cols,{columns}"));
                // `mon:` leaves Ctrl-C to the guest, and gives qemu's own keys behind Ctrl-A.
                qemu.args(["-serial", &file("results"), "-serial", "mon:stdio"]);
                true
            }
        };
        qemu.args(["-append", &append.join(" ")]);
        let errors = fs::File::create(scratch.path("qemu"))?;
        qemu.stderr(errors);
        // SAFETY: between fork and exec this makes one system call and allocates nothing.
        unsafe {
            qemu.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        Ok((qemu, attached))
    }
}

#[derive(Debug, Default)]
struct State {
    complete: bool,
}

impl State {
    fn take(&mut self, line: &str, on_line: &mut impl FnMut(Line)) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        match serde_json::from_str(line) {
            Ok(line) => {
                self.complete |= matches!(line, Line::End { .. });
                on_line(line);
            }
            Err(_) => say(format!("a guest said what is no result: {line}")),
        }
    }
}

/// Waits for the guest's end; why it had to be stopped.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<String>> {
    let began = Instant::now();
    while child.try_wait().context("waiting for qemu")?.is_none() {
        if began.elapsed() > limit {
            child.kill().context("stopping qemu")?;
            return Ok(Some(overdue(limit)));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Reads the guest's results as they come until it ends; why it had to be stopped.
fn follow(
    child: &mut Child,
    limit: Duration,
    silence: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<Option<String>> {
    let began = Instant::now();
    let output = child.stdout.take().context("qemu has no output")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let stopped = loop {
        let left = limit.saturating_sub(began.elapsed());
        match lines.recv_timeout(left.min(silence)) {
            Ok(line) => on_line(&line),
            Err(RecvTimeoutError::Disconnected) => break None,
            Err(RecvTimeoutError::Timeout) => {
                child.kill().context("stopping qemu")?;
                let silent = format!("it was stopped after {} s without a result", silence.as_secs());
                break Some(if left <= silence { overdue(limit) } else { silent });
            }
        }
    };
    for line in &lines {
        on_line(&line);
    }
    reader.join().ok();
    Ok(stopped)
}

fn overdue(limit: Duration) -> String {
    format!("it was stopped after {} s", limit.as_secs())
}

/// The last lines of a console, behind the first ones of a hang: these have the stack of the CPU that hangs, and what follows
/// repeats itself.
fn ends(console: &str) -> String {
    const EACH: usize = 60;
    let hangs = |line: &&str| ["soft lockup", "detected stall"].iter().any(|words| line.contains(words));
    let lines: Vec<&str> = console.lines().collect();
    let last = lines.len().saturating_sub(EACH);
    match lines.iter().position(hangs).filter(|first| first + EACH < last) {
        Some(first) => [&lines[first..first + EACH], &["…"], &lines[last..]].concat().join("\n"),
        None => lines[last..].join("\n"),
    }
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|&c| c == '\n' || c == '\t' || !c.is_control()).collect()
}

/// The files of one boot, removed with it.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(release: &str) -> Result<Self> {
        static BOOTS: AtomicU32 = AtomicU32::new(0);
        let boot = BOOTS.fetch_add(1, Ordering::Relaxed);
        let directory = paths::target("guests").join(format!("{release}-{}-{boot}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        Ok(Self(directory))
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.0).join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover only takes space; there is nobody to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_of_a_hang_is_kept() {
        let mut console = "booting\n".repeat(100);
        assert_eq!(ends(&console).lines().count(), 60);
        console += "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [exe:2036]\nRIP: 0010:here\n";
        assert_eq!(ends(&console).matches("RIP").count(), 1, "it is among the last lines");
        console += &"rcu: INFO: rcu_preempt self-detected stall on CPU\n".repeat(200);
        let ends = ends(&console);
        assert!(ends.starts_with("watchdog: BUG: soft lockup"), "{ends}");
        assert_eq!((ends.matches("RIP").count(), ends.lines().count()), (1, 121));
    }
}

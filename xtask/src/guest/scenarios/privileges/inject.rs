//! System calls made in ctwatch's place, from outside: what an attacker could do who runs code in it.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::super::ctwatch::{PATIENCE, Running, Watch, program};
use super::super::super::{modules, processes, state, wait};
use super::super::init;

/// A process that is stopped inside a system call.
struct Stopped {
    pid: Pid,
    registers: user_regs_struct,
}

impl Stopped {
    fn new(pid: Pid) -> anyhow::Result<Self> {
        ptrace::seize(pid, ptrace::Options::empty()).with_context(|| format!("trace process {pid}"))?;
        let mut found = None;
        wait::until("ctwatch in a system call", Duration::from_secs(20), || {
            ptrace::interrupt(pid)?;
            waitpid(pid, None)?;
            let registers = ptrace::getregs(pid)?;
            let code = ptrace::read(pid, (registers.rip - 2) as ptrace::AddressType)?;
            // The instruction `syscall`.
            if code & 0xffff == 0x050f && registers.orig_rax != u64::MAX {
                found = Some(registers);
                return Ok(Ok(()));
            }
            ptrace::cont(pid, None)?;
            Ok(Err("it computes".to_owned()))
        })?;
        Ok(Self { pid, registers: found.context("its registers")? })
    }

    /// Makes a call; its result, or the negated error number.
    fn call(&self, number: u64, arguments: [u64; 4]) -> anyhow::Result<i64> {
        let status = self.step(number, arguments)?;
        anyhow::ensure!(
            matches!(status, WaitStatus::Stopped(_, Signal::SIGTRAP)),
            "call {number}: {status:?}"
        );
        Ok(ptrace::getregs(self.pid)?.rax.cast_signed())
    }

    fn step(&self, number: u64, arguments: [u64; 4]) -> anyhow::Result<WaitStatus> {
        let [rdi, rsi, rdx, r10] = arguments;
        let rip = self.registers.rip - 2;
        let at = user_regs_struct {
            rax: number,
            orig_rax: u64::MAX,
            rip,
            rdi,
            rsi,
            rdx,
            r10,
            r8: 0,
            r9: 0,
            ..self.registers
        };
        ptrace::setregs(self.pid, at)?;
        ptrace::step(self.pid, None)?;
        waitpid(self.pid, None).context("what came of a call")
    }

    fn expect(&self, what: &str, number: u64, arguments: [u64; 4], wanted: i64) -> anyhow::Result<()> {
        let answer = self.call(number, arguments)?;
        anyhow::ensure!(answer == wanted, "{what}: {answer} and not {wanted}");
        Ok(())
    }

    /// Makes a call that must end the process.
    fn ends(&self, number: u64, arguments: [u64; 4]) -> anyhow::Result<()> {
        let status = self.step(number, arguments)?;
        anyhow::ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{status:?}");
        Ok(())
    }

    fn go_on(self) -> anyhow::Result<()> {
        ptrace::setregs(self.pid, self.registers)?;
        ptrace::detach(self.pid, None).context("let ctwatch go on")
    }
}

/// Here: the process itself.
const HERE: u64 = libc::AT_FDCWD.cast_unsigned() as u64;
const WRITE_NEW: u64 = (libc::O_WRONLY | libc::O_CREAT) as u64;
/// The number that the x32 interface adds.
const X32: u64 = 0x4000_0000;

/// Calls with addresses that are not there, so that they change nothing. What the filter refuses fails with EPERM,
/// what gets through with the error behind the arrow.
type Call = (&'static str, c_long, [u64; 4]);
const REFUSED: [Call; 13] = [
    ("openat to write → EFAULT", libc::SYS_openat, [HERE, 0, WRITE_NEW, 0o600]),
    ("open to write → EFAULT", libc::SYS_open, [0, libc::O_RDWR as u64, 0, 0]),
    ("unlink → EFAULT", libc::SYS_unlink, [0; 4]),
    ("rename → EFAULT", libc::SYS_rename, [0; 4]),
    ("swapoff → EFAULT", libc::SYS_swapoff, [0; 4]),
    ("sethostname of a wrong length → EINVAL", libc::SYS_sethostname, [0, u64::MAX, 0, 0]),
    ("unshare nothing → 0", libc::SYS_unshare, [0; 4]),
    (
        "a socket of IPv4 → a descriptor",
        libc::SYS_socket,
        [libc::AF_INET as u64, libc::SOCK_DGRAM as u64, 0, 0],
    ),
    ("a Unix socket → a descriptor", libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_DGRAM as u64, 0, 0]),
    ("a signal to process 1 → 0", libc::SYS_kill, [1, 0, 0, 0]),
    ("io_uring_setup → EFAULT", libc::SYS_io_uring_setup, [1, 0, 0, 0]),
    ("text into a terminal → ENOTTY", libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0]),
    ("fork → a process", libc::SYS_fork, [0; 4]),
];

/// Each ends ctwatch. Without the filter it would fail like this.
const ENDING: [Call; 3] = [
    ("execve → EFAULT", libc::SYS_execve, [0; 4]),
    ("mount → EFAULT", libc::SYS_mount, [0; 4]),
    ("init_module → EFAULT", libc::SYS_init_module, [0, 1, 0, 0]),
];

/// The filter refuses what it shall, and nothing else: of ctwatch that counts, and of its second process.
pub(super) fn refused_calls() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    for (source, bpf) in [("auto", Errno::EFAULT), ("netlink", Errno::EPERM)] {
        let mut watch = Watch::start(&["--source", source])?;
        let keeper = *processes::children(watch.pid()?)?.first().context("no second process")?;
        for (who, pid, bpf) in [("ctwatch", watch.pid()?, bpf), ("ctwatch-netns", keeper, Errno::EPERM)] {
            let stopped = Stopped::new(pid)?;
            let asked = ask(&stopped, bpf);
            stopped.go_on()?;
            asked.with_context(|| format!("{source}: {who}"))?;
        }
        // It goes on as before.
        watch.wait_object("an object after that", |_| true)?;
        watch.stop()?;
    }
    Ok(())
}

fn ask(stopped: &Stopped, bpf: Errno) -> anyhow::Result<()> {
    for (what, call, arguments) in REFUSED {
        stopped.expect(what, number(call), arguments, failure(Errno::EPERM))?;
    }
    let own = i64::from(stopped.pid.as_raw());
    // What gets through shows that the calls are made at all.
    stopped.expect("getpid", number(libc::SYS_getpid), [0; 4], own)?;
    stopped.expect("openat to read", number(libc::SYS_openat), [HERE, 0, 0, 0], failure(Errno::EFAULT))?;
    stopped.expect("a signal to itself", number(libc::SYS_kill), [own.cast_unsigned(), 0, 0, 0], 0)?;
    stopped.expect("getpid by x32", number(libc::SYS_getpid) | X32, [0; 4], failure(Errno::ENOSYS))?;
    // BPF_MAP_CREATE with attributes that are not there.
    stopped.expect("bpf", number(libc::SYS_bpf), [0, 0, 8, 0], failure(bpf))
}

/// What would be a takeover ends the process.
pub(super) fn ending_calls() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    for (what, call, arguments) in ENDING {
        let mut running = Running::spawn(Command::new(program()).args([
            "live",
            "--json",
            "--interval",
            "0.2",
            "--source",
            "netlink",
        ]))?;
        running.next(PATIENCE)?.context("no object")?;
        let stopped = Stopped::new(running.pid()?)?;
        // That took its status: nobody else can wait for it.
        stopped.ends(number(call), arguments).context(what)?;
    }
    let watch = Watch::start(&["--source", "netlink"])?;
    let keeper = *processes::children(watch.pid()?)?.first().context("no second process")?;
    // Not a child of ours: how it ended its parent is told.
    Stopped::new(keeper)?.ends(number(libc::SYS_execve), [0; 4]).context("ctwatch-netns")?;
    watch.signal(Signal::SIGKILL)
}

/// doctor runs programs, which inherit its filter: nothing ends them, and they may be started.
pub(super) fn of_doctor(pid: Pid) -> anyhow::Result<()> {
    let stopped = Stopped::new(pid)?;
    let asked = stopped
        .expect("execve", number(libc::SYS_execve), [0; 4], failure(Errno::EFAULT))
        .and_then(|()| stopped.expect("mount", number(libc::SYS_mount), [0; 4], failure(Errno::EPERM)))
        .and_then(|()| {
            stopped.expect("init_module", number(libc::SYS_init_module), [0, 1, 0, 0], failure(Errno::EPERM))
        });
    stopped.go_on()?;
    asked
}

fn number(call: c_long) -> u64 {
    call.cast_unsigned()
}

fn failure(errno: Errno) -> i64 {
    -i64::from(errno as i32)
}

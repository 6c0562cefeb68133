//! A process of a user without privileges, in user and network namespaces of its own, in which it may do as it likes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};
use nix::unistd::{ForkResult, Pid, fork, pause};
use serde::{Deserialize, Serialize};

/// Its user and group.
const USER: u32 = 4321;
/// However long it is let.
const LONGEST: Duration = Duration::from_mins(2);
/// What asks for namespaces, before their number.
const CROWD: &str = "crowd ";
/// `NETLINK_NETFILTER`, as `/proc/net/netlink` writes it.
const NETFILTER: &str = "12";

/// The process.
#[derive(Debug)]
pub(super) struct Attacker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// What it did.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct Made {
    /// Messages that it sent, or tried to.
    pub(super) messages: u64,
    /// Of these the kernel refused to deliver so many.
    pub(super) refused: u64,
    /// The most sockets of others that it found in its namespace at once.
    pub(super) sockets: usize,
}

impl Attacker {
    /// Starts it and waits until it has its namespaces.
    pub(super) fn start() -> anyhow::Result<Self> {
        // Debian's switch, on in all of its kernels since 5.10.
        let switch = "/proc/sys/kernel/unprivileged_userns_clone";
        if fs::exists(switch)? {
            fs::write(switch, "1")?;
        }
        let mut child = Command::new("/proc/self/exe")
            .args(["guest", "attack"])
            .uid(USER)
            .gid(USER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the attacker")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("its stdout")?);
        let mut attacker = Self { child, input, output };
        attacker.line().context("the attacker has no namespaces of its own")?;
        Ok(attacker)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Begins to send, at least so many messages.
    pub(super) fn attack(&mut self, messages: u64) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("its stdin")?;
        writeln!(input, "{messages}").context("start the attack")
    }

    /// Has it make so many more namespaces, each with a process in it that ends with the attacker. Returns the last
    /// process.
    pub(super) fn crowd(&mut self, namespaces: u32) -> anyhow::Result<u32> {
        let input = self.input.as_mut().context("its stdin")?;
        writeln!(input, "{CROWD}{namespaces}").context("ask for namespaces")?;
        self.line()?.trim().parse().context("the last process")
    }

    /// Ends it once it has sent what was asked for.
    pub(super) fn stop(mut self) -> anyhow::Result<Made> {
        self.input = None;
        serde_json::from_str(&self.line()?).context("what the attacker did")
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the attacker ended: {:?}", self.child.wait()?);
        Ok(line)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        // Gone already where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is the process.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context("namespaces of its own")?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {USER} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {USER} 1"))?;
    println!("ready");
    let mut wanted = String::new();
    let mut stdin = std::io::stdin().lock();
    stdin.read_line(&mut wanted)?;
    if let Some(namespaces) = wanted.trim().strip_prefix(CROWD) {
        println!("{}", crowd(namespaces.parse()?)?);
        stdin.read_to_string(&mut String::new())?;
        return Ok(ExitCode::SUCCESS);
    }
    let wanted: u64 = match wanted.trim() {
        "" => return Ok(ExitCode::SUCCESS),
        number => number.parse()?,
    };
    let made = attack(wanted, || {
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    })?;
    println!("{}", serde_json::to_string(&made)?);
    stdin.read_to_string(&mut String::new())?;
    Ok(ExitCode::SUCCESS)
}

/// Makes so many namespaces and returns the last process.
fn crowd(namespaces: u32) -> anyhow::Result<Pid> {
    let mut last = None;
    for number in 0..namespaces {
        let (mut done, mut ready) = pipe()?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                drop(ready);
                let made = done.read(&mut [0])?;
                anyhow::ensure!(made == 1, "namespace {number} could not be made");
                last = Some(child);
            }
            ForkResult::Child => {
                let made = set_pdeathsig(Signal::SIGKILL).and_then(|()| unshare(CloneFlags::CLONE_NEWNET));
                if made.is_err() || ready.write_all(b"!").is_err() {
                    std::process::exit(1);
                }
                loop {
                    pause();
                }
            }
        }
    }
    last.context("no namespace was asked for")
}

fn attack(wanted: u64, told_to_stop: impl Fn() -> bool) -> anyhow::Result<Made> {
    const EACH_LOOK: u64 = 50;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let start = Instant::now();
    let (mut made, mut ports) = (Made::default(), Vec::new());
    while start.elapsed() < LONGEST && (made.messages < wanted || !told_to_stop()) {
        if made.messages.is_multiple_of(EACH_LOOK) {
            ports = ports_of_others()?;
            made.sockets = made.sockets.max(ports.len());
        }
        let number = u32::try_from(made.messages)?;
        let message = forged(number);
        // Every other one to a group, as all are while nobody has a socket here.
        let to = match ports.get(number as usize / 2 % ports.len().max(1)) {
            Some(port) if number.is_multiple_of(2) => NetlinkAddr::new(*port, 0),
            _ => NetlinkAddr::new(0, if number / 2 % 2 == 0 { 1 << 0 } else { 1 << 2 }),
        };
        made.messages += 1;
        if !send(&socket, &message, &to)? {
            made.refused += 1;
        }
    }
    Ok(made)
}

fn send(socket: &OwnedFd, message: &[u8], to: &NetlinkAddr) -> anyhow::Result<bool> {
    match sendto(socket.as_raw_fd(), message, to, MsgFlags::MSG_DONTWAIT) {
        Ok(_) => Ok(true),
        // Nobody there, not taken from us, or no room.
        Err(Errno::ECONNREFUSED | Errno::EAGAIN | Errno::ENOBUFS | Errno::ESRCH) => Ok(false),
        Err(error) => Err(error).context("send a forged message"),
    }
}

/// Netfilter's netlink sockets in the process's namespace: the kernel's own has port 0, and ours our process id.
fn ports_of_others() -> anyhow::Result<Vec<u32>> {
    let text = fs::read_to_string("/proc/self/net/netlink")?;
    let port = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let protocol = words.next()?;
        let port: u32 = words.next()?.parse().ok()?;
        (protocol == NETFILTER && port != 0 && port != std::process::id()).then_some(port)
    };
    Ok(text.lines().filter_map(port).collect())
}

/// A message of one of several kinds.
fn forged(number: u32) -> Vec<u8> {
    /// `nfgenmsg` for IPv4.
    const IPV4: [u8; 4] = [2, 0, 0, 0];
    const CT_NEW: u16 = 0x100;
    const CT_DELETE: u16 = 0x102;
    const CT_STATS_CPU: u16 = 0x104;
    const CT_STATS: u16 = 0x105;
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let many = 0x0040_0000_u32.to_be_bytes();
    // Answers carry the number of the request: guessed.
    let sequence = number / 8 % 400;
    match number % 13 {
        0 => vec![0; 4],
        1 => vec![0xff; 16],
        2 => message(ERROR, sequence, &(-1_i32).to_ne_bytes()),
        3 => message(DONE, sequence, &0_i32.to_ne_bytes()),
        4 => {
            let values: Vec<u8> = (1..=16).flat_map(|kind| attribute(kind, &many)).collect();
            message(CT_STATS_CPU, sequence, &[&IPV4[..], &values].concat())
        }
        5 => message(CT_STATS, sequence, &[&IPV4[..], &attribute(1, &many)].concat()),
        6 => vec![0x41; 2000],
        7 => message(CT_NEW, 0, &[&IPV4[..], &[0xff; 40]].concat()),
        kind => {
            let proto =
                nest(2, &[attribute(1, &[17]), attribute(2, &[9, 9]), attribute(3, &[0, 53])].concat());
            let addresses = nest(1, &[attribute(1, &[10, 6, 6, 6]), attribute(2, &[10, 7, 7, 7])].concat());
            let tuple = nest(1, &[addresses, proto].concat());
            let payload =
                [&IPV4[..], &tuple, &attribute(3, &[0, 0, 0, 8]), &attribute(7, &[0, 0, 1, 0])].concat();
            message(if kind < 11 { CT_NEW } else { CT_DELETE }, 0, &payload)
        }
    }
}

fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 16).unwrap_or(0);
    let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 2], &sequence.to_ne_bytes(), &[0; 4]];
    [&header.concat(), payload].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(0);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nest(kind: u16, inside: &[u8]) -> Vec<u8> {
    attribute(kind | 0x8000, inside)
}

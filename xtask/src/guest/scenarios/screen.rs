//! The full-screen view of the real program in a real terminal, tmux's: what it shows, what keys do, what it leaves.

use std::fs;
use std::process::{Child, Command};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::ctwatch::{PATIENCE, program};
use super::super::space::{Space, checked};
use super::super::traffic::{Family, Flows, PORT, spread, udp};
use super::super::trial::equal;
use super::super::witness::{self, Stats};
use super::super::{modules, state, wait};
use super::record::{self, Recording};
use super::{Scenario, Skip, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    // ctwatch takes its time to start in an emulated machine, so that one run serves for much.
    scenario("screen::keys_and_sizes_80x24", keys_and_sizes),
    scenario("screen::flood_and_sigterm_200x60", flood_and_sigterm),
    scenario("screen::recording", recording),
];

/// A shell in a terminal of a tmux server of its own. The server and all in it go when it is dropped.
struct Terminal {
    socket: &'static str,
}

/// The banner while nothing is wrong.
const CALM: &str = " ok  nothing refused, nothing evicted";
/// What the shell prints before each command, and nothing else prints.
const PROMPT: &str = "ready>";

impl Terminal {
    fn open(columns: u16, rows: u16) -> anyhow::Result<Self> {
        let terminal = Self { socket: "ctwatch" };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let shell = format!("env PS1='{PROMPT} ' LANG=C.UTF-8 /bin/sh");
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", &rows, &shell])?;
        terminal.wait("a prompt", |text| text.contains(PROMPT))?;
        Ok(terminal)
    }

    fn tmux(&self, args: &[&str]) -> anyhow::Result<String> {
        // Without -u it would put `_` for what the guest's locale may not know.
        checked(Command::new("tmux").args(["-u", "-L", self.socket, "-f", "/dev/null"]).args(args))
    }

    /// Its text, a line each.
    fn text(&self) -> anyhow::Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    fn wait(&self, what: &str, shown: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let mut text = String::new();
        wait::until(what, PATIENCE, || {
            text = self.text()?;
            Ok(if shown(&text) { Ok(()) } else { Err(format!("the terminal shows\n{text}")) })
        })?;
        Ok(text)
    }

    fn wait_for(&self, words: &str) -> anyhow::Result<String> {
        self.wait(&format!("`{words}` on the terminal"), |text| text.contains(words))
    }

    /// Types what tmux calls these keys.
    fn press(&self, keys: &[&str]) -> anyhow::Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    fn resize(&self, columns: u16, rows: u16) -> anyhow::Result<()> {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]).map(drop)
    }

    /// What a program may change of it: which screen is shown, whether the cursor is, and the line's settings.
    fn state(&self) -> anyhow::Result<String> {
        let flags = self.tmux(&[
            "display-message",
            "-p",
            "alternate #{alternate_on}, cursor #{cursor_flag}, #{pane_tty}",
        ])?;
        let tty = flags.trim().rsplit(' ').next().unwrap_or_default();
        Ok(format!("{flags}{}", checked(Command::new("stty").args(["-a", "-F", tty]))?))
    }

    /// Starts ctwatch and waits for its first report.
    fn watch(&self) -> anyhow::Result<Watched> {
        self.press(&["clear; echo before", "Enter"])?;
        self.wait("a clear screen", |text| text.starts_with("before\n"))?;
        let before = self.state()?;
        self.press(&[&format!("{} live; echo ended $?", program()), "Enter"])?;
        self.wait_for(CALM)?;
        let during = self.state()?;
        anyhow::ensure!(during.contains("alternate 1, cursor 0"), "while watching: {during}");
        Ok(Watched { before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A scenario that failed half-way has its own message.
        let _ = self.tmux(&["kill-server"]);
    }
}

/// A running ctwatch.
struct Watched {
    before: String,
}

impl Watched {
    /// Waits for its end: the shell is back with what stood there before, then the totals, and ctwatch ended well.
    fn ended(self, terminal: &Terminal) -> anyhow::Result<()> {
        let text = terminal.wait("the end of ctwatch", |text| {
            text.contains("ended ") && text.trim_end().ends_with(PROMPT)
        })?;
        anyhow::ensure!(text.contains("ended 0"), "ctwatch failed:\n{text}");
        anyhow::ensure!(text.starts_with("before\n"), "the terminal lost what stood there before:\n{text}");
        equal("the terminal, after and before", terminal.state()?, self.before)
    }
}

/// Tracking on, nothing in the table.
fn begin() -> anyhow::Result<Space> {
    modules::load()?;
    let space = init();
    state::fresh(&space)?;
    Ok(space)
}

/// The number in the column `total` of a line of the detail panel.
fn total(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(&format!(" {name} ")))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    // name, three windows, peak, total
    match words.get(5).copied()? {
        "." => Some(0),
        count => count.parse().ok(),
    }
}

/// A line of the gauge: what is in the table.
fn entries(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(" init "))?;
    let (before, _) = line.split_once(" of ")?;
    before.split_whitespace().last()?.parse().ok()
}

/// A calm table, every kind of key, a tiny screen and back, and `q`.
fn keys_and_sizes() -> anyhow::Result<()> {
    const FLOWS: u32 = 321;
    /// In the table before ctwatch starts.
    const EARLIER: u32 = 40;
    let space = begin()?;
    udp::send(Flows::new(Family::V4, EARLIER).from(10_000))?;
    let terminal = Terminal::open(80, 24)?;
    let watched = terminal.watch()?;
    udp::send(Flows::new(Family::V6, 10))?;
    let sent = udp::send(Flows::new(Family::V4, FLOWS))?;
    let text = terminal.wait("all inserts", |text| total(text, "insert") == Some(sent.passed))?;
    equal("entries", entries(&text), Some(witness::count(&space)?))?;
    let listed = checked(space.command("conntrack").args(["-L", "-p", "udp", "-f", "ipv4"]))?;
    terminal.wait_for(&format!(" entries now           {}\n", listed.lines().count()))?;
    anyhow::ensure!(text.contains(CALM), "not calm:\n{text}");
    anyhow::ensure!(text.contains(" ctwatch  guest  Linux "), "no host and kernel:\n{text}");

    terminal.press(&["?"])?;
    terminal.wait_for("While typing a filter")?;
    terminal.press(&["?"])?;
    terminal.wait_for("ipv4 udp")?;
    terminal.press(&["/"])?;
    terminal.wait_for("Esc leaves it")?;
    terminal.press(&["-l", "udp ipv6"])?;
    terminal.wait_for("filter \"udp ipv6\" shows 1 of 2")?;
    terminal.press(&["Enter"])?;
    terminal.wait("the keys again", |text| text.contains("q quit") && text.contains("shows 1 of 2"))?;
    terminal.press(&["Escape"])?;
    terminal.wait("both rows", |text| text.contains("ipv4 udp") && !text.contains("filter \""))?;

    terminal.press(&["p"])?;
    terminal.wait_for("PAUSED")?;
    udp::send(Flows::new(Family::V4, 7).from(FLOWS))?;
    terminal.press(&["p"])?;
    terminal.wait("the present", |text| {
        total(text, "insert") == Some(sent.passed + 7) && !text.contains("PAUSED")
    })?;

    terminal.resize(20, 5)?;
    terminal.wait("a tiny screen", |text| text.contains("v4 udp") && widest(text) <= 20)?;
    terminal.resize(80, 24)?;
    terminal.wait("the keys", |text| text.contains("q quit"))?;
    terminal.press(&["q"])?;
    watched.ended(&terminal)
}

/// A full table is told in words as large as they get, and each loss is a line or among those that were only counted.
/// SIGTERM leaves a usable terminal too.
fn flood_and_sigterm() -> anyhow::Result<()> {
    const MAX: u32 = 200;
    let space = begin()?;
    let service = Service::start("web.service")?;
    let terminal = Terminal::open(200, 60)?;
    let watched = terminal.watch()?;
    terminal.wait_for(" sleep (web.service) ")?;
    drop(service);
    let text =
        terminal.wait("all panels", |text| text.contains(" latest losses ") && text.contains(" source "))?;
    anyhow::ensure!(widest(&text) > 190, "the width is not used:\n{text}");

    state::set("nf_conntrack_max", MAX)?;
    let before = Stats::read(&space)?;
    spread(Flows::new(Family::V4, MAX + 400), 2, udp::send)?;
    let kernel = Stats::read(&space)?.since(&before);
    let text = terminal.wait("the bad news", |text| text.contains("TABLE FULL: init"))?;
    anyhow::ensure!(text.lines().skip(1).take(3).any(|line| line.starts_with(" !! ")), "no banner:\n{text}");

    terminal.wait_for(&format!(" dport udp     {PORT} "))?;

    // As tall as all the lines it keeps.
    terminal.resize(200, 700)?;
    let lost = kernel.get("drop").unwrap_or(0) + kernel.get("early_drop").unwrap_or(0);
    anyhow::ensure!(lost >= 400, "the flood lost only {lost}");
    let told = |text: &str| -> u64 { text.lines().map(loss_in).sum() };
    terminal.wait(&format!("{lost} losses"), |text| told(text) == lost)?;
    terminal.resize(200, 60)?;
    terminal.wait("the keys", |text| text.contains("q quit"))?;

    kill(watching()?, Signal::SIGTERM)?;
    watched.ended(&terminal)?;
    // Scenarios that watch a namespace of their own leave the limit of all as it is.
    state::fresh(&space)
}

/// The ctwatch that was started, not the process that it started for network namespaces: that has another name.
fn watching() -> anyhow::Result<Pid> {
    let pids = checked(Command::new("pidof").arg("ctwatch"))?;
    let is_named = |pid: &&str| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "ctwatch")
    };
    let pid = pids.split_whitespace().find(is_named).with_context(|| format!("no ctwatch among {pids}"))?;
    Ok(Pid::from_raw(pid.parse()?))
}

/// A process in a network namespace without a name and in a cgroup, for as long as this lives.
struct Service {
    process: Child,
    cgroup: String,
}

impl Service {
    fn start(name: &str) -> anyhow::Result<Self> {
        let cgroup = format!("/sys/fs/cgroup/{name}");
        fs::create_dir_all(&cgroup)?;
        let process =
            Command::new("unshare").args(["-n", "sleep", "900"]).spawn().context("start unshare")?;
        let service = Self { process, cgroup };
        fs::write(format!("{}/cgroup.procs", service.cgroup), service.process.id().to_string())
            .context("put a process into a cgroup")?;
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Gone with the guest in any case.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn widest(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or_default()
}

/// How many losses a line of the screen stands for.
fn loss_in(line: &str) -> u64 {
    let words: Vec<&str> = line.split_whitespace().collect();
    words
        .windows(2)
        .find_map(|pair| match pair {
            ["drop" | "early_drop", "udp"] => Some(1),
            [count, "more,"] => count.strip_prefix('+')?.parse().ok(),
            _ => None,
        })
        .unwrap_or(0)
}

/// A recorded flood: played, searched for its first loss, gone through by single reports, and left.
fn recording() -> anyhow::Result<()> {
    if !record::is_first_choice()? {
        return Err(Skip("it is shown on 6.12 by auto".to_owned()).into());
    }
    begin()?;
    state::set("nf_conntrack_max", 1000)?;
    let _ = fs::remove_file(record::FILE);
    let recording = Recording::start(record::FILE, &["--interval", "0.2"])?;
    spread(Flows::new(Family::V4, 3000), 2, udp::send)?;
    Recording::wait_printed("refusals in reports", |lines| record::drops(lines) > 0)?;
    recording.end(Signal::SIGINT)?;
    let terminal = Terminal::open(80, 24)?;
    terminal.press(&["clear; echo before", "Enter"])?;
    terminal.wait("a clear screen", |text| text.starts_with("before\n"))?;
    let watched = Watched { before: terminal.state()? };
    terminal.press(&[&format!("{} replay {}; echo ended $?", program(), record::FILE), "Enter"])?;
    terminal.wait("a recording that plays", |text| text.contains("PLAY 1x") && text.contains(CALM))?;
    // It plays on while this waits: by now it may be behind the first loss.
    terminal.press(&["Space"])?;
    terminal.wait("a recording that is held", |text| text.contains("HELD"))?;
    terminal.press(&["Home", "n"])?;
    let lossy = terminal.wait("the first loss", |text| text.contains("HELD") && text.contains("DROPPING"))?;
    anyhow::ensure!(lossy.contains("TABLE FULL"), "the flood on the screen:\n{lossy}");
    terminal.press(&["Left"])?;
    terminal.wait("the report before it", |text| text.contains("HELD") && text.contains(CALM))?;
    terminal.press(&["q"])?;
    watched.ended(&terminal)
}

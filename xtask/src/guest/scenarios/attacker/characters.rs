//! Every character that a terminal obeys, in every name that a stranger can choose: none of them comes out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use serde_json::json;

use super::super::super::ctwatch::program;
use super::super::super::space::{Space, checked};
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::{modules, state};
use super::super::init;

/// Who bears the name: its first character, which is how a name is found again in an output.
const PROCESS: char = 'P';
const CGROUP: char = 'G';
const FILE: char = 'F';
const TABLE: char = 'T';
const CHAIN: char = 'C';
const INTERFACE: char = 'I';
const COMMENT: char = 'M';
/// A comment of a rule of the older interface.
const LEGACY: char = 'L';
/// A thread that sends.
const SENDER: char = 'S';
/// No command prints sets.
const SET: char = 'N';
/// Every one that some command prints.
const SHOWN: [char; 9] = [PROCESS, CGROUP, FILE, TABLE, CHAIN, INTERFACE, COMMENT, LEGACY, SENDER];
/// What follows it.
const MARK: &str = "cQx";
/// Bytes of hostile text in a name: a process's name has 15 at most.
const ROOM: usize = 11;
const PROGRAMS: &str = "/tmp/hostile";
const CGROUPS: &str = "/tmp/cgroups";
const METRICS: &str = "/tmp/metrics.prom";

/// Characters of Unicode that turn text around, or cannot be seen.
const UNSEEN: [char; 16] = [
    '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}',
    '\u{2069}', '\u{200e}', '\u{200f}', '\u{61c}', '\u{200b}', '\u{feff}', '\u{2028}', '\u{2029}',
];

/// What is hostile in names that together hold all of them: the control characters that a C string can, DEL, C1, the
/// unseen ones, and bytes that are no UTF-8.
fn hostile() -> Vec<Vec<u8>> {
    let controls = ('\u{1}'..='\u{1f}').chain('\u{7f}'..='\u{9f}').chain(UNSEEN);
    let mut texts = vec![String::new()];
    for char in controls {
        if texts.last().is_some_and(|text| text.len() + char.len_utf8() > ROOM) {
            texts.push(String::new());
        }
        if let Some(text) = texts.last_mut() {
            text.push(char);
        }
    }
    let mut texts: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
    texts.push(b"\xff\xfe\xc3\x28".to_vec());
    texts
}

/// The name of such a bearer.
fn name(bearer: char, hostile: &[u8]) -> OsString {
    OsString::from_vec([bearer.to_string().as_bytes(), MARK.as_bytes(), hostile].concat())
}

/// How often names of each bearer were printed.
#[derive(Default)]
struct Seen(BTreeMap<char, usize>);

impl Seen {
    /// Fails for a character that a terminal obeys.
    fn judge(&mut self, what: &str, bytes: &[u8], is_json: bool) -> anyhow::Result<()> {
        let text = std::str::from_utf8(bytes).with_context(|| format!("{what} is no UTF-8"))?;
        // A reader of JSON gets the name as it is; what reaches a terminal raw has no control character in it.
        let bad = |char: &char| (char.is_control() && *char != '\n') || (!is_json && UNSEEN.contains(char));
        if let Some(at) = text.char_indices().find(|(_, char)| bad(char)).map(|(at, _)| at) {
            let around: Vec<char> = text[..at].chars().rev().take(60).collect();
            let around: String = around.into_iter().rev().collect();
            anyhow::bail!("{what} has {:?} after {around:?}", &text[at..].chars().next());
        }
        for (at, _) in text.match_indices(MARK) {
            if let Some(bearer) = text[..at].chars().next_back() {
                *self.0.entry(bearer).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Every command in every form, at first; then only those that show names of namespaces or rules.
    fn look(&mut self, namespaces_have_files: bool) -> anyhow::Result<()> {
        let plain: [(&[&str], bool); 4] = [
            (&["live", "--json", "-n", "2", "-i", "0.2"], true),
            (&["doctor", "--all", "--sample", "0.2"], false),
            (&["table"], false),
            (&["table", "--by", "netns,proto"], false),
        ];
        let more: [(&[&str], bool); 5] = [
            (&["doctor", "--all", "--json", "--sample", "0.2"], true),
            (&["doctor", "--capture", "-", "--sample", "0.2"], true),
            (&["live", "--plain", "-n", "2", "-i", "0.2"], false),
            (&["table", "--json"], true),
            (&["facts"], true),
        ];
        let more = if namespaces_have_files { &[][..] } else { &more[..] };
        for (args, is_json) in plain.iter().chain(more) {
            self.judge(&format!("{args:?}"), &printed(args)?, *is_json)?;
        }
        if !namespaces_have_files {
            self.traced()?;
        }
        self.exported()
    }
}

/// A process with a hostile name, in such a cgroup and a network namespace that has no name.
fn occupant(hostile: &[u8]) -> anyhow::Result<Child> {
    let program = Path::new(PROGRAMS).join(name(PROCESS, hostile));
    symlink("/bin/busybox", &program).context("a program of that name")?;
    let space = Space::create("occupied")?;
    state::rules(&space, state::RULES)?;
    let child = space.enter(|| {
        udp::send(Flows::new(Family::V4, 3))?;
        let mut sleep = Command::new(&program);
        sleep.arg0("sleep").arg("600").stdin(Stdio::null()).spawn().context("start it")
    })?;
    let cgroup = cgroup_of(hostile);
    fs::create_dir_all(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
    fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).context("move into a cgroup")?;
    space.delete()?;
    Ok(child)
}

/// The kernel takes everything but a line end (`cgroup_mkdir`, 5.10 to 7.3).
fn cgroup_of(hostile: &[u8]) -> PathBuf {
    let bytes: Vec<u8> = hostile.iter().copied().filter(|byte| *byte != b'\n').collect();
    Path::new(CGROUPS).join(name(CGROUP, &bytes))
}

/// A file that names the namespace of a process.
fn known_as(hostile: &[u8], pid: u32) -> anyhow::Result<PathBuf> {
    let place = Path::new("/run/netns").join(name(FILE, hostile));
    fs::write(&place, "").with_context(|| format!("create {}", place.display()))?;
    checked(Command::new("mount").arg("--bind").arg(format!("/proc/{pid}/ns/net")).arg(&place))?;
    Ok(place)
}

/// A table with a chain, a set, an interface and a comment. nft's JSON takes what its own language cannot write.
fn rules(hostile: &str) -> anyhow::Result<()> {
    let name = |bearer: char| format!("{bearer}{MARK}{hostile}");
    let (table, chain) = (name(TABLE), name(CHAIN));
    let state = json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": "new" } });
    let from = json!({ "match": { "op": "==", "left": { "meta": { "key": "iifname" } }, "right": name(INTERFACE) } });
    let expr = json!([state, from, { "counter": null }]);
    let rule =
        json!({ "family": "ip", "table": table, "chain": chain, "comment": name(COMMENT), "expr": expr });
    let script = json!({ "nftables": [
        { "add": { "table": { "family": "ip", "name": table } } },
        { "add": { "chain": { "family": "ip", "table": table, "name": chain } } },
        { "add": { "set": { "family": "ip", "table": table, "name": name(SET), "type": "ipv4_addr" } } },
        { "add": { "rule": rule } },
    ]});
    let path = "/tmp/rules.json";
    fs::write(path, script.to_string())?;
    checked(Command::new("nft").args(["-j", "-f", path]))?;
    Ok(fs::remove_file(path)?)
}

/// A rule of the older interface with a comment.
fn legacy_rule(hostile: &[u8]) -> anyhow::Result<()> {
    let rule = ["-A", "OUTPUT", "-m", "state", "--state", "NEW", "-m", "comment", "--comment"];
    checked(Command::new("iptables-legacy").args(rule).arg(name(LEGACY, hostile))).map(drop)
}

/// What one command of ctwatch's printed, on both streams.
fn printed(args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new(program()).args(args).stdin(Stdio::null()).output().context("start ctwatch")?;
    anyhow::ensure!(!output.stdout.is_empty(), "{args:?} printed nothing: {:?}", output.stderr);
    Ok([output.stdout, output.stderr].concat())
}

/// All names, all commands.
pub(super) fn in_every_name() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    for directory in [PROGRAMS, CGROUPS] {
        fs::create_dir_all(directory)?;
    }
    checked(Command::new("mount").args(["-t", "cgroup2", "none", CGROUPS]))?;
    let mut occupants = Vec::new();
    for hostile in hostile() {
        occupants.push(occupant(&hostile)?);
        if let Ok(text) = std::str::from_utf8(&hostile) {
            rules(text)?;
        }
    }
    fs::write("/dev/kmsg", "<4>nf_conntrack: nf_conntrack: table full, dropping packet\x1b[2J\u{202e}\n")?;
    let mut seen = Seen::default();
    seen.look(false)?;
    let places = hostile()
        .iter()
        .zip(&occupants)
        .map(|(hostile, child)| known_as(hostile, child.id()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // Doctor shows the first rules only.
    checked(Command::new("nft").args(["flush", "ruleset"]))?;
    hostile().iter().try_for_each(|hostile| legacy_rule(hostile))?;
    let named = seen.look(true);
    for place in places {
        checked(Command::new("umount").arg(&place))?;
        fs::remove_file(&place)?;
    }
    for mut child in occupants {
        child.kill()?;
        child.wait()?;
    }
    for hostile in hostile() {
        fs::remove_dir(cgroup_of(&hostile))?;
    }
    checked(Command::new("umount").arg(CGROUPS))?;
    fs::remove_dir_all(PROGRAMS)?;
    checked(Command::new("iptables-legacy").arg("-F"))?;
    state::fresh(&init())?;
    named?;
    for bearer in SHOWN {
        anyhow::ensure!(
            seen.0.contains_key(&bearer),
            "no name that begins with {bearer} was printed: {:?}",
            seen.0
        );
    }
    Ok(())
}

impl Seen {
    /// `trace` in both forms, of flows that processes of these names send.
    fn traced(&mut self) -> anyhow::Result<()> {
        for (form, is_json) in [("--plain", false), ("--json", true)] {
            let wanted = hostile().len();
            let trace = Command::new(program())
                .args(["trace", form, "--events", "insert", "-n", &wanted.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("start ctwatch trace")?;
            let own = fs::read("/proc/thread-self/comm")?;
            let mut ended = trace;
            // It ends by itself after so many; the first ones may come before it has attached.
            for round in 0.. {
                if ended.try_wait()?.is_some() {
                    break;
                }
                anyhow::ensure!(round < 20_000, "trace does not end");
                for hostile in hostile() {
                    fs::write("/proc/thread-self/comm", name(SENDER, &hostile).as_bytes())?;
                    udp::send(Flows::new(Family::V4, 1).from(0x3e_0000 + round))?;
                }
            }
            fs::write("/proc/thread-self/comm", own)?;
            let output = ended.wait_with_output()?;
            self.judge(&format!("trace {form}"), &[output.stdout, output.stderr].concat(), is_json)?;
        }
        Ok(())
    }

    /// The metrics, which have names of namespaces.
    fn exported(&mut self) -> anyhow::Result<()> {
        let mut export = Command::new(program())
            .args(["export", "--textfile", METRICS, "-i", "0.2"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start ctwatch export")?;
        let there =
            super::super::super::wait::until("the metrics", super::super::super::ctwatch::PATIENCE, || {
                Ok(if Path::new(METRICS).exists() { Ok(()) } else { Err("no file".to_owned()) })
            });
        export.kill()?;
        export.wait()?;
        there?;
        self.judge("export", &fs::read(METRICS)?, false)?;
        Ok(fs::remove_file(METRICS)?)
    }
}

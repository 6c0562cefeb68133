//! One mutant: its programs are built, and scenarios run until one fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Candidate, lock};
use crate::build;
use crate::guest;
use crate::guest_protocol::{Line, Outcome};
use crate::paths;
use crate::step;
use crate::toolchain::{self, Toolchain};
use crate::vm::boot::{Guest, Terminal};
use crate::vm::initramfs::Initramfs;
use crate::vm::kernels::Kernel;

/// A guest that takes longer hangs.
const LIMIT: Duration = Duration::from_mins(30);

/// Scenarios that depend on what the programs count.
const COUNTING: [&str; 15] = [
    "traffic::",
    "full::",
    "delete::",
    "netlink::insert",
    "clash::",
    "hidden_code::",
    "generators::",
    "netns::",
    "nat::",
    "filter::",
    "ranking::",
    "events::",
    "trace::",
    "footprint::",
    "doctor::latency",
];

/// What finds most in little time, for the first boot.
const FIRST: [&str; 6] = [
    "traffic::udp",
    "traffic::tcp_close",
    "full::unassured",
    "delete::timeout",
    "delete::flush",
    "ranking::evicted_and_refused",
];

/// How many of the scenarios that noticed earlier mutants of a file are tried first on the next.
const REMEMBERED: usize = 6;

/// What noticed a mutant that the guest did not survive.
const DIED: &str = "the guest died";

/// A kernel, and the source that ctwatch counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stage {
    pub(super) kernel: &'static str,
    pub(super) source: &'static str,
}

/// What became of a mutant.
#[derive(Debug)]
pub(super) enum Fate {
    /// A scenario failed, or the kernel rejected the program.
    Noticed(String),
    /// All scenarios passed.
    Survived,
    /// The compiler makes the same code of it.
    Same,
    /// It does not compile.
    NoCode,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Noticed(by) => write!(f, "noticed by {by}"),
            Self::Survived => f.write_str("SURVIVED"),
            Self::Same => f.write_str("the same code"),
            Self::NoCode => f.write_str("does not compile"),
        }
    }
}

/// A copy of the workspace in which one file is changed.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    toolchain: Toolchain,
    /// The object of the programs as they are.
    unchanged: Vec<u8>,
}

impl Tree {
    /// Copies the workspace and builds its programs.
    pub(super) fn new(number: usize) -> Result<Self> {
        let root = paths::target("mutants").join(number.to_string());
        if root.join("source").exists() {
            fs::remove_dir_all(root.join("source"))?;
        }
        fs::create_dir_all(root.join("source")).with_context(|| format!("creating {}", root.display()))?;
        for part in ["Cargo.toml", "Cargo.lock", ".cargo", "ctwatch", "ctwatch-ebpf", "xtask"] {
            copy(&paths::root().join(part), &root.join("source").join(part))?;
        }
        let mut tree = Self { root, toolchain: toolchain::ensure()?, unchanged: Vec::new() };
        tree.unchanged = tree.build()?.context("the programs as they are do not compile")?;
        Ok(tree)
    }

    /// The object, or nothing if it does not compile.
    fn build(&self) -> Result<Option<Vec<u8>>> {
        let target = self.root.join("target");
        let mut command = build::ebpf_command(&self.toolchain, &self.root.join("source"), &target);
        if step::run(command.arg("--quiet")).is_err() {
            return Ok(None);
        }
        build::ebpf_built(&target).map(Some)
    }

    /// The object with one change, which is taken back.
    fn changed(&self, one: &Candidate) -> Result<Option<Vec<u8>>> {
        let path = self.root.join("source/ctwatch-ebpf/src").join(&one.file);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        fs::write(&path, one.mutant.applied(&text))?;
        let built = self.build();
        fs::write(&path, text)?;
        built
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
        for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

/// What all mutants share.
#[derive(Debug)]
pub(super) struct Lab<'a> {
    files: Initramfs,
    kernels: &'a [Kernel],
    /// For each file, the scenarios that noticed its mutants, the last one first.
    noticed: Mutex<BTreeMap<String, Vec<String>>>,
    /// Scenarios that pass where nothing is changed.
    sound: Mutex<BTreeSet<(Stage, String)>>,
}

impl<'a> Lab<'a> {
    pub(super) fn new(files: Initramfs, kernels: &'a [Kernel]) -> Self {
        Self { files, kernels, noticed: Mutex::default(), sound: Mutex::default() }
    }

    /// Fails if a scenario fails although nothing was changed: it notices nothing. Each is tried once.
    fn must_pass(&self, stage: Stage, scenario: &str, tree: &Tree) -> Result<()> {
        if lock(&self.sound).contains(&(stage, scenario.to_owned())) {
            return Ok(());
        }
        if let Some(failed) = self.first_failure(stage, &tree.unchanged, &[scenario])? {
            bail!("{} {}: {failed} fails although nothing was changed", stage.kernel, stage.source);
        }
        lock(&self.sound).insert((stage, scenario.to_owned()));
        Ok(())
    }

    /// Builds a mutant and runs it where it can show.
    pub(super) fn fate(&self, one: &Candidate, tree: &Tree) -> Result<Fate> {
        let Some(object) = tree.changed(one)? else { return Ok(Fate::NoCode) };
        if object == tree.unchanged {
            return Ok(Fate::Same);
        }
        let remembered = lock(&self.noticed).get(&one.file).cloned().unwrap_or_default();
        for stage in one.stages() {
            let all = counting(*stage);
            let is_first = |name: &&str| FIRST.contains(name) || remembered.iter().any(|known| known == name);
            let (first, rest): (Vec<&str>, Vec<&str>) = all.into_iter().partition(is_first);
            for names in [first, rest] {
                if let Some(failed) = self.first_failure(*stage, &object, &names)? {
                    if failed != DIED {
                        self.must_pass(*stage, &failed, tree)?;
                    }
                    let mut noticed = lock(&self.noticed);
                    let known = noticed.entry(one.file.clone()).or_default();
                    known.retain(|name| *name != failed);
                    known.insert(0, failed.clone());
                    known.truncate(REMEMBERED);
                    return Ok(Fate::Noticed(format!("{} {} {failed}", stage.kernel, stage.source)));
                }
            }
        }
        Ok(Fate::Survived)
    }

    /// The first of these scenarios that fails with these programs.
    fn first_failure(&self, stage: Stage, object: &[u8], names: &[&str]) -> Result<Option<String>> {
        let kernel = self
            .kernels
            .iter()
            .find(|kernel| kernel.name == stage.kernel)
            .with_context(|| format!("no kernel {}", stage.kernel))?;
        let files = self.files.clone().with_file("ctwatch-ebpf", 0o644, object);
        let mut args: Vec<String> =
            ["test", "--first-failure", "--source", stage.source].map(str::to_owned).into();
        args.extend(names.iter().map(|name| format!("={name}")));
        let mut failed = None;
        let end =
            Guest { limit: LIMIT, ..Guest::new(kernel, &files, args) }.boot(Terminal::None, |line| {
                if let Line::Test { test, result: Outcome::Failed, .. } = line {
                    failed.get_or_insert(test);
                }
            })?;
        // A guest that does not come to its end has noticed too: its kernel crashed, or ctwatch hangs.
        Ok(failed.or_else(|| (!end.complete || end.crashed()).then(|| DIED.to_owned())))
    }
}

/// The scenarios of a stage, in the order in which they run.
fn counting(stage: Stage) -> Vec<&'static str> {
    let here = |name: &&str| {
        COUNTING.iter().any(|part| name.starts_with(part))
            // By name alone these choose their own source; once is enough.
            && (stage.source == "auto" || !name.starts_with("trace::") && !name.starts_with("doctor::"))
    };
    guest::scenario_names().filter(here).collect()
}

//! `cargo xtask mutants`: breaks the counting programs in one place at a time, and runs what should notice.

mod generate;
mod reasons;
mod trial;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::paths;
use crate::step::say;
use crate::vm;
use crate::vm::kernels;
use generate::{Mutant, Part};
use reasons::reason;
use trial::{Fate, Lab, Stage};

/// The kernel half. What only describes (`maps.rs`, `main.rs`) or names (`event.rs`) has no condition to negate.
const LEFT_OUT: [&str; 3] = ["main.rs", "maps.rs", "event.rs"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only mutants whose file or description contains this
    only: Option<String>,
    /// Print the mutants and run none
    #[arg(long)]
    list: bool,
    /// Run every Nth mutant only, for a sample
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Mutants at once
    #[arg(long)]
    jobs: Option<usize>,
}

/// A change, and the file it is made to.
#[derive(Clone, Debug)]
struct Candidate {
    /// Below `ctwatch-ebpf/src`.
    file: String,
    mutant: Mutant,
}

impl Candidate {
    fn name(&self) -> String {
        format!("{}:{} {}", self.file, self.mutant.line, self.mutant.describe())
    }

    /// Where it can show, what finds most first.
    fn stages(&self) -> &'static [Stage] {
        const AUTO: Stage = Stage { kernel: "6.12", source: "auto" };
        const KPROBE: Stage = Stage { kernel: "6.12", source: "kprobe" };
        const OLD: Stage = Stage { kernel: "5.10", source: "auto" };
        match self.mutant.part {
            Part::Trampoline => &[AUTO],
            // Some hooks are kprobes in every plan.
            Part::Kprobe | Part::Shared => &[AUTO, KPROBE, OLD],
        }
    }
}

/// Fails if a mutant survives without a written reason.
pub(crate) fn run(options: &Options) -> Result<()> {
    let source = paths::root().join("ctwatch-ebpf/src");
    let all = candidates(&source)?;
    reasons::check(&all.iter().map(|one| (one.file.as_str(), one.mutant.describe())).collect::<Vec<_>>())?;
    let asked = |one: &Candidate| options.only.as_ref().is_none_or(|part| one.name().contains(part));
    let step = options.every as usize;
    let wanted: Vec<Candidate> = all.into_iter().filter(asked).step_by(step).collect();
    if wanted.is_empty() {
        bail!("there is no mutant of {:?}", options.only.as_deref().unwrap_or_default());
    }
    if options.list {
        for one in &wanted {
            println!("{}", one.name());
        }
        say(format!("{} mutants", wanted.len()));
        return Ok(());
    }
    let results = try_all(wanted, options.jobs)?;
    println!("{}", summary(&results));
    let survivors =
        results.iter().filter(|(one, fate)| matches!(fate, Fate::Survived) && reason_of(one).is_none());
    match survivors.count() {
        0 => Ok(()),
        many => bail!("{many} mutants survived; write a test, or a reason in xtask/src/mutants/reasons.rs"),
    }
}

fn reason_of(one: &Candidate) -> Option<&'static str> {
    reason(&one.file, &one.mutant.describe())
}

/// Every mutant of every file, in the order of names and lines.
fn candidates(source: &Path) -> Result<Vec<Candidate>> {
    let events = fs::read_to_string(source.join("event.rs")).context("reading the table of events")?;
    let events = event_names(&events);
    let mut files = Vec::new();
    rust_files(source, &mut files)?;
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let file = path.strip_prefix(source)?.display().to_string();
        if LEFT_OUT.contains(&file.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let found = generate::mutants(&text, &events).with_context(|| format!("in {}", path.display()))?;
        all.extend(found.into_iter().map(|mutant| Candidate { file: file.clone(), mutant }));
    }
    Ok(all)
}

/// The events in the rows of the table: `Name in Group, "name", …;`.
fn event_names(table: &str) -> Vec<&str> {
    let rows = table.split("\nevents! {").nth(1).unwrap_or_default();
    let rows = rows.lines().take_while(|line| *line != "}");
    rows.filter_map(|line| line.trim().split_once(" in "))
        .filter_map(|(name, rest)| {
            (name.chars().all(char::is_alphanumeric) && rest.ends_with(';')).then_some(name)
        })
        .collect()
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Tries each, several at once.
fn try_all(wanted: Vec<Candidate>, jobs: Option<usize>) -> Result<Vec<(Candidate, Fate)>> {
    let mut stages: Vec<Stage> = wanted.iter().flat_map(Candidate::stages).copied().collect();
    stages.sort();
    stages.dedup();
    let kernels = stages.iter().map(|stage| kernels::ensure(stage.kernel)).collect::<Result<Vec<_>>>()?;
    let binary = build::with_object_from_file()?;
    let lab = Lab::new(vm::prepare_around(&binary)?, &kernels);
    let total = wanted.len();
    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).clamp(1, total);
    let trees = (0..jobs).map(trial::Tree::new).collect::<Result<Vec<_>>>()?;
    let waiting = Mutex::new(wanted.into_iter().collect::<VecDeque<_>>());
    let done = Mutex::new(Vec::new());
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for tree in &trees {
            scope.spawn(|| {
                while let Some(one) = lock(&waiting).pop_front() {
                    match lab.fate(&one, tree) {
                        Ok(fate) => {
                            let mut done = lock(&done);
                            println!("mutant {} of {total}: {} ... {fate}", done.len() + 1, one.name());
                            done.push((one, fate));
                        }
                        Err(error) => {
                            *lock(&failure) = Some(error.context(one.name()));
                            lock(&waiting).clear();
                        }
                    }
                }
            });
        }
    });
    match lock(&failure).take() {
        Some(error) => Err(error),
        None => Ok(std::mem::take(&mut lock(&done))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn summary(results: &[(Candidate, Fate)]) -> String {
    let count = |wanted: fn(&Fate) -> bool| results.iter().filter(|(_, fate)| wanted(fate)).count();
    let mut text = String::new();
    for (one, _) in results.iter().filter(|(_, fate)| matches!(fate, Fate::Survived)) {
        let _ = match reason_of(one) {
            Some(reason) => writeln!(text, "survived with a reason: {}\n    {reason}", one.name()),
            None => writeln!(text, "survived: {}", one.name()),
        };
    }
    let _ = write!(
        text,
        "{} mutants: {} noticed, {} survived, {} give the same code, {} do not compile",
        results.len(),
        count(|fate| matches!(fate, Fate::Noticed(_))),
        count(|fate| matches!(fate, Fate::Survived)),
        count(|fate| matches!(fate, Fate::Same)),
        count(|fate| matches!(fate, Fate::NoCode)),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_have_many_mutants_and_every_event_is_known() {
        let source = paths::root().join("ctwatch-ebpf/src");
        let events = fs::read_to_string(source.join("event.rs")).unwrap();
        let events = event_names(&events);
        assert!(events.contains(&"Insert") && events.contains(&"DeleteOther"), "{events:?}");
        let all = candidates(&source).unwrap();
        assert!(all.len() > 60, "{}", all.len());
        for hook in fs::read_dir(source.join("hooks")).unwrap() {
            let name = format!("hooks/{}", hook.unwrap().file_name().to_string_lossy());
            let emptied = all.iter().any(|one| one.file == name && one.mutant.to.ends_with("; 0 }"));
            assert!(emptied || name == "hooks/mod.rs", "no program of {name} is emptied");
        }
    }

    #[test]
    fn every_reason_is_about_a_mutant_that_exists() {
        let all = candidates(&paths::root().join("ctwatch-ebpf/src")).unwrap();
        let all: Vec<_> = all.iter().map(|one| (one.file.as_str(), one.mutant.describe())).collect();
        reasons::check(&all).unwrap();
    }
}

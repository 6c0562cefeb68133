//! `cargo xtask fuzz`: libFuzzer on every parser of foreign bytes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::paths;
use crate::step::{self, Step, say};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this parser; otherwise each in turn
    target: Option<String>,
    /// How long each is run
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Check that all targets compile, and run none
    #[arg(long)]
    build_only: bool,
}

/// Builds the targets, then runs them until the time is over or one fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    build::ebpf()?;
    let object = paths::ebpf_object();
    let root = paths::root();
    let mut names: Vec<String> = fs::read_dir(root.join("fuzz/corpus"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    if let Some(wanted) = &options.target {
        names.retain(|name| name == wanted);
        if names.is_empty() {
            bail!("there is no fuzz target `{wanted}`: see fuzz/fuzz_targets");
        }
    }
    ensure_cargo_fuzz()?;
    let step = Step::begin("building the fuzz targets");
    // One target or all: the same build, and all must compile.
    step::run_shown(fuzz(&root, &object).args(["build", "-O", "-a"]))?;
    step.end();
    if options.build_only {
        return Ok(());
    }
    for name in names {
        let step = Step::begin(format!("fuzzing {name} for {} s", options.seconds));
        let found = paths::target("fuzz").join(&name);
        fs::create_dir_all(&found).with_context(|| format!("creating {}", found.display()))?;
        let mut command = fuzz(&root, &object);
        // New inputs go into the first directory: the kept corpus changes by hand only.
        command.args(["run", "-O", "-a", &name]).arg(found).arg(root.join("fuzz/corpus").join(&name));
        if name == "capture" {
            command.arg(root.join("ctwatch/tests/machines"));
        }
        command.arg("--").arg(format!("-max_total_time={}", options.seconds));
        // A parser that needs this much for 64 KiB has no bound.
        command.args(["-rss_limit_mb=1024", "-timeout=25", "-max_len=65536"]);
        step::run_shown(&mut command).with_context(|| {
            format!("{name} fails: mend it, and keep the input that is named above in fuzz/corpus/{name}")
        })?;
        step.end();
    }
    Ok(())
}

/// cargo-fuzz with the compiler that has its flags.
fn fuzz(root: &Path, object: &Path) -> Command {
    let mut command = build::cargo();
    command.current_dir(root).env("CTWATCH_EBPF_OBJECT", object);
    // The sanitizers and coverage are unstable options of any compiler; this lets the stable one take them.
    command.env("RUSTC_BOOTSTRAP", "1");
    command.args(["fuzz"]);
    command
}

fn ensure_cargo_fuzz() -> Result<()> {
    let known = build::cargo().args(["fuzz", "--version"]).output();
    if known.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    say("cargo-fuzz is missing: installing it");
    step::run_shown(build::cargo().args(["install", "--locked", "cargo-fuzz"]))
        .context("cargo-fuzz could not be installed: `cargo install cargo-fuzz` says why")
}

//! `cargo xtask ci`: everything that must hold, in the order in which it fails fastest.

use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::bench;
use crate::build;
use crate::monitoring;
use crate::package;
use crate::page;
use crate::prototypes;
use crate::step::{self, Step};
use crate::test::{self, Selection};
use crate::vm;

/// Runs it all.
pub(crate) fn run() -> Result<()> {
    checked("formatting", &["fmt", "--all", "--check"], None)?;
    build::ebpf()?;
    thread::scope(|scope| {
        // Its last minutes need one CPU only, so something else is done meanwhile.
        let guests = scope.spawn(vm::prepare);
        checked("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], None)?;
        test::unit(None)?;
        checked(
            "documentation",
            &["doc", "--workspace", "--no-deps"],
            Some(("RUSTDOCFLAGS", "-D warnings")),
        )?;
        guests.join().map_err(|_| anyhow!("the thread that builds what is in guests panicked"))?
    })?;
    monitoring::run()?;
    page::run()?;
    package::install::run()?;
    prototypes::run()?;
    bench::run(&bench::Options::check())?;
    test::guests(&Selection::full())
}

fn checked(what: &str, args: &[&str], variable: Option<(&str, &str)>) -> Result<()> {
    let step = Step::begin(what);
    step::run_shown(build::cargo().args(args).envs(variable))
        .with_context(|| format!("{what} is not clean"))?;
    step.end();
    Ok(())
}

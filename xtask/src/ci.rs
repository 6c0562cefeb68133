//! `cargo xtask ci`: everything that must hold, in the order in which it fails fastest.

use anyhow::{Context, Result};

use crate::bench;
use crate::build;
use crate::monitoring;
use crate::package;
use crate::page;
use crate::prototypes;
use crate::step::{self, Step};
use crate::test::{self, Selection};

/// Runs it all.
pub fn run() -> Result<()> {
    checked("formatting", &["fmt", "--all", "--check"], None)?;
    build::ebpf()?;
    checked("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], None)?;
    test::unit(None)?;
    checked("documentation", &["doc", "--workspace", "--no-deps"], Some(("RUSTDOCFLAGS", "-D warnings")))?;
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

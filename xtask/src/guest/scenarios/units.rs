//! The unit tests that need root and a kernel of their own, which `cargo test` leaves out.

use std::process::Command;

use anyhow::Context;

use super::super::modules;
use super::{Scenario, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario("units::as_root", as_root)];

/// The program, which only the guest of this scenario has.
const TESTS: &str = "/bin/ctwatch-tests";

/// Tests named so, and those that are marked `#[ignore]` because they need root.
fn as_root() -> anyhow::Result<()> {
    modules::load()?;
    run(&["as_root"])?;
    run(&["--ignored"])
}

/// Runs some of them; none may fail, skip itself, or be missing.
fn run(which: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(TESTS)
        .args(which)
        .args(["--test-threads", "1", "--nocapture"])
        .output()
        .with_context(|| format!("start {TESTS}"))?;
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    anyhow::ensure!(output.status.success(), "{which:?}: {}\n{said}", output.status);
    anyhow::ensure!(!said.contains("skipped"), "{which:?}: a test skipped itself:\n{said}");
    let passed =
        said.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse().ok());
    let passed: u64 = passed.with_context(|| format!("{which:?}: no result:\n{said}"))?;
    anyhow::ensure!(passed > 0, "{which:?}: no test of this kind was run:\n{said}");
    println!("{which:?}: {passed} unit tests passed");
    Ok(())
}

//! Mutants that no test can notice, each with the reason.

use anyhow::{Result, bail};

/// File, change, and why it cannot matter.
const REASONS: &[(&str, &str, &str)] = &[];

/// Why this change cannot be noticed, if that is known.
pub(super) fn reason(file: &str, change: &str) -> Option<&'static str> {
    REASONS.iter().find(|(of, what, _)| *of == file && *what == change).map(|(_, _, reason)| *reason)
}

/// Fails for a reason about a change that no longer exists.
pub(super) fn check(all: &[(&str, String)]) -> Result<()> {
    for (file, change, _) in REASONS {
        if !all.iter().any(|(of, what)| of == file && what == change) {
            bail!("xtask/src/mutants/reasons.rs has a reason for `{change}` in {file}, which is no mutant");
        }
    }
    Ok(())
}

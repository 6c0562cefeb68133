//! How many tests ended how, and the lines about them.

use std::fmt;
use std::io::Write;

use anyhow::{Result, bail};

use crate::guest_protocol::Outcome;

/// How much of a failure is printed again at the end, in characters.
const PRINTED_AGAIN: usize = 600;

/// How many tests ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Passed.
    pub(super) passed: usize,
    failed: usize,
    skipped: usize,
    /// Guests that were booted a second time, and the beginning of why.
    pub(super) booted_again: Vec<String>,
    /// Which failed, and the beginning of why.
    failures: Vec<String>,
}

impl Tally {
    /// Adds another one.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.booted_again.extend(other.booted_again);
        self.failures.extend(other.failures);
    }

    /// Counts one test and prints it.
    pub(super) fn report(&mut self, place: &str, test: &str, result: Outcome, detail: &str, seconds: f64) {
        let (count, word) = match result {
            Outcome::Ok => (&mut self.passed, "ok"),
            Outcome::Failed => (&mut self.failed, "FAILED"),
            Outcome::Skipped => (&mut self.skipped, "skipped"),
        };
        *count += 1;
        if result == Outcome::Failed {
            self.failures.push(format!("{place} {test}: {}", printed_again(detail)));
        }
        let mut lines = vec![format!("test guest {place} {test} ... {word} ({seconds:.1} s)")];
        match (result, detail) {
            (_, "") => {}
            (Outcome::Skipped, _) => {
                lines[0] = format!("test guest {place} {test} ... skipped: {detail}");
            }
            _ => lines.extend(detail.lines().map(|line| format!("    {line}"))),
        }
        lines.push(String::new());
        // One write, so that guests side by side do not mix their lines; a closed pipe shows in the exit status.
        let _ = std::io::stdout().lock().write_all(lines.join("\n").as_bytes());
    }

    /// An error that names every failure: a log that was cut still has them at its end.
    pub(super) fn verdict(&self) -> Result<()> {
        if !self.failures.is_empty() {
            bail!("{} guest tests failed:\n  {}", self.failed, self.failures.join("\n  "));
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for guest in &self.booted_again {
            writeln!(f, "booted again: {guest}")?;
        }
        // Nothing stands behind these three: tools that count tests read this line.
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The first line of a failure, and of a long one the end, which a guest's console is.
fn printed_again(detail: &str) -> String {
    let first: String = detail.lines().next().unwrap_or_default().chars().take(PRINTED_AGAIN / 2).collect();
    let rest: Vec<char> = detail.lines().skip(1).collect::<Vec<_>>().join("\n    ").chars().collect();
    if rest.is_empty() {
        return first;
    }
    let end: String = rest[rest.len().saturating_sub(PRINTED_AGAIN / 2)..].iter().collect();
    format!("{first}\n    […] {}", end.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_printed_again_has_its_first_line_and_its_end() {
        assert_eq!(printed_again("inserts: ctwatch 1, witness 2"), "inserts: ctwatch 1, witness 2");
        let console: Vec<String> = (0..200).map(|line| format!("line {line}")).collect();
        let printed = printed_again(&format!("the guest died\n{}", console.join("\n")));
        assert!(printed.starts_with("the guest died\n") && printed.ends_with("line 199"), "{printed}");
        assert!(printed.chars().count() < PRINTED_AGAIN + 20, "{printed}");
    }

    #[test]
    fn the_last_line_has_every_number_and_second_boots_stand_before_it() {
        let quiet = Tally { passed: 4, ..Tally::default() };
        assert_eq!(quiet.to_string(), "4 passed, 0 failed, 0 skipped");
        let mut busy = Tally { skipped: 1, ..Tally::default() };
        busy.booted_again.push("5.10 auto for 3 tests: it was stopped".to_owned());
        busy.add(quiet);
        assert_eq!(
            busy.to_string(),
            "booted again: 5.10 auto for 3 tests: it was stopped\n\
             4 passed, 0 failed, 1 skipped"
        );
    }
}

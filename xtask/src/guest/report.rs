//! The result channel: one JSON object a line, read by the machine that started the guest.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use crate::bench::figure::Figure;

/// The guest's second serial line.
pub(super) const CHANNEL: &str = "/dev/ttyS1";

/// How one scenario came out.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Everything was equal.
    Ok,
    /// Something differed, or could not be run.
    Failed(String),
    /// This kernel cannot show it, and why.
    Skipped(String),
}

/// Writes result lines.
#[derive(Debug)]
pub(super) struct Report(File);

impl Report {
    /// Opens the channel.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(!path.starts_with("/dev"))
            .open(path)
            .with_context(|| format!("open the result channel {}", path.display()))?;
        Ok(Self(file))
    }

    /// One scenario's result, on the channel and in words on the console.
    pub(super) fn scenario(&mut self, name: &str, outcome: &Outcome, took: Duration) -> anyhow::Result<()> {
        let (result, detail) = match outcome {
            Outcome::Ok => ("ok", ""),
            Outcome::Failed(detail) => ("failed", detail.as_str()),
            Outcome::Skipped(detail) => ("skipped", detail.as_str()),
        };
        let seconds = took.as_secs_f64();
        println!("{result:8} {name} ({seconds:.1} s) {detail}");
        self.line(&json!({ "test": name, "result": result, "detail": detail, "seconds": seconds }))
    }

    /// Something that was measured.
    pub(super) fn figure(&mut self, figure: &Figure) -> anyhow::Result<()> {
        self.line(&json!({ "figure": figure }))
    }

    /// The last line.
    pub(super) fn end(&mut self, exit: i32) -> anyhow::Result<()> {
        self.line(&json!({ "end": true, "exit": exit }))
    }

    fn line(&mut self, object: &serde_json::Value) -> anyhow::Result<()> {
        writeln!(self.0, "{object}").context("write a result")?;
        self.0.flush().context("write a result")
    }
}

//! Ways to show a report. A view decides nothing and reads nothing.

pub mod clean;
pub mod compare;
pub mod compare_json;
pub mod doctor;
pub mod json;
pub mod lines;
pub mod openmetrics;
pub mod page;
mod plain;
pub mod table_json;
pub mod table_lines;
pub mod trace_json;
pub mod trace_lines;
pub mod tui;

use crate::model::{Report, SourceInfo};

/// Turns reports into text for stdout.
pub trait View {
    /// What stands before the first report.
    fn start(&mut self, info: &SourceInfo) -> String;

    /// One report.
    fn report(&mut self, report: &Report, info: &SourceInfo) -> String;

    /// What stands after the last report, which was shown already.
    fn end(&mut self, last: &Report, info: &SourceInfo) -> String;
}

/// The machine that is watched, as the command layer found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Host name.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
}

#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace_tests;

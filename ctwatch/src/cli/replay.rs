//! The flags of `ctwatch replay`.

use std::path::PathBuf;

use clap::Args;

use super::Format;
use super::common::{ABOUT_FILTERS, ABOUT_OUTPUT, OutputArgs};

/// Flags of `replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// What `ctwatch record` wrote; it may be written at the same time
    pub file: PathBuf,
    /// Only reports from this time on, as 2026-11-23T19:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = ABOUT_FILTERS)]
    pub from: Option<i128>,
    /// Only reports up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = ABOUT_FILTERS)]
    pub to: Option<i128>,
    /// Compare with another recording, and print what changed from FILE to OTHER: rates, and tables at their fullest. It may
    /// be the same file with another part
    #[arg(long, value_name = "OTHER")]
    pub against: Option<PathBuf>,
    /// Only reports of OTHER from this time on
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "against", help_heading = ABOUT_FILTERS)]
    pub against_from: Option<i128>,
    /// Only reports of OTHER up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "against", help_heading = ABOUT_FILTERS)]
    pub against_to: Option<i128>,
    /// Print plain lines, even on a terminal
    #[arg(long, conflicts_with = "json", help_heading = ABOUT_OUTPUT)]
    plain: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ReplayArgs {
    /// How reports are written.
    pub const fn format(&self) -> Format {
        match (self.plain, self.output.json) {
            (_, true) => Format::Json,
            (true, false) => Format::Plain,
            (false, false) => Format::Auto,
        }
    }
}

/// Nanoseconds since the Unix epoch of a time with its zone.
pub(super) fn parse_time(text: &str) -> Result<i128, String> {
    text.parse::<jiff::Timestamp>()
        .map(jiff::Timestamp::as_nanosecond)
        .map_err(|_| "a date and time with its zone, for example 2026-11-23T19:00:00Z".to_owned())
}

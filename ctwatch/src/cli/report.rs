//! The flags of `ctwatch report`.

use std::path::PathBuf;

use clap::Args;

use super::common::{ABOUT_FILTERS, ABOUT_OUTPUT};
use super::replay::parse_time;

/// Flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// A recording of `ctwatch record`
    pub file: PathBuf,
    /// Write the page into this file. `-` prints it
    #[arg(short, long, value_name = "PAGE", help_heading = ABOUT_OUTPUT)]
    pub output: PathBuf,
    /// Put other names and addresses in place of those of the machine and its peers
    #[arg(long, help_heading = ABOUT_OUTPUT)]
    pub mask: bool,
    /// Only reports from this time on, as 2026-11-23T19:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = ABOUT_FILTERS)]
    pub from: Option<i128>,
    /// Only reports up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = ABOUT_FILTERS)]
    pub to: Option<i128>,
}

//! The flags of `ctwatch report`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::common::{ABOUT_FILTERS, ABOUT_OUTPUT, FlowArgs};
use super::record::parse_duration;
use super::replay::parse_time;
use super::{Format, Options, PlaceArgs, Ranked, parse_by, parse_interval};

/// Flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// A recording of `ctwatch record`
    #[arg(required_unless_present = "live", conflicts_with_all = ["live", "FlowArgs", "PlaceArgs"])]
    pub file: Option<PathBuf>,
    /// Watch this machine for DURATION instead: a number with s, m, h or d, as 60s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub live: Option<Duration>,
    /// Write the page into this file. `-` prints it
    #[arg(short, long, value_name = "PAGE", help_heading = ABOUT_OUTPUT)]
    pub output: PathBuf,
    /// Put other names and addresses in place of those of the machine and its peers
    #[arg(long, help_heading = ABOUT_OUTPUT)]
    pub mask: bool,
    /// Only reports from this time on, as 2026-11-23T19:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = ABOUT_FILTERS, conflicts_with = "live")]
    pub from: Option<i128>,
    /// Only reports up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = ABOUT_FILTERS, conflicts_with = "live")]
    pub to: Option<i128>,
    /// With --live: seconds between reports, from 0.1 to 3600; 1 where nothing is said
    #[arg(short, long, value_name = "SECS", value_parser = parse_interval, conflicts_with = "file")]
    interval: Option<Duration>,
    /// With --live: rank by destination port (dport), source address (src) or destination address (dst), separated by
    /// commas. dport is always ranked
    #[arg(long, value_name = "LIST", value_parser = parse_by, help_heading = ABOUT_FILTERS, conflicts_with = "file")]
    by: Option<Ranked>,
    #[command(flatten)]
    flows: FlowArgs,
    #[command(flatten)]
    place: PlaceArgs,
}

impl ReportArgs {
    /// What `live` would do for so long.
    pub fn options(&self, length: Duration) -> anyhow::Result<Options> {
        let interval = self.interval.unwrap_or(Duration::from_secs(1));
        anyhow::ensure!(interval <= length, "the time between reports is longer than the time to watch");
        let reports = length.as_millis() / interval.as_millis().max(1);
        Ok(Options {
            interval,
            count: Some(u64::try_from(reports)?),
            format: Format::Auto,
            color: false,
            verbose: false,
            filter: self.flows.filter(self.place.netns()),
            by: self.by.clone().map_or_else(|| vec![crate::model::By::Dport], |by| by.0),
            source: self.place.source,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn parsed(words: &[&str]) -> Result<ReportArgs, clap::error::ErrorKind> {
        let words = [&["ctwatch", "report", "-o", "page.html"], words].concat();
        match Cli::try_parse_from(words).map_err(|error| error.kind())?.into_command() {
            Command::Report(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_recording_or_a_time_to_watch() {
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument};
        assert!(parsed(&["file"]).is_ok_and(|args| args.live.is_none()));
        assert_eq!(parsed(&[]).unwrap_err(), MissingRequiredArgument);
        assert_eq!(parsed(&["file", "--live", "5s"]).unwrap_err(), ArgumentConflict);
        for watching in [["-i", "2"], ["--proto", "udp"], ["--netns", "self"], ["--source", "auto"]] {
            assert_eq!(
                parsed(&[&["file"], &watching[..]].concat()).unwrap_err(),
                ArgumentConflict,
                "{watching:?}"
            );
        }
        assert_eq!(parsed(&["--live", "5s", "--to", "2026-11-23T19:00:00Z"]).unwrap_err(), ArgumentConflict);
    }

    #[test]
    fn the_time_is_made_of_reports() {
        let options = |words: &[&str]| {
            let args = parsed(words).unwrap();
            args.options(args.live.unwrap())
        };
        assert_eq!(options(&["--live", "60s"]).unwrap().count, Some(60));
        assert_eq!(options(&["--live", "1m", "-i", "0.5"]).unwrap().count, Some(120));
        assert!(options(&["--live", "5s", "-i", "10"]).is_err());
        let filter = options(&["--live", "5s", "--proto", "udp", "--netns", "4026531999"]).unwrap().filter;
        assert!(filter.protos.is_some_and(|protos| protos.contains(17) && !protos.contains(6)));
        assert_eq!(filter.netns, Some(4_026_531_999));
    }
}

//! The flags of `doctor`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::common::ABOUT_OUTPUT;
use super::{OutputArgs, PlaceArgs};

/// Flags of `doctor`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Exit codes: 0 ok, 1 warning, 2 critical, 3 unknown or wrong usage.")]
pub struct DoctorArgs {
    /// What to do instead of looking at this machine.
    #[command(subcommand)]
    pub command: Option<DoctorCommand>,
    /// Count live events for this many seconds, from 0.1 to 3600
    #[arg(long, value_name = "SECS", default_value = "3", value_parser = super::parse_interval)]
    pub sample: Duration,
    /// Also measure the time that tracking takes for each packet on this machine, for this many seconds (5 by default)
    #[arg(long, value_name = "SECS", num_args = 0..=1, default_missing_value = "5", conflicts_with = "from")]
    #[arg(value_parser = super::parse_interval)]
    pub latency: Option<Duration>,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Warn only about past losses within this time, such as 90s, 10min, 2h or 3d. Older losses count as known
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<Duration>,
    /// Also print informational findings
    #[arg(long, help_heading = ABOUT_OUTPUT)]
    pub all: bool,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Write the facts to this file for a bug report, with masked addresses. `-` prints them instead of the findings
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,
    /// Check captured facts or a recording of `ctwatch record` instead of this machine. `-` reads captured facts from stdin
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// With --from and a recording: judge only reports from this time on, as 2026-11-23T19:00:00Z
    #[arg(long, value_name = "TIME", value_parser = super::replay::parse_time, requires = "from")]
    pub from_time: Option<i128>,
    /// With --from and a recording: judge only reports up to this time
    #[arg(long, value_name = "TIME", value_parser = super::replay::parse_time, requires = "from")]
    pub to: Option<i128>,
}

/// A whole number of seconds, minutes, hours or days.
fn parse_since(text: &str) -> Result<Duration, String> {
    let unit = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    let since = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
    let since = since.filter(|since| seconds > 0 && *since < u64::from(u32::MAX));
    since
        .map(Duration::from_secs)
        .ok_or_else(|| format!("no time `{text}`; give one such as 90s, 10min, 2h or 3d"))
}

/// What else `doctor` does.
#[derive(Clone, Debug, Subcommand)]
pub enum DoctorCommand {
    /// Explain one finding. Without an id, list all findings that exist
    Explain {
        /// The finding's id, such as `table-full`
        id: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn doctor(args: &[&str]) -> Result<DoctorArgs, clap::Error> {
        match Cli::try_parse_from(["ctwatch", "doctor"].iter().chain(args))?.into_command() {
            Command::Doctor(doctor) => Ok(doctor),
            other => panic!("not doctor: {other:?}"),
        }
    }

    #[test]
    fn the_defaults_look_for_three_seconds_at_everything() {
        let args = doctor(&[]).unwrap();
        assert_eq!(args.sample, Duration::from_secs(3));
        assert!(!args.all && !args.output.json && args.place.netns().is_none() && args.command.is_none());
    }

    #[test]
    fn a_time_is_one_of_a_recording() {
        let time = ["--from-time", "2026-11-23T19:00:00Z", "--to", "2026-11-23T19:00:01.5Z"];
        let args = doctor(&[&["--from", "file"], &time[..]].concat()).unwrap();
        assert_eq!(args.to.unwrap() - args.from_time.unwrap(), 1_500_000_000);
        assert!(doctor(&time).is_err());
    }

    #[test]
    fn latency_is_timed_where_asked_for() {
        assert_eq!(doctor(&[]).unwrap().latency, None);
        let asked = |args: &[&str]| doctor(args).unwrap().latency;
        assert_eq!(asked(&["--latency"]), Some(Duration::from_secs(5)));
        assert_eq!(asked(&["--latency", "0.5", "--all"]), Some(Duration::from_millis(500)));
        assert_eq!(asked(&["--latency", "--json"]), Some(Duration::from_secs(5)));
    }

    #[test]
    fn since_takes_a_time_with_its_unit() {
        let since =
            |text: &str| doctor(&["--since", text]).ok().and_then(|args| args.since).map(|at| at.as_secs());
        assert_eq!(
            [since("90"), since("90s"), since("10min"), since("2h"), since("3d")],
            [Some(90), Some(90), Some(600), Some(7200), Some(259_200)]
        );
        assert_eq!([since(""), since("h"), since("2 h"), since("2w"), since("99999999999d")], [None; 5]);
    }

    #[test]
    fn explain_takes_an_id_or_none() {
        let args = doctor(&["explain", "table-full"]).unwrap();
        assert!(matches!(args.command, Some(DoctorCommand::Explain { id: Some(id) }) if id == "table-full"));
        assert!(matches!(doctor(&["explain"]).unwrap().command, Some(DoctorCommand::Explain { id: None })));
        assert!(doctor(&["--all", "explain", "memory"]).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &["--sample", "0"][..],
            &["--sample", "x"],
            &["--latency", "soon"],
            &["--latency", "--from", "file"],
            &["table-full"],
            &["--netns", "nowhere"],
        ] {
            assert!(doctor(args).is_err(), "{args:?}");
        }
    }
}

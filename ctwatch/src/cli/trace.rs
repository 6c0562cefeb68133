//! The flags of `ctwatch trace`.

use std::path::PathBuf;

use clap::Args;

use ctwatch_ebpf::Group;

use super::{ABOUT_FILTERS, CommonArgs, Format};
use crate::model::Filter;
use crate::model::trace::{Names, Wanted};
use crate::source::SourceChoice;

/// Flags of `trace`, as typed.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Stop after N events
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_count)]
    count: Option<u64>,
    /// Print these events too, separated by commas: invalid, insert, insert_netlink, clash_resolve, delete, or `all`. A `-` before
    /// a name leaves that event out. drop, early_drop and insert_failed are printed by default
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, value_parser = parse_events)]
    #[arg(help_heading = ABOUT_FILTERS)]
    events: Option<Names>,
    /// Print at most N events per second from each CPU. Events beyond this are counted and reported as suppressed
    #[arg(long, value_name = "N", default_value = "1000")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_events: u32,
    /// Print the losses that `ctwatch record` kept in this file instead of those of this machine
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "max_events", "verbose"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// The flags of `trace`, checked and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// Stop after so many events.
    pub count: Option<u64>,
    /// How events are written; never the full-screen view.
    pub format: Format,
    /// False where the user asked for no colour.
    pub color: bool,
    /// Whether the programs' own log is shown.
    pub verbose: bool,
    /// Which flows; of an eviction, which victims.
    pub filter: Filter,
    /// Which events.
    pub wanted: Wanted,
    /// Which source was asked for.
    pub source: SourceChoice,
    /// The recording to read instead.
    pub from: Option<PathBuf>,
}

impl From<TraceArgs> for TraceOptions {
    fn from(args: TraceArgs) -> Self {
        let CommonArgs { place, output, verbose, .. } = &args.common;
        Self {
            count: args.count,
            format: if output.json { Format::Json } else { Format::Plain },
            color: !output.no_color,
            verbose: *verbose,
            filter: args.common.filter(),
            wanted: Wanted {
                names: args.events.unwrap_or_default(),
                per_second: args.max_events,
                counting: false,
            },
            source: place.source,
            from: args.from,
        }
    }
}

fn parse_count(text: &str) -> Result<u64, String> {
    super::common::parse_count(text, "event", "to go on until stopped")
}

fn parse_events(text: &str) -> Result<Names, String> {
    let mut names = Names::default();
    for part in text.split(',').map(str::trim) {
        let (text, leave_out) = part.strip_prefix('-').map_or((part, false), |rest| (rest, true));
        let meant = |name: &Group| text == "all" || text == name.name();
        let mut found = false;
        for name in Group::ALL.into_iter().filter(meant) {
            found = true;
            if leave_out { names.remove(name) } else { names.insert(name) }
        }
        if !found {
            let known = Group::ALL.map(Group::name).join(", ");
            return Err(format!("no event `{text}`; there are {known}, and `all`"));
        }
    }
    if names.is_empty() { Err("every event is left out".into()) } else { Ok(names) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn options(args: &[&str]) -> Result<TraceOptions, clap::Error> {
        match Cli::try_parse_from(["ctwatch", "trace"].iter().chain(args))?.into_command() {
            Command::Trace(trace) => Ok(trace.into()),
            other => panic!("not trace: {other:?}"),
        }
    }

    #[test]
    fn losses_are_the_default_and_events_add_to_them() {
        let defaults = options(&[]).unwrap();
        assert_eq!(defaults.wanted.names, Names::default());
        assert_eq!(defaults.wanted.per_second, 1000);
        assert_eq!(defaults.filter, Filter::default());
        assert_eq!(defaults.format, Format::Plain);
        let more = options(&["--events", "insert,delete"]).unwrap().wanted.names;
        for (name, asked) in [
            (Group::Insert, true),
            (Group::Delete, true),
            (Group::Drop, true),
            (Group::EarlyDrop, true),
            (Group::InsertFailed, true),
            (Group::ClashResolve, false),
        ] {
            assert_eq!(more.contains(name), asked, "{name:?}");
        }
        let alone = options(&["--events", "-all,insert"]).unwrap().wanted.names;
        assert_eq!(alone.iter().collect::<Vec<_>>(), [Group::Insert]);
    }

    #[test]
    fn wrong_values_say_what_is_wrong() {
        for (args, told) in [
            (&["--events", "inserts"][..], "no event `inserts`"),
            (&["--events", "-all"], "every event is left out"),
            (&["--max-events", "0"], "0 is not in 1..=1000000"),
            (&["--port", "70000"], "no port `70000`"),
            (&["--port", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"], "at most 16 ports"),
            (&["--net", "10.0.0.0/40"], "0 to 32 bits"),
            (&["--net", "::1,::1,::1,::1,::1,::1,::1,::1,::1"], "at most 8 networks"),
            (&["-n", "0"], "at least one event"),
            (&["--plain", "--json"], "cannot be used with"),
            (&["--from", "file", "--source", "kprobe"], "cannot be used with"),
        ] {
            let error = options(args).expect_err("accepted");
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(told), "{args:?}: {error}");
        }
    }
}

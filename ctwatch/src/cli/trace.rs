//! The flags of `ctwatch trace`.

use std::path::PathBuf;

use clap::Args;

use ctwatch_ebpf::Group;

use super::entries::EntryArgs;
use super::{ABOUT_FILTERS, CommonArgs, Format};
use crate::model::Filter;
use crate::model::entry_filter::EntryFilter;
use crate::model::trace::{Names, Wanted};
use crate::source::SourceChoice;

/// Flags of `trace`, as typed.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "A refused flow (drop) has no entry, so that no filter by answers (--rsrc, --rsport, --rdst, \
    --rdport), --nat or --mark lets it through. An invalid packet passes by the flow that it was taken for, if any.\n\n\
    By netlink (where programs are refused, or with --source netlink) trace reports insert, insert_netlink and delete. It \
    infers early_drop if the kernel's count of evictions proves it. It cannot report other events. `lost` then is the \
    largest number of events that may be missing: events that found no room, events that the kernel did not announce, \
    and evictions that look like other deletes."
)]
pub struct TraceArgs {
    /// Stop after N events
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_count)]
    count: Option<u64>,
    /// Print these events too, separated by commas: invalid, insert, insert_netlink, clash_resolve, delete, or `all`. A `-` before
    /// a name leaves that event out. drop, early_drop and insert_failed are printed by default
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, value_parser = parse_events)]
    #[arg(help_heading = ABOUT_FILTERS)]
    events: Option<Names>,
    /// Print at most N events per second from each CPU, by netlink from each network namespace. Events beyond this are
    /// counted and reported as suppressed
    #[arg(long, value_name = "N", default_value = "1000")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_events: u32,
    /// Print the losses that `ctwatch record` kept in this file instead of those of this machine
    #[arg(long, value_name = "FILE", conflicts_with_all = NOT_RECORDED)]
    from: Option<PathBuf>,
    #[command(flatten)]
    entries: EntryArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Flags that say nothing of a recording: of a loss it keeps the original direction and the zone.
const NOT_RECORDED: [&str; 9] =
    ["source", "max_events", "verbose", "rsrc", "rsport", "rdst", "rdport", "nat", "mark"];

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
    /// Which of these, by what only an entry has.
    pub entries: EntryFilter,
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
        let entries = args.entries.filter();
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
                entries: entries.in_kernel(),
            },
            entries,
            source: place.source,
            from: args.from,
        }
    }
}

impl TraceArgs {
    /// What is wrong with the flags together, which no single one of them shows.
    pub(super) fn fault(&self) -> Option<String> {
        let entries = self.entries.clone().filter();
        if let Some((flag, most)) = entries.too_long() {
            return Some(format!("{flag} takes at most {most} values"));
        }
        let names = self.events.unwrap_or_default();
        let shown = names.iter().any(|name| name != Group::Drop);
        (entries.needs_entry() && !shown).then(|| {
            "a refused flow has neither answers nor NAT nor a mark, so no event would be shown: leave out these \
             filters, or choose other --events"
                .to_owned()
        })
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
    use crate::model::entry::Nat;

    fn options(args: &[&str]) -> Result<TraceOptions, clap::Error> {
        let cli = Cli::try_parse_from(["ctwatch", "trace"].iter().chain(args))?.checked()?;
        match cli.into_command() {
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
    fn entries_are_selected_as_by_table() {
        let args = ["--rsrc=10.9.0.77", "--rdport=1024,1025", "--nat=dnat", "--zone=0,9", "--mark=1/1"];
        let TraceOptions { entries, wanted, .. } = options(&args).unwrap();
        assert_eq!((entries.rsrc.len(), &entries.rdport[..]), (1, &[1024, 1025][..]));
        assert_eq!((&entries.nat[..], &entries.zone[..]), (&[Nat::Dnat][..], &[0, 9][..]));
        assert_eq!(wanted.entries, entries.in_kernel());
        assert!(wanted.entries.is_some() && options(&[]).unwrap().wanted.entries.is_none());
        // A refused flow has a zone.
        assert!(options(&["--events", "-all,drop", "--zone", "9"]).is_ok());
        assert!(options(&["--from", "file", "--zone", "9"]).is_ok());
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
            (&["--from", "file", "--nat", "snat"], "cannot be used with"),
            (&["--from", "file", "--mark", "1"], "cannot be used with"),
            (&["--nat", "yes"], "no kind of NAT `yes`"),
            (&["--offload", "none"], "unexpected argument"),
            (&["--zone", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"], "--zone takes at most 16 values"),
            (&["--rdst", "::1,::1,::1,::1,::1,::1,::1,::1,::1"], "--rdst takes at most 8 values"),
            (&["--events", "-all,drop", "--mark", "1"], "no event would be shown"),
            (&["--events", "-early_drop,-insert_failed", "--rsport", "1"], "no event would be shown"),
        ] {
            let error = options(args).expect_err("accepted");
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(told), "{args:?}: {error}");
        }
    }
}

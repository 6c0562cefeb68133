//! The flags of `ctwatch table`.

use std::path::PathBuf;

use clap::Args;

use super::entries::{EntryArgs, List, offloads};
use super::{ABOUT_FILTERS, CommonArgs, Format, common};
use crate::model::Filter;
use crate::model::entry::Offload;
use crate::model::entry_filter::EntryFilter;
use crate::model::table::{Dimensions, GroupBy};
use crate::source::SourceChoice;

/// How many groups plain text shows where no number is given.
const SHOWN: u64 = 20;

/// Flags of `table`, as typed.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The table changes while it is read, so a few entries may be missing or appear twice."
)]
pub struct TableArgs {
    /// Group by these, separated by commas: proto (with the family), state, assured; src, sport, dst, dport of the original
    /// direction; rsrc, rsport, rdst, rdport of the reply direction; nat, zone, mark, offload. Add netns to rank the groups
    /// of all namespaces together
    #[arg(long, value_name = "LIST", default_value = "proto,state,dport", value_parser = parse_by)]
    by: Dimensions,
    /// Print the N largest groups. The default is 20, or all of them as JSON
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_count)]
    count: Option<u64>,
    /// Read the entries from this file instead of this machine's table: what `conntrack -L` printed, also with `-o extended`
    /// or `-o xml`, or /proc/net/nf_conntrack. `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "netns"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    entries: EntryArgs,
    /// Only entries that one of these forwards: none (the usual path), software or hardware (flow tables)
    #[arg(long, value_name = "LIST", value_parser = offloads, help_heading = ABOUT_FILTERS)]
    offload: Option<List<Offload>>,
    #[command(flatten)]
    common: CommonArgs,
}

impl TableArgs {
    /// Why the flags do not go together, and what does.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.from.is_none() || !self.by.contains(GroupBy::Netns) {
            return Ok(());
        }
        let others = GroupBy::ALL.into_iter().filter(|by| *by != GroupBy::Netns && self.by.contains(*by));
        let others: Vec<&str> = others.map(GroupBy::name).collect();
        Err(match others.join(",").as_str() {
            "" => "a saved list (--from) does not name network namespaces: leave --by out, or group by something else".into(),
            others => format!("a saved list (--from) does not name network namespaces: use `--by {others}`"),
        })
    }
}

/// The flags of `table`, checked and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct TableOptions {
    /// What entries are grouped by.
    pub by: Dimensions,
    /// How many groups are shown; `None` means all of them.
    pub count: Option<usize>,
    /// How they are written: JSON or plain text.
    pub format: Format,
    /// False where the user asked for no colour.
    pub color: bool,
    /// Whether to tell how the table was read.
    pub verbose: bool,
    /// Which entries.
    pub filter: Filter,
    /// Which of these, by what only an entry has.
    pub entries: EntryFilter,
    /// Which source was asked for.
    pub source: SourceChoice,
    /// The saved list to read instead.
    pub from: Option<PathBuf>,
}

impl From<TableArgs> for TableOptions {
    fn from(args: TableArgs) -> Self {
        let CommonArgs { place, output, verbose, .. } = &args.common;
        let (format, count) = if output.json {
            (Format::Json, args.count)
        } else {
            (Format::Plain, args.count.or(Some(SHOWN)))
        };
        Self {
            by: args.by,
            count: count.map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            format,
            color: !output.no_color,
            verbose: *verbose,
            filter: args.common.filter(),
            entries: EntryFilter {
                offload: args.offload.map(|list| list.0).unwrap_or_default(),
                ..args.entries.filter()
            },
            from: args.from,
            source: place.source,
        }
    }
}

fn parse_by(text: &str) -> Result<Dimensions, String> {
    common::parse_names(text, "grouping", &GroupBy::ALL, GroupBy::name).map(|list| Dimensions::of(&list))
}

fn parse_count(text: &str) -> Result<u64, String> {
    common::parse_count(text, "group", "to see the largest ones")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;
    use crate::model::entry::Nat;
    use crate::model::entry_filter::Mark;

    fn options(args: &[&str]) -> Result<TableOptions, clap::Error> {
        match Cli::try_parse_from(["ctwatch", "table"].iter().chain(args))?.into_command() {
            Command::Table(table) => Ok(table.into()),
            other => panic!("not table: {other:?}"),
        }
    }

    #[test]
    fn who_fills_the_table_is_what_it_asks_by_itself() {
        let defaults = options(&[]).unwrap();
        assert_eq!(defaults.by, Dimensions::of(&[GroupBy::Proto, GroupBy::State, GroupBy::Dport]));
        assert_eq!((defaults.count, defaults.format), (Some(20), Format::Plain));
        assert_eq!(defaults.filter, Filter::default());
        let json = options(&["--json"]).unwrap();
        assert_eq!((json.count, json.format), (None, Format::Json));
        assert_eq!(options(&["--json", "-n", "3"]).unwrap().count, Some(3));
        let by = options(&["--by", "dst,netns, dst"]).unwrap().by;
        assert_eq!(by, Dimensions::of(&[GroupBy::Netns, GroupBy::Dst]));
    }

    #[test]
    fn the_common_filters_are_taken() {
        let filter = options(&["--proto", "udp", "--port", "53", "--net", "10.0.0.0/8"]).unwrap().filter;
        assert!(filter.protos.is_some_and(|protos| protos.contains(17)) && filter.ends.is_some());
    }

    #[test]
    fn entries_are_selected_by_what_only_they_have() {
        let args = [
            "--rsrc=10.9.0.77/32,fd00::/8",
            "--rsport=53",
            "--rdst=10.9.0.1",
            "--rdport=1024,1025",
            "--nat=dnat,both",
            "--zone=0,9",
            "--mark=16,0x4000/0x4000",
            "--offload=hardware",
        ];
        let entries = options(&args).unwrap().entries;
        assert_eq!((entries.rsrc.len(), entries.rdst.len()), (2, 1));
        assert_eq!((entries.rsport, entries.rdport), (vec![53], vec![1024, 1025]));
        assert_eq!((entries.nat, entries.zone), (vec![Nat::Dnat, Nat::Both], vec![0, 9]));
        let marks = [Mark { value: 16, mask: u32::MAX }, Mark { value: 0x4000, mask: 0x4000 }];
        assert_eq!((&entries.mark[..], entries.offload), (&marks[..], vec![Offload::Hardware]));
        assert!(options(&[]).unwrap().entries.is_empty());
    }

    #[test]
    fn wrong_values_say_what_is_wrong() {
        for (args, told) in [
            (&["--nat", "yes"][..], "no kind of NAT `yes`; there are none, snat, dnat, both"),
            (&["--from", "x", "--netns", "self"], "cannot be used with"),
            (&["--from", "x", "--source", "netlink"], "cannot be used with"),
            (&["--mark=-1"], "no mark `-1`"),
            (&["--mark", "0x"], "no mark `0x`"),
            (&["--mark", "3/1"], "bits outside of its mask"),
            (&["--mark", "0x100000000"], "no mark"),
            (&["--zone", "65536"], "no zone `65536`"),
            (&["--rdport", "http"], "no port `http`"),
            (&["--rsrc", "10.0.0.0/33"], "0 to 32 bits"),
            (&["--by", "port"], "no grouping `port`; there are netns, proto, state"),
            (&["--by", ""], "no grouping ``"),
            (&["-n", "0"], "at least one group"),
            (&["-n", "all"], "not a whole number of groups"),
            (&["-i", "1"], "unexpected argument"),
            (&["--plain", "--json"], "cannot be used with"),
        ] {
            let error = options(args).expect_err("accepted");
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(told), "{args:?}: {error}");
        }
    }
}

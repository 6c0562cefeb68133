//! The one definition of commands and flags; help, completions and the man page come from it.

mod common;
mod doctor;
mod entries;
mod export;
mod record;
mod replay;
mod report;
mod table;
mod trace;

use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::model::{By, Filter};
use crate::source::{Needs, SourceChoice};

use common::{ABOUT_FILTERS, ABOUT_OUTPUT};
pub use common::{CommonArgs, OutputArgs, PlaceArgs};
pub use doctor::{DoctorArgs, DoctorCommand};
pub use export::{ExportArgs, ExportOptions, Listen, Outlet};
pub use record::{RecordArgs, RecordOptions};
pub use replay::ReplayArgs;
pub use report::ReportArgs;
pub use table::{TableArgs, TableOptions};
pub use trace::{TraceArgs, TraceOptions};

/// Show what connection tracking does on this machine: new flows, refused flows, evictions and deletes, by protocol.
#[derive(Debug, Parser)]
#[command(name = "ctwatch", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "Without a command, ctwatch runs `ctwatch live`.")]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    live: LiveArgs,
}

impl Cli {
    /// Refuses flags that each are right, but not together.
    pub fn checked(self) -> Result<Self, clap::Error> {
        let fault = match &self.command {
            Some(Command::Table(table)) => {
                table.check().err().map(|fault| ("table", ErrorKind::ArgumentConflict, fault))
            }
            Some(Command::Trace(trace)) => {
                trace.fault().map(|fault| ("trace", ErrorKind::ValueValidation, fault))
            }
            _ => None,
        };
        let Some((name, kind, fault)) = fault else { return Ok(self) };
        let mut command = Self::command();
        command.build();
        let command = command.find_subcommand_mut(name);
        Err(command.map_or_else(Self::command, |command| command.clone()).error(kind, fault))
    }

    /// What to do: `live` unless something else was named.
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Live(self.live))
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show live rates of inserts, deletes, evictions, drops and failed inserts, by flow type
    Live(LiveArgs),
    /// Print each loss as it happens: refused flows, failed inserts, evictions with victim and newcomer
    Trace(TraceArgs),
    /// List what the table holds now, in groups, the largest first
    Table(TableArgs),
    /// Check whether connection tracking harms this machine, and print what to do. Doctor changes nothing
    Doctor(DoctorArgs),
    /// Serve the counts to Prometheus over HTTP, or write them into a file
    Export(Box<ExportArgs>),
    /// Keep every report and single losses in a file
    Record(Box<RecordArgs>),
    /// Show a recording as `live` would have shown it
    Replay(ReplayArgs),
    /// Make one self-contained HTML page of a recording, or of this machine for a while
    Report(ReportArgs),
    /// Print as JSON what this kernel allows, for bug reports
    Facts,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page
    Man,
}

/// Flags of `live`, as typed.
#[derive(Clone, Debug, Args)]
pub struct LiveArgs {
    /// Seconds between reports, from 0.1 to 3600
    #[arg(short, long, value_name = "SECS", default_value = "1", value_parser = parse_interval)]
    interval: Duration,
    /// Stop after N reports
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_count)]
    count: Option<u64>,
    /// Rank by destination port (dport), source address (src) or destination address (dst), separated by commas. dport is
    /// always ranked. Each address ranking costs one more look-up for each new flow
    #[arg(long, value_name = "LIST", default_value = "dport", value_parser = parse_by, help_heading = ABOUT_FILTERS)]
    by: Ranked,
    #[command(flatten)]
    common: CommonArgs,
}

/// `--by`.
#[derive(Clone, Debug)]
struct Ranked(Vec<By>);

/// How reports are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The full-screen view on a terminal, plain lines otherwise.
    #[default]
    Auto,
    /// The full-screen view.
    Screen,
    /// Plain lines.
    Plain,
    /// One JSON object a line.
    Json,
}

/// The flags of `live`, checked and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Time between reports.
    pub interval: Duration,
    /// Stop after so many reports.
    pub count: Option<u64>,
    /// How reports are written.
    pub format: Format,
    /// False where the user asked for no colour.
    pub color: bool,
    /// Whether the programs' own log is shown.
    pub verbose: bool,
    /// What to watch.
    pub filter: Filter,
    /// What is ranked, each once; destination ports always are.
    pub by: Vec<By>,
    /// Which source was asked for.
    pub source: SourceChoice,
}

impl Options {
    /// What this format needs: the screen and JSON show the cost, the screen shows single losses.
    pub fn needs(&self) -> Needs {
        Needs {
            source: self.source,
            filter: self.filter,
            by: self.by.clone(),
            verbose: self.verbose,
            cost: matches!(self.format, Format::Json | Format::Screen),
            losses: self.format == Format::Screen,
        }
    }
}

impl From<LiveArgs> for Options {
    fn from(args: LiveArgs) -> Self {
        let CommonArgs { place, output, verbose, .. } = &args.common;
        Self {
            interval: args.interval,
            count: args.count,
            format: args.common.format(),
            color: !output.no_color,
            verbose: *verbose,
            filter: args.common.filter(),
            by: args.by.0,
            source: place.source,
        }
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.parse().map_err(|_| "not a number of seconds; for example 1 or 0.5".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must lie between 0.1 and 3600 seconds".into())
    }
}

fn parse_count(text: &str) -> Result<u64, String> {
    common::parse_count(text, "report", "to go on until stopped")
}

fn parse_by(text: &str) -> Result<Ranked, String> {
    let mut by = common::parse_names(text, "ranking", &By::ALL, By::name)?;
    if !by.contains(&By::Dport) {
        by.insert(0, By::Dport);
    }
    Ok(Ranked(by))
}

/// The completion script of a shell.
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ctwatch", &mut script);
    script
}

/// The man page, in roff: the command itself and each subcommand.
pub fn man() -> std::io::Result<Vec<u8>> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    let top = clap_mangen::Man::new(command.clone());
    top.render(&mut page)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let section = clap_mangen::Man::new(sub.clone());
        let title = sub.get_name().to_uppercase();
        page.extend(format!(".SH \"THE COMMAND {title}\"\n").bytes());
        section.render_synopsis_section(&mut page)?;
        section.render_description_section(&mut page)?;
        section.render_options_section(&mut page)?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use ctwatch_ebpf::AF_INET6;

    use super::*;
    use crate::model::filter;

    fn options(args: &[&str]) -> Result<Options, clap::Error> {
        match Cli::try_parse_from(std::iter::once(&"ctwatch").chain(args))?.into_command() {
            Command::Live(live) => Ok(live.into()),
            other => panic!("not live: {other:?}"),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_arguments_mean_live_with_the_defaults() {
        let defaults = options(&[]).unwrap();
        assert_eq!(defaults, options(&["live"]).unwrap());
        assert_eq!(defaults.interval, Duration::from_secs(1));
        assert_eq!(defaults.count, None);
        assert_eq!(defaults.format, Format::Auto);
        assert_eq!(defaults.filter, Filter::default());
        assert_eq!(defaults.by, [By::Dport]);
        assert_eq!(defaults.source, SourceChoice::Auto);
        assert!(defaults.color && !defaults.verbose);
    }

    #[test]
    fn flags_work_with_and_without_the_command() {
        let args = [
            "-i",
            "0.25",
            "-n",
            "3",
            "--json",
            "--proto",
            "udp,6",
            "--family",
            "ipv6",
            "--netns",
            "4026531999",
            "--port",
            "53,6881",
            "--net",
            "10.0.0.0/8,2001:db8::/32",
        ];
        let bare = options(&args).unwrap();
        assert_eq!(bare, options(&[&["live"][..], &args].concat()).unwrap());
        assert_eq!(bare.interval, Duration::from_millis(250));
        assert_eq!(bare.count, Some(3));
        assert_eq!(bare.format, Format::Json);
        let protos = bare.filter.protos.unwrap();
        assert!(protos.contains(17) && protos.contains(6) && !protos.contains(1));
        assert_eq!(bare.filter.family, Some(AF_INET6));
        assert_eq!(bare.filter.netns, Some(4_026_531_999));
        let nets = ["10.0.0.0/8", "2001:db8::/32"].map(|net| filter::parse_net(net).unwrap());
        assert_eq!(bare.filter.ends, filter::ends(&[53, 6881], &nets));
        assert!(bare.filter.ends.is_some());
    }

    #[test]
    fn destination_ports_are_ranked_whatever_else_is() {
        for (asked, ranked) in [
            ("dport", &[By::Dport][..]),
            ("src", &[By::Dport, By::Src]),
            ("dst, src,dst", &[By::Dport, By::Src, By::Dst]),
        ] {
            assert_eq!(options(&["--by", asked]).unwrap().by, ranked, "{asked}");
        }
    }

    #[test]
    fn wrong_values_say_what_is_wrong() {
        for (args, told) in [
            (&["-i", "0"][..], "between 0.1 and 3600"),
            (&["-i", "3601"], "between 0.1 and 3600"),
            (&["-i", "nan"], "between 0.1 and 3600"),
            (&["-i", "soon"], "not a number of seconds"),
            (&["-n", "0"], "at least one report"),
            (&["-n", "-1"], "unexpected argument"),
            (&["-n", "x"], "not a whole number"),
            (&["--proto", "tcp,foo"], "no protocol `foo`"),
            (&["--proto", ""], "no protocol ``"),
            (&["--proto", "256"], "no protocol `256`"),
            (&["--family", "ipv5"], "[possible values: ipv4, ipv6]"),
            (&["--source", "magic"], "[possible values: auto, fexit, kprobe, netlink]"),
            (&["--netns", "no-such-namespace"], "no network namespace `no-such-namespace`"),
            (&["--netns", "../../etc/passwd"], "no network namespace"),
            (&["--plain", "--json"], "cannot be used with"),
            (&["--port", "70000"], "no port `70000`"),
            (&["--port", "+53"], "no port `+53`"),
            (&["--port", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"], "at most 16 ports"),
            (&["--net", "self"], "no network `self`"),
            (&["--net", "10.0.0.0/40"], "0 to 32 bits"),
            (&["--net", "::1,::1,::1,::1,::1,::1,::1,::1,::1"], "at most 8 networks"),
            (&["--by", "sport"], "no ranking `sport`; there are dport, src, dst"),
            (&["--by", ""], "no ranking ``"),
        ] {
            let error = options(args).expect_err("accepted");
            assert_eq!(error.exit_code(), 2, "{args:?}");
            let text = error.to_string();
            assert!(text.contains(told), "{args:?}: {text}");
        }
    }

    #[test]
    fn man_page_and_completions_know_every_flag() {
        let page = String::from_utf8(man().unwrap()).unwrap();
        let script = String::from_utf8(completions(clap_complete::Shell::Bash)).unwrap();
        for flag in [
            "interval", "count", "plain", "json", "proto", "family", "netns", "source", "no-color", "port",
            "net", "by", "verbose",
        ] {
            assert!(page.contains(&flag.replace('-', "\\-")), "{flag} in the man page");
            assert!(script.contains(&format!("--{flag}")), "{flag} in the completions");
        }
    }
}

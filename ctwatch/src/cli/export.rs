//! The flags of `ctwatch export`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::common::{ABOUT_FILTERS, ABOUT_OUTPUT, FlowArgs, PlaceArgs};
use super::parse_interval;
use crate::model::series::Bounds;
use crate::source::Needs;

/// Where clients connect unless something else is asked for.
const DEFAULT_LISTEN: &str = "127.0.0.1:9963";
/// Fewer would leave no room for what every machine has.
const FEWEST_SERIES: usize = 1000;
/// More than Prometheus takes in from one target without trouble.
const MOST_SERIES: usize = 100_000;
/// More lines are no ranking, and would take the room of flow types.
const MOST_TOP: usize = 100;

/// Flags of `export`, as typed.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Counters are totals since ctwatch started. Events that a source cannot count have no series."
)]
pub struct ExportArgs {
    /// Serve /metrics and /healthz at this address, or at a Unix socket (unix:PATH). Repeat the flag for several addresses
    #[arg(long, value_name = "ADDR:PORT", default_value = DEFAULT_LISTEN, value_parser = parse_listen)]
    #[arg(help_heading = ABOUT_OUTPUT)]
    listen: Vec<Listen>,
    /// Write Prometheus text into this file instead, for node_exporter's textfile collector. Each interval replaces the
    /// whole file
    #[arg(long, value_name = "FILE", conflicts_with = "listen", help_heading = ABOUT_OUTPUT)]
    textfile: Option<PathBuf>,
    /// Seconds between readings, from 0.1 to 3600. A scrape gets the last reading
    #[arg(short, long, value_name = "SECS", default_value = "1", value_parser = parse_interval)]
    interval: Duration,
    /// Rank at most N destination ports, from 0 to 100
    #[arg(long, value_name = "N", default_value = "20", value_parser = parse_top, help_heading = ABOUT_OUTPUT)]
    top: usize,
    /// Whether each network namespace has its own series. With `no`, the gauges show the fullest table
    #[arg(long, value_name = "WHETHER", default_value = "yes", help_heading = ABOUT_OUTPUT)]
    by_netns: YesNo,
    /// Write at most N series, from 1000 to 100000. ctwatch_series_left_out counts the rest
    #[arg(long, value_name = "N", default_value = "10000", value_parser = parse_series, help_heading = ABOUT_OUTPUT)]
    max_series: usize,
    #[command(flatten)]
    flows: FlowArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// Also print details on stderr: the log of the kernel programs
    #[arg(short, long, help_heading = ABOUT_FILTERS)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum YesNo {
    Yes,
    No,
}

/// A place where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address and port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Where the metrics go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlet {
    /// Served to clients.
    Http(Vec<Listen>),
    /// Written into a file.
    Textfile(PathBuf),
}

/// The flags of `export`, checked and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportOptions {
    /// Where the metrics go.
    pub outlet: Outlet,
    /// How many series.
    pub bounds: Bounds,
    /// Time between readings.
    pub interval: Duration,
    /// What the source is to deliver.
    pub needs: Needs,
}

impl From<ExportArgs> for ExportOptions {
    fn from(args: ExportArgs) -> Self {
        let outlet = match args.textfile {
            Some(file) => Outlet::Textfile(file),
            None => Outlet::Http(args.listen),
        };
        Self {
            outlet,
            bounds: Bounds { top: args.top, by_netns: args.by_netns == YesNo::Yes, series: args.max_series },
            interval: args.interval,
            needs: Needs {
                verbose: args.verbose,
                ..Needs::counts(args.place.source, args.flows.filter(args.place.netns()))
            },
        }
    }
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    match text.strip_prefix("unix:") {
        Some("") => Err("unix: needs the path of a socket, as unix:/run/ctwatch/metrics.sock".into()),
        Some(path) => Ok(Listen::Unix(path.into())),
        None => text.parse().map(Listen::Tcp).map_err(|_| {
            format!("no address `{text}`; give one as 127.0.0.1:9963, [::1]:9963 or unix:/run/ctwatch/metrics.sock")
        }),
    }
}

fn parse_top(text: &str) -> Result<usize, String> {
    in_range(text, 0, MOST_TOP)
}

fn parse_series(text: &str) -> Result<usize, String> {
    in_range(text, FEWEST_SERIES, MOST_SERIES)
}

fn in_range(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("must be a whole number from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn options(args: &[&str]) -> Result<ExportOptions, clap::Error> {
        match Cli::try_parse_from(["ctwatch", "export"].iter().chain(args))?.into_command() {
            Command::Export(export) => Ok((*export).into()),
            other => panic!("not export: {other:?}"),
        }
    }

    #[test]
    fn by_itself_it_listens_on_this_machine_alone() {
        let defaults = options(&[]).unwrap();
        let loopback = Listen::Tcp("127.0.0.1:9963".parse().unwrap());
        assert_eq!(defaults.outlet, Outlet::Http(vec![loopback]));
        assert_eq!(defaults.bounds, Bounds { top: 20, by_netns: true, series: 10_000 });
        assert_eq!(defaults.interval, Duration::from_secs(1));
        assert!(defaults.needs.filter == crate::model::Filter::default());
    }

    #[test]
    fn flags_are_taken() {
        let given =
            options(&["--listen", "[::]:80", "--listen", "unix:/run/m", "--top", "0", "--by-netns=no"])
                .unwrap();
        let listen = [Listen::Tcp("[::]:80".parse().unwrap()), Listen::Unix("/run/m".into())];
        assert_eq!(given.outlet, Outlet::Http(listen.to_vec()));
        assert_eq!(given.bounds, Bounds { top: 0, by_netns: false, series: 10_000 });
        let file = options(&["--textfile", "/var/m.prom", "-i", "15", "--proto", "udp"]).unwrap();
        assert_eq!(file.outlet, Outlet::Textfile("/var/m.prom".into()));
        assert_eq!(file.interval, Duration::from_secs(15));
        assert!(file.needs.filter.protos.is_some_and(|protos| protos.contains(17) && !protos.contains(6)));
    }

    #[test]
    fn wrong_values_say_what_is_wrong() {
        for (args, expected) in [
            (&["--listen", "localhost"][..], "no address `localhost`"),
            (&["--listen", "unix:"], "needs the path"),
            (&["--top", "101"], "from 0 to 100"),
            (&["--top", "-1"], "unexpected argument"),
            (&["--max-series", "10"], "from 1000 to 100000"),
            (&["--by-netns", "maybe"], "[possible values: yes, no]"),
            (&["--textfile", "/a", "--listen", "127.0.0.1:1"], "cannot be used with"),
            (&["--json"], "unexpected argument"),
        ] {
            let error = options(args).expect_err("accepted");
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(expected), "{args:?}: {error}");
        }
    }
}

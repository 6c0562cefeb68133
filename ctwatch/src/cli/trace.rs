//! The flags of `ctwatch trace`.

use clap::Args;
use clap::builder::TypedValueParser;
use ctwatch_ebpf::loss::{Net, TRACE_NETS, TRACE_PORTS};
use ctwatch_ebpf::{AF_INET, AF_INET6};

use super::{ABOUT_FILTERS, ABOUT_OUTPUT, Family, Format, Netns, SourceChoice, parse_netns, parse_protocols};
use crate::model::trace::{self, Name, Names, Wanted};
use crate::model::{Filter, Protocols};

/// Flags of `trace`, as typed.
#[derive(Clone, Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag that users type; `TraceOptions` has what they mean"
)]
pub struct TraceArgs {
    /// Stop after N events
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_count)]
    count: Option<u64>,
    /// These too, beside drop, early_drop and insert_failed: insert, insert_netlink, clash_resolve, delete, or `all`,
    /// separated by commas; a name behind `-` is left out
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, value_parser = parse_events)]
    #[arg(help_heading = ABOUT_FILTERS)]
    events: Option<Names>,
    /// Show at most N events a second from each CPU; what is left out is counted
    #[arg(long, value_name = "N", default_value = "1000")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_events: u32,
    /// Plain lines, even on a terminal
    #[arg(long, conflicts_with = "json", help_heading = ABOUT_OUTPUT)]
    plain: bool,
    /// One JSON object a line for each event
    #[arg(long, help_heading = ABOUT_OUTPUT)]
    json: bool,
    /// No colour, even on a terminal (as does the variable NO_COLOR)
    #[arg(long, help_heading = ABOUT_OUTPUT)]
    no_color: bool,
    /// Say what the programs in the kernel have to say, on stderr
    #[arg(short, long, help_heading = ABOUT_OUTPUT)]
    verbose: bool,
    /// Only these L4 protocols: names or numbers, separated by commas
    #[arg(long, value_name = "LIST", value_parser = parse_protocols, help_heading = ABOUT_FILTERS)]
    proto: Option<Protocols>,
    /// Only this address family
    #[arg(long, value_name = "FAMILY", help_heading = ABOUT_FILTERS)]
    family: Option<Family>,
    /// Only flows with one of these ports at either end, separated by commas; of an eviction, the victim's
    #[arg(long, value_name = "LIST", value_parser = parse_ports, help_heading = ABOUT_FILTERS)]
    port: Option<Ports>,
    /// Only flows with either end in one of these networks, as 10.0.0.0/8 or 2001:db8::/32, separated by commas
    #[arg(long, value_name = "CIDR", value_parser = parse_nets, help_heading = ABOUT_FILTERS)]
    net: Option<Nets>,
    /// Only this network namespace: `all`, `self`, `init`, a name known to `ip netns`, or an inode
    #[arg(long, value_name = "NETNS", default_value = "all", help_heading = ABOUT_FILTERS)]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new().try_map(|text| parse_netns(&text)))]
    netns: Netns,
    /// Where the events come from; one that is named and cannot run is an error
    #[arg(long, value_name = "SOURCE", default_value = "auto")]
    source: SourceChoice,
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
    /// Which flow types.
    pub filter: Filter,
    /// Which events, and of which flows.
    pub wanted: Wanted,
    /// Which source was asked for.
    pub source: SourceChoice,
}

impl From<TraceArgs> for TraceOptions {
    fn from(args: TraceArgs) -> Self {
        let family = args.family.map(|family| match family {
            Family::Ipv4 => AF_INET,
            Family::Ipv6 => AF_INET6,
        });
        Self {
            count: args.count,
            format: if args.json { Format::Json } else { Format::Plain },
            color: !args.no_color,
            verbose: args.verbose,
            filter: Filter { protos: args.proto, family, netns: args.netns.0 },
            wanted: Wanted {
                names: args.events.unwrap_or_default(),
                per_second: args.max_events,
                filter: trace::filter(
                    &args.port.map_or_else(Vec::new, |ports| ports.0),
                    &args.net.map_or_else(Vec::new, |nets| nets.0),
                ),
                counting: false,
            },
            source: args.source,
        }
    }
}

/// `--port`, at most [`TRACE_PORTS`].
#[derive(Clone, Debug)]
struct Ports(Vec<u16>);

/// `--net`, at most [`TRACE_NETS`].
#[derive(Clone, Debug)]
struct Nets(Vec<Net>);

fn parse_ports(text: &str) -> Result<Ports, String> {
    let port = |part: &str| {
        part.trim().parse().map_err(|_| format!("no port `{}`; give numbers from 0 to 65535", part.trim()))
    };
    let ports: Vec<u16> = text.split(',').map(port).collect::<Result<_, _>>()?;
    if ports.len() > TRACE_PORTS { Err(format!("at most {TRACE_PORTS} ports")) } else { Ok(Ports(ports)) }
}

fn parse_nets(text: &str) -> Result<Nets, String> {
    let nets: Vec<Net> =
        text.split(',').map(|part| trace::parse_net(part.trim())).collect::<Result<_, _>>()?;
    if nets.len() > TRACE_NETS { Err(format!("at most {TRACE_NETS} networks")) } else { Ok(Nets(nets)) }
}

fn parse_count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("at least one event; leave --count out to go on until stopped".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("not a whole number of events".into()),
    }
}

fn parse_events(text: &str) -> Result<Names, String> {
    let mut names = Names::default();
    for part in text.split(',').map(str::trim) {
        let (text, leave_out) = part.strip_prefix('-').map_or((part, false), |rest| (rest, true));
        let meant = |name: &Name| text == "all" || text == name.text();
        let mut found = false;
        for name in Name::ALL.into_iter().filter(meant) {
            found = true;
            if leave_out { names.remove(name) } else { names.insert(name) }
        }
        if !found {
            let known = Name::ALL.map(Name::text).join(", ");
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
        assert!(defaults.wanted.filter.is_empty());
        assert_eq!(defaults.format, Format::Plain);
        let more = options(&["--events", "insert,delete"]).unwrap().wanted.names;
        for (name, asked) in [
            (Name::Insert, true),
            (Name::Delete, true),
            (Name::Drop, true),
            (Name::EarlyDrop, true),
            (Name::InsertFailed, true),
            (Name::ClashResolve, false),
        ] {
            assert_eq!(more.contains(name), asked, "{name:?}");
        }
        let alone = options(&["--events", "-all,insert"]).unwrap().wanted.names;
        assert_eq!(alone.iter().collect::<Vec<_>>(), [Name::Insert]);
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
        ] {
            let error = options(args).expect_err("accepted");
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(told), "{args:?}: {error}");
        }
    }
}

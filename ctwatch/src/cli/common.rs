//! Flags that several commands share, each defined once.

use clap::builder::{PossibleValue, TypedValueParser as _};
use clap::{Args, ValueEnum};
use ctwatch_ebpf::loss::{Net, TRACE_NETS, TRACE_PORTS};
use ctwatch_ebpf::{AF_INET, AF_INET6};

use super::Format;
use crate::model::{Filter, Protocols, filter, protocol};
use crate::source::{SourceChoice, tables};

pub(super) const ABOUT_OUTPUT: &str = "Output";
pub(super) const ABOUT_FILTERS: &str = "What to watch";

/// What `live`, `trace` and `table` have in common.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    #[command(flatten)]
    flows: FlowArgs,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// Print plain lines, even on a terminal
    #[arg(long, conflicts_with = "json", help_heading = ABOUT_OUTPUT)]
    plain: bool,
    /// Also print details on stderr: the log of the kernel programs, and how the table was read
    #[arg(short, long, help_heading = ABOUT_OUTPUT)]
    pub(super) verbose: bool,
}

/// Which flows.
#[derive(Clone, Debug, Args)]
pub(super) struct FlowArgs {
    /// Count only these L4 protocols: names or numbers, separated by commas
    #[arg(long, value_name = "LIST", value_parser = parse_protocols, help_heading = ABOUT_FILTERS)]
    proto: Option<Protocols>,
    /// Count only this address family
    #[arg(long, value_name = "FAMILY", help_heading = ABOUT_FILTERS)]
    family: Option<Family>,
    /// Count only flows that use one of these ports at either end, separated by commas. For evictions, this matches the
    /// evicted flow
    #[arg(long, value_name = "LIST", value_parser = parse_ports, help_heading = ABOUT_FILTERS)]
    port: Option<Ports>,
    /// Count only flows with an address in one of these networks, separated by commas: 10.0.0.0/8, 2001:db8::/32
    #[arg(long, value_name = "CIDR", value_parser = parse_nets, help_heading = ABOUT_FILTERS)]
    net: Option<Nets>,
}

/// Where to look, and by what means.
#[derive(Clone, Debug, Args)]
pub struct PlaceArgs {
    /// Look at this network namespace: `all`, `self`, `init`, a name that `ip netns` lists, or an inode
    #[arg(long, value_name = "NETNS", default_value = "all", help_heading = ABOUT_FILTERS)]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new().try_map(|text| parse_netns(&text)))]
    netns: Netns,
    /// Choose how events are counted. If the chosen source cannot run here, ctwatch ends with an error
    #[arg(long, value_name = "SOURCE", default_value = "auto")]
    pub source: SourceChoice,
}

impl PlaceArgs {
    /// Inode of the only namespace to look at.
    pub const fn netns(&self) -> Option<u32> {
        self.netns.0
    }
}

/// How to write.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// Print JSON, one object per line
    #[arg(long, help_heading = ABOUT_OUTPUT)]
    pub json: bool,
    /// Print no colours, even on a terminal. The variable NO_COLOR does the same
    #[arg(long, help_heading = ABOUT_OUTPUT)]
    pub no_color: bool,
}

impl CommonArgs {
    pub(super) fn filter(&self) -> Filter {
        self.flows.filter(self.place.netns())
    }

    pub(super) const fn format(&self) -> Format {
        match (self.plain, self.output.json) {
            (_, true) => Format::Json,
            (true, false) => Format::Plain,
            (false, false) => Format::Auto,
        }
    }
}

impl FlowArgs {
    pub(super) fn filter(&self, netns: Option<u32>) -> Filter {
        let Self { proto, family, port, net } = self;
        Filter {
            protos: *proto,
            family: family.map(|family| match family {
                Family::Ipv4 => AF_INET,
                Family::Ipv6 => AF_INET6,
            }),
            netns,
            ends: filter::ends(
                port.as_ref().map_or(&[], |ports| &ports.0),
                net.as_ref().map_or(&[], |nets| &nets.0),
            ),
        }
    }
}

/// `--family`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    Ipv4,
    Ipv6,
}

/// `--netns`, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Netns(Option<u32>);

/// `--port`, at most [`TRACE_PORTS`].
#[derive(Clone, Debug)]
struct Ports(Vec<u16>);

/// `--net`, at most [`TRACE_NETS`].
#[derive(Clone, Debug)]
struct Nets(Vec<Net>);

impl ValueEnum for SourceChoice {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Fexit, Self::Kprobe, Self::Netlink]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Auto => ("auto", "Use the best source that this kernel allows"),
            Self::Fexit => ("fexit", "Attach BPF trampolines (fentry and fexit)"),
            Self::Kprobe => ("kprobe", "Attach kprobes and kretprobes"),
            Self::Netlink => ("netlink", "Listen to ctnetlink events and read the kernel's statistics"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

fn parse_protocols(text: &str) -> Result<Protocols, String> {
    let mut set = Protocols::default();
    for part in text.split(',') {
        let proto = protocol::number(part.trim()).ok_or_else(|| {
            format!("no protocol `{}`; name one (tcp, udp, icmp, icmpv6, sctp, gre, …) or give its number, 0 to 255", part.trim())
        })?;
        set.insert(proto);
    }
    Ok(set)
}

/// Numbers from 0 to 65535.
pub(super) fn parse_u16s(text: &str, what: &str) -> Result<Vec<u16>, String> {
    let number = |part: &str| {
        // `u16::from_str` takes "+53" too, which nobody means.
        Some(part.trim())
            .filter(|part| part.starts_with(|first: char| first.is_ascii_digit()))
            .and_then(|part| part.parse().ok())
            .ok_or_else(|| format!("no {what} `{}`; give numbers from 0 to 65535", part.trim()))
    };
    text.split(',').map(number).collect()
}

/// Networks and addresses.
pub(super) fn parse_net_list(text: &str) -> Result<Vec<Net>, String> {
    text.split(',').map(|part| filter::parse_net(part.trim())).collect()
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    let ports = parse_u16s(text, "port")?;
    if ports.len() > TRACE_PORTS { Err(format!("at most {TRACE_PORTS} ports")) } else { Ok(Ports(ports)) }
}

fn parse_nets(text: &str) -> Result<Nets, String> {
    let nets = parse_net_list(text)?;
    if nets.len() > TRACE_NETS { Err(format!("at most {TRACE_NETS} networks")) } else { Ok(Nets(nets)) }
}

fn parse_netns(text: &str) -> Result<Netns, String> {
    tables::resolve(text).map(Netns).map_err(|error| format!("{error:#}"))
}

/// A whole number of at least 1 of what `--count` counts.
pub(super) fn parse_count(text: &str, of: &str, without: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err(format!("at least one {of}; leave --count out {without}")),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("not a whole number of {of}s")),
    }
}

/// The members of a list of names separated by commas, each once, in the order of `all`.
pub(super) fn parse_names<T: Copy>(
    text: &str,
    what: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<Vec<T>, String> {
    let mut asked = vec![false; all.len()];
    for part in text.split(',').map(str::trim) {
        let at = all.iter().position(|one| name(*one) == part).ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|one| name(*one)).collect();
            format!("no {what} `{part}`; there are {}", known.join(", "))
        })?;
        asked[at] = true;
    }
    Ok(all.iter().zip(asked).filter(|(_, asked)| *asked).map(|(one, _)| *one).collect())
}

//! Flags that select entries by what only an entry has.

use clap::Args;
use ctwatch_ebpf::loss::Net;

use super::{ABOUT_FILTERS, common};
use crate::model::entry::{Nat, Offload};
use crate::model::entry_filter::{EntryFilter, Mark};

/// A list that is one value to clap.
#[derive(Clone, Debug)]
pub(super) struct List<T>(pub(super) Vec<T>);

/// Flags for the reply direction and more, of `table` and `trace`.
#[derive(Clone, Debug, Args)]
pub(super) struct EntryArgs {
    /// Only entries whose answers come from one of these networks, separated by commas. With NAT of the destination
    /// this is the real server
    #[arg(long, value_name = "CIDR", value_parser = nets, help_heading = ABOUT_FILTERS)]
    rsrc: Option<List<Net>>,
    /// Only entries whose answers come from one of these ports
    #[arg(long, value_name = "LIST", value_parser = ports, help_heading = ABOUT_FILTERS)]
    rsport: Option<List<u16>>,
    /// Only entries whose answers go to one of these networks. With NAT of the source this is the address that the
    /// flow was given
    #[arg(long, value_name = "CIDR", value_parser = nets, help_heading = ABOUT_FILTERS)]
    rdst: Option<List<Net>>,
    /// Only entries whose answers go to one of these ports
    #[arg(long, value_name = "LIST", value_parser = ports, help_heading = ABOUT_FILTERS)]
    rdport: Option<List<u16>>,
    /// Only entries with one of these kinds of NAT: none, snat, dnat, both
    #[arg(long, value_name = "LIST", value_parser = kinds_of_nat, help_heading = ABOUT_FILTERS)]
    nat: Option<List<Nat>>,
    /// Only entries in one of these conntrack zones. 0 is the default zone
    #[arg(long, value_name = "LIST", value_parser = zones, help_heading = ABOUT_FILTERS)]
    zone: Option<List<u16>>,
    /// Only entries with one of these marks: 16, 0x10, or 0x10/0xff where only some bits count
    #[arg(long, value_name = "LIST", value_parser = marks, help_heading = ABOUT_FILTERS)]
    mark: Option<List<Mark>>,
}

impl EntryArgs {
    /// What is asked for by these flags.
    pub(super) fn filter(self) -> EntryFilter {
        fn of<T>(list: Option<List<T>>) -> Vec<T> {
            list.map(|list| list.0).unwrap_or_default()
        }
        EntryFilter {
            rsrc: of(self.rsrc),
            rsport: of(self.rsport),
            rdst: of(self.rdst),
            rdport: of(self.rdport),
            nat: of(self.nat),
            zone: of(self.zone),
            mark: of(self.mark),
            offload: Vec::new(),
        }
    }
}

fn nets(text: &str) -> Result<List<Net>, String> {
    common::parse_net_list(text).map(List)
}

fn ports(text: &str) -> Result<List<u16>, String> {
    common::parse_u16s(text, "port").map(List)
}

fn zones(text: &str) -> Result<List<u16>, String> {
    common::parse_u16s(text, "zone").map(List)
}

fn kinds_of_nat(text: &str) -> Result<List<Nat>, String> {
    common::parse_names(text, "kind of NAT", &Nat::ALL, Nat::name).map(List)
}

pub(super) fn offloads(text: &str) -> Result<List<Offload>, String> {
    common::parse_names(text, "kind of offload", &Offload::ALL, Offload::name).map(List)
}

fn marks(text: &str) -> Result<List<Mark>, String> {
    let mark = |part: &str| {
        let part = part.trim();
        let (value, mask) = part.split_once('/').unwrap_or((part, "0xffffffff"));
        let known = number(value).zip(number(mask)).map(|(value, mask)| Mark { value, mask });
        let known = known.ok_or_else(|| format!("no mark `{part}`; give 16, 0x10 or 0x10/0xff"))?;
        if known.value & !known.mask != 0 {
            return Err(format!("mark `{part}` has bits outside of its mask, so no entry can have it"));
        }
        Ok(known)
    };
    text.split(',').map(mark).collect::<Result<_, _>>().map(List)
}

/// Decimal, or hexadecimal behind `0x`.
fn number(text: &str) -> Option<u32> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    digits.chars().all(|digit| digit.is_digit(radix)).then(|| u32::from_str_radix(digits, radix).ok())?
}

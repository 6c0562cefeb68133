//! The parts of an entry as they are read, whatever the form of the list.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ctwatch_ebpf::loss::{Tuple, has_ports, is_icmp};

use crate::model::filter::tuple;
use crate::model::state::State;
use crate::model::table::{Entry, Traffic, status};

/// Why a line is no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It does not begin as an entry does.
    Protocol,
    /// It lacks an address.
    Addresses,
    /// It lacks a port, and its protocol has ports.
    Ports,
    /// One of its addresses is none.
    Address,
    /// Its addresses are of different families.
    Families,
    /// A port, mark, zone or counter is no number, or too large.
    Number,
    /// It has more than two directions.
    Directions,
    /// It is longer than any entry.
    Long,
    /// It is not text.
    Text,
    /// It ends in the middle.
    Cut,
    /// Its elements are not those of an entry.
    Element,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "there is no protocol number where an entry has it",
            Self::Addresses => "an address is missing",
            Self::Ports => "a port is missing",
            Self::Address => "an address cannot be read",
            Self::Families => "its addresses are of different families",
            Self::Number => "a number cannot be read or is too large",
            Self::Directions => "it has more than two directions",
            Self::Long => "it is longer than an entry can be",
            Self::Text => "it is not text",
            Self::Cut => "it ends in the middle",
            Self::Element => "its XML is not that of `conntrack -L -o xml`",
        })
    }
}

/// One direction as it is read.
#[derive(Clone, Copy, Debug, Default)]
struct Direction {
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    src_part: Option<u16>,
    dst_part: Option<u16>,
    kind: u8,
    code: u8,
    id: u16,
}

/// An entry as it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    proto: u8,
    /// How many directions have begun.
    begun: usize,
    /// What follows belongs to no direction.
    ended: bool,
    directions: [Direction; 2],
    state: Option<u8>,
    mark: u32,
    zone: u16,
    packets: Option<u64>,
    bytes: Option<u64>,
    /// Bits of [`status`] beside CONFIRMED.
    pub(super) status: u32,
}

impl Parts {
    /// An entry of a protocol, before its first direction.
    pub(super) fn of(proto: u8) -> Self {
        Self {
            proto,
            begun: 0,
            ended: false,
            directions: [Direction::default(); 2],
            state: None,
            mark: 0,
            zone: 0,
            packets: None,
            bytes: None,
            status: 0,
        }
    }

    /// The tracker's state. One that is not known here stays one, and reads UNKNOWN.
    pub(super) fn state(&mut self, name: &str) {
        self.state = Some(State::number(self.proto, name).unwrap_or(u8::MAX));
    }

    /// What follows is of the next direction: the original one, then that of answers.
    pub(super) fn next_direction(&mut self) -> Result<(), Broken> {
        self.begun += 1;
        if self.begun > self.directions.len() { Err(Broken::Directions) } else { Ok(()) }
    }

    /// What follows is of the entry.
    pub(super) const fn end_directions(&mut self) {
        self.ended = true;
    }

    /// A named value; of other names nothing is read.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), Broken> {
        match name {
            "mark" => {
                self.mark = known(value)?;
                self.ended = true;
            }
            "use" => self.ended = true,
            "zone" | "zone-orig" | "zone-reply" => self.zone = known(value)?,
            "packets" => add(&mut self.packets, value)?,
            "bytes" => add(&mut self.bytes, value)?,
            // The entry has an id of its own.
            _ if self.ended => {}
            _ => {
                let Some(at) = self.begun.checked_sub(1) else { return Ok(()) };
                let direction = self.directions.get_mut(at).ok_or(Broken::Directions)?;
                match name {
                    "src" => direction.src = Some(address(value)?),
                    "dst" => direction.dst = Some(address(value)?),
                    "sport" => direction.src_part = Some(known(value)?),
                    "dport" => direction.dst_part = Some(known(value)?),
                    "srckey" => direction.src_part = Some(key(value)?),
                    "dstkey" => direction.dst_part = Some(key(value)?),
                    "type" => direction.kind = known(value)?,
                    "code" => direction.code = known(value)?,
                    "id" => direction.id = known(value)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The entry, where nothing is missing.
    pub(super) fn entry(&self) -> Result<Entry, Broken> {
        let [original, reply] = &self.directions;
        let original = self.tuple(original)?;
        let reply = if self.begun > 1 { Some(self.tuple(reply)?) } else { None };
        if reply.is_some_and(|reply| reply.family != original.family) {
            return Err(Broken::Families);
        }
        Ok(Entry {
            netns: 0,
            tuple: original,
            reply,
            state: self.state,
            status: self.status | status::CONFIRMED,
            mark: self.mark,
            traffic: self.packets.zip(self.bytes).map(|(packets, bytes)| Traffic { packets, bytes }),
        })
    }

    fn tuple(&self, direction: &Direction) -> Result<Tuple, Broken> {
        let (src, dst) = direction.src.zip(direction.dst).ok_or(Broken::Addresses)?;
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(Broken::Families);
        }
        let parts = if is_icmp(self.proto) {
            (direction.id, u16::from_be_bytes([direction.kind, direction.code]))
        } else {
            let ports = direction.src_part.zip(direction.dst_part);
            if ports.is_none() && has_ports(self.proto) {
                return Err(Broken::Ports);
            }
            ports.unwrap_or_default()
        };
        Ok(Tuple { zone: self.zone, ..tuple(self.proto, src, dst, Some(parts)) })
    }
}

/// A number of digits alone: `from_str` takes a sign too.
pub(super) fn number<T: FromStr>(text: &str) -> Option<T> {
    text.starts_with(|first: char| first.is_ascii_digit()).then(|| text.parse().ok())?
}

fn known<T: FromStr>(text: &str) -> Result<T, Broken> {
    number(text).ok_or(Broken::Number)
}

fn add(sum: &mut Option<u64>, text: &str) -> Result<(), Broken> {
    *sum = Some(sum.unwrap_or(0).saturating_add(known(text)?));
    Ok(())
}

fn address(text: &str) -> Result<IpAddr, Broken> {
    text.parse().map_err(|_| Broken::Address)
}

/// A GRE key: hexadecimal behind `0x`.
fn key(text: &str) -> Result<u16, Broken> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u16::from_str_radix(digits, 16).map_err(|_| Broken::Number)
}

//! `table --json`: one object a namespace, or one for all of them, with the fields and their order as promised to users.

use std::net::IpAddr;

use serde::Serialize;

use super::Machine;
use super::json::{is_none, line, time};
use crate::model::table::{Census, Dimensions, Group, Holding, Nat, Offload, Space};
use crate::model::{family_name, protocol};

/// What was found, as one line. A saved list has no machine.
pub fn holding(holding: &Holding, machine: Option<&Machine>) -> String {
    let census = holding.census();
    let read = holding.spaces.iter().any(|space| space.error.is_none());
    let object = Object {
        time: time(holding.wall_ns),
        host: machine.map(|machine| machine.host.as_str()),
        kernel: machine.map(|machine| machine.kernel.as_str()),
        saved: holding.saved.as_ref().map(|saved| SavedObject {
            from: &saved.from,
            unread: UnreadObject {
                lines: saved.unread,
                first: saved.first.as_ref().map(|(line, _)| *line),
                why: saved.first.as_ref().map(|(_, why)| why.as_str()),
            },
            cut_line: saved.cut,
        }),
        place: match holding.spaces.as_slice() {
            [space] if holding.saved.is_some() => Place::saved(space, holding),
            [space] if !holding.is_joint() => Place::one(space),
            spaces => Place::all(spaces),
        },
        census: CensusObject::of(read.then_some(census)),
        groups: Groups(holding),
        more: MoreObject { groups: holding.ranked.more_groups, entries: holding.ranked.more_entries },
        ungrouped: holding.ranked.ungrouped,
        interrupted: holding.spaces.iter().any(|space| space.interrupted),
        namespaces_left_out: holding.namespaces_left_out,
    };
    line(&object)
}

#[derive(Serialize)]
struct Object<'a> {
    time: String,
    host: Option<&'a str>,
    kernel: Option<&'a str>,
    #[serde(flatten)]
    saved: Option<SavedObject<'a>>,
    #[serde(flatten)]
    place: Place<'a>,
    #[serde(flatten)]
    census: CensusObject,
    groups: Groups<'a>,
    /// Groups beyond `--count`.
    more: MoreObject,
    ungrouped: u64,
    interrupted: bool,
    #[serde(skip_serializing_if = "is_none")]
    namespaces_left_out: u64,
}

/// Of a saved list alone.
#[derive(Serialize)]
struct SavedObject<'a> {
    from: &'a str,
    unread: UnreadObject<'a>,
    /// The last line, where it ends in the middle.
    cut_line: Option<u64>,
}

/// Lines that are no entries, and the first of them.
#[derive(Serialize)]
struct UnreadObject<'a> {
    lines: u64,
    first: Option<u64>,
    why: Option<&'a str>,
}

/// `netns` is null where all namespaces are ranked together.
#[derive(Serialize)]
struct Place<'a> {
    netns: Option<u32>,
    name: Option<&'a str>,
    count: Option<u64>,
    max: Option<u64>,
    #[serde(flatten)]
    against: Option<Against>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<SpaceObject<'a>>,
}

#[derive(Serialize)]
struct SpaceObject<'a> {
    netns: u32,
    name: &'a str,
    count: Option<u64>,
    max: Option<u64>,
    #[serde(flatten)]
    against: Against,
    #[serde(flatten)]
    census: CensusObject,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// What the kernel lists against what it counts. Null where a filter left the kernel's list incomplete.
#[derive(Serialize)]
struct Against {
    listed: Option<u64>,
    counted: Option<u64>,
    held: Option<u64>,
}

impl Against {
    fn of(space: &Space) -> Self {
        Self { listed: space.listed(), counted: space.counted(), held: space.held() }
    }
}

/// Null where nothing could be read.
#[derive(Serialize)]
struct CensusObject {
    total: Option<u64>,
    evictable: Option<u64>,
    unreplied: Option<u64>,
}

impl CensusObject {
    fn of(census: Option<Census>) -> Self {
        Self {
            total: census.map(|census| census.total),
            evictable: census.map(|census| census.evictable),
            unreplied: census.map(|census| census.unreplied),
        }
    }
}

#[derive(Serialize)]
struct MoreObject {
    groups: usize,
    entries: u64,
}

/// Written one by one: there can be many.
struct Groups<'a>(&'a Holding);

impl Serialize for Groups<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let groups = self.0.ranked.groups.iter();
        serializer.collect_seq(groups.map(|group| GroupObject::new(group, self.0)))
    }
}

#[derive(Serialize)]
struct GroupObject<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    family: Option<&'static str>,
    proto: Option<String>,
    state: Option<&'static str>,
    assured: Option<bool>,
    key: Option<String>,
    #[serde(flatten)]
    parts: Parts,
    count: u64,
    /// Where the kernel accounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

/// The parts of a key.
#[derive(Default, Serialize)]
struct Parts {
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rsrc: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rsport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdst: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offload: Option<&'static str>,
}

impl<'a> Place<'a> {
    fn one(space: &'a Space) -> Self {
        Self {
            netns: Some(space.table.netns),
            name: Some(&space.table.name),
            count: space.table.count,
            max: space.table.max,
            against: Some(Against::of(space)),
            error: space.error.as_deref(),
            namespaces: Vec::new(),
        }
    }

    /// A saved list says neither namespace nor limit.
    fn saved(space: &'a Space, holding: &Holding) -> Self {
        let listed = holding.saved.as_ref().map(|saved| saved.listed);
        Self {
            netns: None,
            name: None,
            against: Some(Against { listed, counted: None, held: None }),
            ..Self::one(space)
        }
    }

    fn all(spaces: &'a [Space]) -> Self {
        let namespaces = spaces.iter().map(|space| SpaceObject {
            netns: space.table.netns,
            name: &space.table.name,
            count: space.table.count,
            max: space.table.max,
            against: Against::of(space),
            census: CensusObject::of(space.error.is_none().then_some(space.census)),
            error: space.error.as_deref(),
        });
        Self {
            netns: None,
            name: None,
            count: None,
            max: None,
            against: None,
            error: None,
            namespaces: namespaces.collect(),
        }
    }
}

impl<'a> GroupObject<'a> {
    fn new(group: &Group, holding: &'a Holding) -> Self {
        Self {
            netns: group.netns,
            name: group.netns.and_then(|netns| holding.name(netns)),
            family: group.family.map(family_name),
            proto: group.proto.map(|proto| protocol::name(proto).into_owned()),
            state: group.state.map(crate::model::state::State::name),
            assured: group.assured,
            key: key(group, holding.by),
            parts: Parts {
                src: group.src,
                sport: group.sport,
                dst: group.dst,
                dport: group.dport,
                rsrc: group.rsrc,
                rsport: group.rsport,
                rdst: group.rdst,
                rdport: group.rdport,
                nat: group.nat.map(Nat::name),
                zone: group.zone,
                mark: group.mark,
                offload: group.offload.map(Offload::name),
            },
            count: group.count,
            packets: group.traffic.map(|traffic| traffic.packets),
            bytes: group.traffic.map(|traffic| traffic.bytes),
        }
    }
}

/// What tells the group apart beside flow type and state, joined by commas; null where the group has none of it.
fn key(group: &Group, by: Dimensions) -> Option<String> {
    let parts: Vec<Option<String>> = by.keys().map(|by| group.key(by)).collect();
    let shown = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".into());
    parts.iter().any(Option::is_some).then(|| parts.iter().map(shown).collect::<Vec<_>>().join(","))
}

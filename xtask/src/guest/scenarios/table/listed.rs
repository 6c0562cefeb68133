//! What `conntrack -L` lists, and ctwatch's groups compared with it.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;

use super::super::super::space::{Space, checked};
use super::super::super::traffic::Family;
use super::super::super::trial::equal;

/// One line of `conntrack -L`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) netns: u64,
    pub(super) family: &'static str,
    pub(super) proto: u8,
    pub(super) state: String,
    pub(super) replied: bool,
    pub(super) assured: bool,
    /// The original direction's `src`, `sport`, `dst` and `dport`, those of the reply direction behind an `r`, and `nat`,
    /// `zone`, `mark` and `offload`.
    pub(super) ends: BTreeMap<String, String>,
    /// Packets and bytes of both directions, where the kernel accounts.
    pub(super) traffic: Option<[u64; 2]>,
}

impl Line {
    /// Whether it has this value there.
    pub(super) fn is(&self, end: &str, value: &str) -> bool {
        self.ends.get(end).is_some_and(|is| is == value)
    }

    /// Whether one of these two ends fits.
    pub(super) fn has(&self, ends: [&str; 2], fits: impl Fn(&str) -> bool) -> bool {
        ends.iter().any(|end| self.ends.get(*end).is_some_and(|value| fits(value)))
    }
}

/// All entries of a namespace, as conntrack lists them.
pub(super) fn listed(space: &Space) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for family in Family::BOTH {
        let text = checked(space.command("conntrack").args(["-L", "-f", family.name()]))?;
        for line in text.lines() {
            lines.push(parse(line, space.inode, family.name()).with_context(|| format!("read {line}"))?);
        }
    }
    Ok(lines)
}

/// Such as `tcp 6 431999 ESTABLISHED src=… dst=… sport=… dport=… src=… dst=… sport=… dport=… [ASSURED] mark=0 use=1`.
fn parse(line: &str, netns: u64, family: &'static str) -> anyhow::Result<Line> {
    let mut words = line.split_whitespace().skip(1);
    let proto = words.next().and_then(|word| word.parse().ok()).context("no protocol")?;
    let rest: Vec<&str> = words.skip(1).collect();
    let (replied, assured) = (!rest.contains(&"[UNREPLIED]"), rest.contains(&"[ASSURED]"));
    let tracked = rest.first().filter(|word| !word.contains('=') && !word.starts_with('['));
    let untracked = if assured {
        "assured"
    } else if replied {
        "replied"
    } else {
        "unreplied"
    };
    let mut ends: BTreeMap<String, String> = BTreeMap::new();
    let mut traffic = None;
    for (name, value) in rest.iter().filter_map(|word| word.split_once('=')) {
        match name {
            "src" | "sport" | "dst" | "dport" => {
                let again = ends.contains_key(name);
                ends.insert(if again { format!("r{name}") } else { name.to_owned() }, value.to_owned());
            }
            "zone" | "mark" => {
                ends.insert(name.to_owned(), value.to_owned());
            }
            "packets" | "bytes" => {
                let sums: &mut [u64; 2] = traffic.get_or_insert_default();
                sums[usize::from(name == "bytes")] += value.parse::<u64>()?;
            }
            _ => {}
        }
    }
    let differ = |one: &str, other: &str| ends.get(one) != ends.get(other);
    let nat = match (
        differ("src", "rdst") || differ("sport", "rdport"),
        differ("dst", "rsrc") || differ("dport", "rsport"),
    ) {
        (false, false) => "none",
        (true, false) => "snat",
        (false, true) => "dnat",
        (true, true) => "both",
    };
    let offload = if rest.contains(&"[HW_OFFLOAD]") {
        "hardware"
    } else if rest.contains(&"[OFFLOAD]") {
        "software"
    } else {
        "none"
    };
    for (name, value) in [("nat", nat), ("offload", offload)] {
        ends.insert(name.to_owned(), value.to_owned());
    }
    for name in ["zone", "mark"] {
        ends.entry(name.to_owned()).or_insert_with(|| "0".to_owned());
    }
    let state = tracked.map_or(untracked, |word| *word).to_owned();
    Ok(Line { netns, family, proto, state, replied, assured, ends, traffic })
}

/// A protocol as ctwatch names it.
fn proto_name(number: u8) -> String {
    let known = [(1, "icmp"), (6, "tcp"), (17, "udp"), (47, "gre"), (58, "icmpv6"), (132, "sctp")];
    known
        .iter()
        .find(|(proto, _)| *proto == number)
        .map_or(number.to_string(), |(_, name)| (*name).to_owned())
}

/// What the witness would call the group of an entry.
pub(super) fn group_of(line: &Line, by: &[&str]) -> String {
    let part = |by: &&str| match *by {
        "netns" => line.netns.to_string(),
        "proto" => format!("{} {}", line.family, proto_name(line.proto)),
        "state" => line.state.clone(),
        "assured" => line.assured.to_string(),
        end => line.ends.get(end).cloned().unwrap_or_else(|| "-".to_owned()),
    };
    by.iter().map(part).collect::<Vec<_>>().join(" ")
}

/// The same of a group that ctwatch printed.
fn group_named(group: &Value, by: &[&str]) -> String {
    let keys = by.iter().filter(|by| !matches!(**by, "netns" | "proto" | "state" | "assured")).count();
    let text = |field: &str| match &group[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let part = |by: &&str| match *by {
        "proto" => format!("{} {}", text("family"), text("proto")),
        "netns" | "state" | "assured" => text(by),
        // A key of one part stands for itself; one of several has them beside it.
        _ if keys == 1 => text("key"),
        end => text(end),
    };
    by.iter().map(part).collect::<Vec<_>>().join(" ")
}

/// Compares one object's totals and groups with the entries that the witness has.
pub(super) fn compare(object: &Value, lines: &[Line], by: &[&str]) -> anyhow::Result<()> {
    let what = by.join(",");
    let count = |fits: fn(&Line) -> bool| Value::from(lines.iter().filter(|line| fits(line)).count());
    equal(&format!("{what}: total"), &object["total"], &count(|_| true))?;
    equal(&format!("{what}: evictable"), &object["evictable"], &count(|line| !line.assured))?;
    equal(&format!("{what}: unreplied"), &object["unreplied"], &count(|line| !line.replied))?;
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    for line in lines {
        *counted.entry(group_of(line, by)).or_default() += 1;
    }
    let groups = object["groups"].as_array().context("no groups")?;
    let told: BTreeMap<String, u64> =
        groups.iter().map(|group| (group_named(group, by), group["count"].as_u64().unwrap_or(0))).collect();
    equal(&format!("{what}: groups"), told, counted)?;
    for (at, field) in ["packets", "bytes"].into_iter().enumerate() {
        let accounted: Vec<u64> =
            lines.iter().filter_map(|line| line.traffic).map(|traffic| traffic[at]).collect();
        let told: u64 = groups.iter().filter_map(|group| group[field].as_u64()).sum();
        equal(&format!("{what}: {field}"), told, accounted.iter().sum())?;
        let any = groups.iter().any(|group| !group[field].is_null());
        equal(&format!("{what}: {field} are told"), any, !accounted.is_empty())?;
    }
    let counts: Vec<u64> = groups.iter().filter_map(|group| group["count"].as_u64()).collect();
    anyhow::ensure!(counts.is_sorted_by(|a, b| a >= b), "{what}: not ranked: {counts:?}");
    equal(&format!("{what}: one group each"), counts.len(), groups.len())
}

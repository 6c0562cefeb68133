//! What a source hands over: everything counted since the source started, at one moment.

use std::collections::BTreeMap;

use ctwatch_ebpf::{Counters, Event, FlowType};

use super::ranking::{Losses, Top};

/// One reading of a source. All counts are totals since the source started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Wall clock at the reading, nanoseconds since the Unix epoch.
    pub wall_ns: i128,
    /// Monotonic clock at the reading, nanoseconds; only differences mean anything.
    pub mono_ns: u64,
    /// Counters of each flow type seen so far. A row once there stays, and its counts do not start again from 0.
    pub rows: BTreeMap<FlowType, Counters>,
    /// The table of each network namespace that could be read.
    pub tables: Vec<Table>,
    /// How many network namespaces were not looked at: their tables are missing above.
    pub namespaces_left_out: u64,
    /// What the source knows it missed.
    pub lost: u64,
    /// What watching cost, where the source can tell.
    pub cost: Option<Cost>,
    /// Processor time of our own process since it started, nanoseconds, where the source tells.
    pub own_ns: Option<u64>,
    /// Ports and addresses ranked, where the source ranks them.
    pub top: Option<Vec<Top>>,
    /// Losses since the sample before, where the source tells them singly. Bounded by the source.
    pub losses: Option<Losses>,
}

/// Occupation of one namespace's connection tracking table.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Table {
    /// Inode of the network namespace.
    pub netns: u32,
    /// `init`, the name `ip netns` knows, else a process in it and that one's cgroup, or the inode in decimal.
    pub name: String,
    /// `nf_conntrack_count` (it includes entries not yet confirmed).
    pub count: Option<u64>,
    /// The limit that new flows of this namespace meet.
    pub max: Option<u64>,
}

/// Work done by the programs since the source started: measured by the kernel in short samples, and estimated between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Nanoseconds spent in the programs, all CPUs together.
    pub run_ns: u64,
    /// How often a program ran.
    pub runs: u64,
}

/// Which source runs and what it cannot say; fixed for the life of the source.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SourceInfo {
    /// The mechanism.
    pub kind: SourceKind,
    /// What kept a better one from running; `None` where this is the best there is.
    pub why: Option<String>,
    /// Events this source cannot tell on this kernel, each with a note: shown as unknown, never as 0.
    pub unknown: BTreeMap<Event, String>,
}

impl SourceInfo {
    /// Events that this source tells for a namespace as a whole, on its row for any flow type: the kernel's statistics
    /// have no flow types.
    pub const fn by_namespace(&self) -> &'static [Event] {
        match self.kind {
            SourceKind::Netlink => {
                const STATISTICS: [Event; 5] = [
                    Event::ClashResolve,
                    Event::FailedChaintoolong,
                    Event::FailedOther,
                    Event::DropTableFull,
                    Event::InvalidOther,
                ];
                &STATISTICS
            }
            _ => &[],
        }
    }

    /// Whether it can tell how often this happened to flows of this type.
    pub fn tells(&self, flow: FlowType, event: Event) -> bool {
        !self.unknown.contains_key(&event) && (flow.family == 0 || !self.by_namespace().contains(&event))
    }
}

/// The mechanisms a source can rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// BPF trampolines.
    Fexit,
    /// Kprobes and kretprobes.
    Kprobe,
    /// Ctnetlink events and statistics.
    Netlink,
    /// A recording.
    Replay,
}

impl SourceKind {
    /// As flags and JSON spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Netlink => "netlink",
            Self::Replay => "replay",
        }
    }
}

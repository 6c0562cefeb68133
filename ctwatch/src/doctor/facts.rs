//! What doctor knows of a machine: plain data, captured once, kept as test data and sent with bug reports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ctwatch_ebpf::Event;
use serde::{Deserialize, Serialize};

use super::early::{DroppedPort, RefusedPort};
use super::kube_proxy::KubeProxy;
use super::latency::Latency;
use super::text::sum;
use super::way::Way;
use crate::kernel::facts::Presence;
use crate::model::SourceKind;

/// The version of the captured form.
pub const FORMAT: u32 = 1;

/// One machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FORMAT`] of the ctwatch that captured it.
    pub format: u32,
    /// `uname -r`.
    pub release: String,
    /// Seconds since boot.
    pub uptime_s: u64,
    /// CPUs online.
    pub cpus: u32,
    /// Memory of the machine in bytes.
    pub memory: u64,
    /// Whether connection tracking is there, and how.
    pub conntrack: Presence,
    /// Whether doctor ran with the rights to see everything.
    pub root: bool,
    /// Namespaces, the one doctor ran in first.
    pub namespaces: Vec<Namespace>,
    /// How many more there were than ctwatch looks at.
    #[serde(default, skip_serializing_if = "is_none")]
    pub namespaces_left_out: u64,
    /// Loaded modules that have to do with packet filtering.
    pub modules: Vec<Module>,
    /// Programs running that are known to use connection tracking.
    pub programs: Vec<Program>,
    /// Lines of modprobe's configuration that name nf_conntrack.
    pub modprobe: Vec<String>,
    /// Settings of connection tracking in files of sysctls, in the order in which they are applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configured: Vec<Configured>,
    /// How many settings, and files of such, were not kept: those that are applied first.
    #[serde(default, skip_serializing_if = "is_none")]
    pub configured_left_out: u64,
    /// What the kube-proxy of this machine was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kube_proxy: Option<KubeProxy>,
    /// Whether firewalld is told to unload modules when it stops.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub firewalld_unloads: bool,
    /// Whether a file has the module loaded before sysctls are applied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loaded_early: bool,
    /// The slab of entries, where it may be read.
    pub slab: Option<Slab>,
    /// What the kernel logged about full tables; `None` where the log may not be read.
    pub log: Option<KernelLog>,
    /// How long ago the first namespace's sysctls were written, in milliseconds, by the file's name; those that nobody
    /// was seen to write are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub written_ms: BTreeMap<String, u64>,
    /// Losses longer ago than so many milliseconds are known to the user (`--since`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// What there is to act with.
    pub tools: Tools,
    /// The live sample.
    pub live: Live,
    /// What timing told, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// One network namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its inode.
    pub netns: u32,
    /// `init`, a name known to `ip netns`, or the inode.
    pub name: String,
    /// Whether doctor ran in it.
    pub own: bool,
    /// How a command gets there.
    pub enter: Way,
    /// Entries at the start of the sample (`nf_conntrack_count`).
    pub count: Option<u64>,
    /// Entries at its end.
    pub count_after: Option<u64>,
    /// Expectations that helpers wait for; `None` where the kernel does not list them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expectations: Option<u64>,
    /// Whether the limit and the buckets may be set from here: only from the first namespace.
    pub limit_writable: bool,
    /// Every number under `/proc/sys/net/netfilter`, by the file's name.
    pub sysctls: BTreeMap<String, u64>,
    /// `/proc/net/stat/nf_conntrack` summed over CPUs, at the start; empty where the kernel has no such file.
    pub stats: BTreeMap<String, u64>,
    /// The same at the end.
    pub stats_after: BTreeMap<String, u64>,
    /// Whether IPVS hands its connections to connection tracking (`net.ipv4.vs.conntrack`).
    pub ipvs_conntrack: bool,
    /// Which rules of IP see bridged packets (`iptables`, `ip6tables` of `net.bridge.bridge-nf-call-*`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridged: Vec<String>,
    /// Rules that have to do with tracking.
    pub nft: Listing,
    /// The same of the older interface.
    pub iptables: Listing,
    /// The same for IPv6.
    pub ip6tables: Listing,
    /// What the table holds.
    pub table: TableView,
    /// Where packets wait, most first: each may hold an entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
    /// Whether packets for others pass through; `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwards: Option<bool>,
    /// The first and last port from which the kernel opens flows by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_ports: Option<(u16, u16)>,
}

impl Namespace {
    /// A sysctl by its short name: `max`, `buckets`, `udp_timeout`.
    pub fn sysctl(&self, name: &str) -> Option<u64> {
        self.sysctls.get(&format!("nf_conntrack_{name}")).copied()
    }

    /// The limit; 0, which means none, is told as `None`.
    pub fn max(&self) -> Option<u64> {
        self.sysctl("max").filter(|max| *max > 0)
    }

    /// The higher of both counts.
    pub fn peak(&self) -> Option<u64> {
        self.count.max(self.count_after)
    }

    /// Entries as a share of the limit.
    pub fn fill(&self) -> Option<f64> {
        Some(self.peak()? as f64 / self.max()? as f64)
    }

    /// A counter of the kernel's statistics, where it is not 0.
    pub fn since_boot(&self, counter: &str) -> Option<u64> {
        self.stats.get(counter).copied().filter(|count| *count > 0)
    }

    /// How much a counter of the kernel grew during the sample.
    pub fn grown(&self, counter: &str) -> Option<u64> {
        self.stats_after.get(counter)?.checked_sub(*self.stats.get(counter)?)
    }

    /// All listings.
    pub fn listings(&self) -> [&Listing; 3] {
        [&self.nft, &self.iptables, &self.ip6tables]
    }

    /// Whether an entry may be under a timeout that a rule gave it.
    pub fn has_policies(&self) -> bool {
        self.listings().into_iter().any(|listing| listing.policies)
    }

    /// All rules that make tracking happen.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.listings().into_iter().flat_map(|listing| &listing.rules)
    }
}

/// Rules as one tool lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Whether they could be listed.
    pub state: ListingState,
    /// Those that have to do with tracking, as far as there was room.
    pub rules: Vec<Rule>,
    /// How many more of these were counted only.
    #[serde(default, skip_serializing_if = "is_none")]
    pub left_out: u64,
    /// Whether a bound on time or size ended the listing: `state` says which.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Whether some chain drops what no rule accepts.
    pub drops_by_default: bool,
    /// Chains with a rule that drops or rejects whatever comes to it, as far as there was room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drops_all: Vec<String>,
    /// Ports that an input chain drops, as far as there was room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<DroppedPort>,
    /// How many more of these were counted only.
    #[serde(default, skip_serializing_if = "is_none")]
    pub dropped_left_out: u64,
    /// Names and texts that the tool would not read back as it prints them: rules that hold such cannot be saved and
    /// loaded again.
    #[serde(default, skip_serializing_if = "is_none")]
    pub unquotable: u64,
    /// Whether rules give entries timeouts of their own (`ct timeout`, `--timeout`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub policies: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_none(count: &u64) -> bool {
    *count == 0
}

/// A sysctl that a file sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// Its name under `/proc/sys/net/netfilter`.
    pub sysctl: String,
    /// The value.
    pub value: u64,
    /// The file's path.
    pub file: String,
    /// How long ago the file was changed, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_s: Option<u64>,
}

/// Whether rules could be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListingState {
    /// The kernel part is not loaded, so there is none; nothing was asked.
    #[default]
    NotLoaded,
    /// All were listed.
    Listed,
    /// They could not be listed: why.
    Unreadable(String),
}

/// Something that keeps tracking on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What it is.
    pub kind: RuleKind,
    /// nft's family; for the older interface `ip` or `ip6`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its chain, or its own name where it is an object.
    pub chain: String,
    /// nft's handle.
    pub handle: Option<u64>,
    /// Its place in its chain, counted from 1, where it has no handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// As the tool writes it.
    pub text: String,
    /// What in it needs tracking.
    pub needs: Vec<String>,
}

/// Kinds of things in a ruleset that keep tracking on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// A rule.
    Rule,
    /// A chain of type nat.
    NatChain,
    /// A flowtable.
    Flowtable,
    /// A named object: `ct helper`, `ct timeout`, `ct expectation`, `synproxy`.
    Object(String),
    /// A rule that switches tracking off for something.
    Notrack,
}

/// A loaded module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its reference count; modules that use it are part of it.
    pub refs: u64,
    /// Modules that use it.
    pub used_by: Vec<String>,
}

/// A running program known to use connection tracking.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Why it matters.
    pub uses: String,
}

/// Figures of the slab that holds entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slab {
    /// Entries in use, all namespaces together.
    pub active: u64,
    /// Entries that have memory.
    pub objects: u64,
    /// Bytes of one.
    pub size: u64,
}

/// What the kernel logged about full tables; rate-limited by the kernel, so only whether and when mean anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLog {
    /// Lines with `table full, dropping packet`.
    pub lines: u64,
    /// How long ago the last one was, in seconds.
    pub last_s: Option<u64>,
    /// Whether the log still reaches back to the boot.
    pub whole: bool,
    /// How long ago the last one was, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<u64>,
    /// The same by namespace, by the inode that the kernel logs since 6.18, for all but the first (`__nf_conntrack_alloc`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_netns: BTreeMap<u32, u64>,
    /// The same of lines that name none: the first namespace's since 6.18, of any before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unnamed_ms: Option<u64>,
    /// How long ago the last `expectation table full` was, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expectations_ms: Option<u64>,
}

impl KernelLog {
    /// How long ago the last line about a full table was, in milliseconds; older captures have it in seconds alone.
    pub fn last_ago_ms(&self) -> Option<u64> {
        self.last_ms.or(self.last_s.map(|s| s.saturating_mul(1000)))
    }

    /// How long ago the last such line was that may be of a namespace, the first one or another.
    pub fn ago_ms_of(&self, netns: u32, first: bool) -> Option<u64> {
        match self.by_netns.get(&netns) {
            Some(ago) => Some(*ago),
            None if self.by_netns.is_empty() => self.last_ago_ms(),
            // A kernel that names namespaces leaves out the first one alone.
            None => self.unnamed_ms.filter(|_| first),
        }
    }
}

/// What is installed and what holds the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "one answer for each tool")]
pub struct Tools {
    /// `nft`.
    pub nft: bool,
    /// `iptables`.
    pub iptables: bool,
    /// `conntrack`.
    pub conntrack: bool,
    /// `systemctl`, and systemd runs.
    pub systemd: bool,
}

/// What a table holds; empty with the reason where nobody could look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableView {
    /// Why it could not be read; `None` where it was, or where there was nothing to read.
    pub unseen: Option<String>,
    /// Where it was read.
    pub from: String,
    /// Entries read.
    pub total: u64,
    /// The kernel's count as they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<u64>,
    /// How many were counted and not read, twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// By protocol and state.
    pub groups: Vec<Group>,
    /// By protocol and destination port of the original direction, largest first, the first few.
    pub ports: Vec<Port>,
    /// Sources that rules gave, by destination: those that use the largest part of their ports first, the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub translated: Vec<Translated>,
    /// Flows that are sent where no rule leads, or where no machine answers: most without an answer first, the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<Stale>,
}

/// Flows whose destination was changed to one that nobody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    /// L4 protocol number.
    pub proto: u8,
    /// The destination's address as clients have it …
    pub dst: IpAddr,
    /// … and port.
    pub dport: u16,
    /// The address to which the entries send it …
    pub to: IpAddr,
    /// … and port.
    pub port: u16,
    /// How many entries.
    pub count: u64,
    /// Those that never got an answer.
    pub unanswered: u64,
    /// Whether a rule leads there, or may.
    pub ruled: bool,
    /// Whether it is a neighbour that the kernel asked for its address in vain.
    pub silent: bool,
}

/// Flows that source NAT gave one address, to one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translated {
    /// L4 protocol number.
    pub proto: u8,
    /// The address that they were given.
    pub src: IpAddr,
    /// First and last port that a rule may give.
    pub ports: (u16, u16),
    /// The destination's address …
    pub dst: IpAddr,
    /// … and port.
    pub dport: u16,
    /// How many of the ports are in use.
    pub used: u64,
}

/// Packets that wait somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// `nfqueue 7`, or the kind of a queueing discipline.
    pub queue: String,
    /// The interface of a queueing discipline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How many.
    pub packets: u64,
}

/// Entries of one protocol and state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// L4 protocol number.
    pub proto: u8,
    /// The tracker's state (TCP, SCTP, DCCP), else `unreplied`, `replied` or `assured`.
    pub state: String,
    /// How many.
    pub count: u64,
    /// Those that never got an answer.
    pub unreplied: u64,
    /// Those that `early_drop` may not evict.
    pub assured: u64,
    /// How many still have less than so many seconds to live.
    pub left: BTreeMap<u64, u64>,
}

/// Entries of one protocol and destination port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// L4 protocol number.
    pub proto: u8,
    /// Port in the original direction.
    pub port: u16,
    /// How many.
    pub count: u64,
    /// Those that never got an answer.
    pub unreplied: u64,
}

/// What fills a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filler {
    /// L4 protocol number.
    pub proto: u8,
    /// Port in the original direction; `None` where it is all of the protocol.
    pub port: Option<u16>,
    /// How many.
    pub count: u64,
    /// Those that never got an answer.
    pub unreplied: u64,
}

impl From<&Port> for Filler {
    fn from(port: &Port) -> Self {
        Self { proto: port.proto, port: Some(port.port), count: port.count, unreplied: port.unreplied }
    }
}

/// The live sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// How long it was, in seconds; 0 where there was nothing to watch.
    pub seconds: f64,
    /// Seconds between the two readings of counts and statistics around it.
    pub around_s: f64,
    /// The source that counted.
    pub source: Option<SourceKind>,
    /// What kept a better source from running, or any.
    pub why: Option<String>,
    /// What the source cannot tell here.
    pub unknown: BTreeMap<Event, String>,
    /// Counts by flow type.
    pub flows: Vec<LiveFlow>,
    /// Where refused flows wanted to go, most first, the first few; empty where the source cannot tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedPort>,
    /// Whether the source knows where refused flows wanted to go, also where none was refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ranks_ports: bool,
    /// Refused flows that went to further ports, by namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused_left_out: BTreeMap<u32, u64>,
    /// What the source knows it missed.
    pub lost: u64,
    /// Nanoseconds that the source's programs took.
    pub run_ns: Option<u64>,
    /// How often they ran.
    pub runs: Option<u64>,
}

/// Counts of one flow type in the sample.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveFlow {
    /// Inode of the namespace.
    pub netns: u32,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// L4 protocol number.
    pub proto: u8,
    /// Counts that are not 0.
    pub counts: BTreeMap<Event, u64>,
}

impl Live {
    /// The sum of an event over a namespace; `None` where the source cannot tell it or none ran.
    pub fn sum(&self, netns: u32, events: &[Event]) -> Option<u64> {
        if self.source.is_none() || events.iter().all(|event| self.unknown.contains_key(event)) {
            return None;
        }
        let flows = self.flows.iter().filter(|flow| flow.netns == netns);
        Some(sum(flows.flat_map(|flow| events.iter().filter_map(|event| flow.counts.get(event).copied()))))
    }

    /// A count as events per second: over the sample where a source counted, else over the readings around it.
    pub fn per_second(&self, count: u64) -> f64 {
        let seconds = if self.source.is_some() { self.seconds } else { self.around_s };
        if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
    }
}

//! The one table of hooks: each program, the kernel function that it watches, and what it serves.
//!
//! Plans are computed from it. A test compares it with the sources of the programs.

use std::{collections::BTreeSet, slice::from_ref};

use ctwatch_ebpf::Event;
use serde::Serialize;

use super::{arch, kallsyms::Symbols};

/// A kernel function that programs watch.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its names: the newest first, then what older kernels call it.
    pub names: &'static [&'static str],
    /// How many arguments it has under the newest name.
    pub arguments: usize,
    /// Its parts (`.part.N`) are hooked too: they keep the registers of the whole; other suffixes may not.
    parts: bool,
    /// It runs with softirqs off (5.10 to 7.3), so that no program nests in it.
    pub softirqs_off: bool,
}

const fn function(names: &'static [&'static str], arguments: usize) -> Function {
    Function { names, arguments, parts: false, softirqs_off: false }
}

pub const ALLOC: Function = function(&["__nf_conntrack_alloc"], 6);
const CHECK_INSERT: Function = function(&["nf_conntrack_hash_check_insert"], 1);
pub(super) const CONFIRM: Function = function(&["__nf_conntrack_confirm"], 1);
const DELETE: Function = Function { parts: true, ..function(&["nf_ct_delete"], 3) };
pub(super) const HASH_INSERT: Function =
    Function { softirqs_off: true, ..function(&["__nf_conntrack_hash_insert"], 3) };
pub(super) const RATELIMIT: Function = function(&["net_ratelimit"], 0);
pub(super) const REMOVAL: Function =
    Function { softirqs_off: true, ..function(&["__nf_ct_delete_from_lists", "nf_ct_delete_from_lists"], 1) };
const RESOLVE_CLASH: Function = function(&["nf_ct_resolve_clash"], 3);
pub(super) const WALK: Function = function(&["nf_ct_iterate_cleanup_net"], 2);
pub(super) const FLOOR: Function = function(&[arch::GETPPID], 1);
const IN: Function = function(&["nf_conntrack_in"], 2);
const LOG_INVALID: Function = function(&["nf_l4proto_log_invalid"], 5);
const LOG_INVALID_OF_FLOW: Function = function(&["nf_ct_l4proto_log_invalid"], 5);
pub(super) const RECEIVE: Function = function(&["net_rx_action"], 0);

/// Ways of attaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// At the function's entry, by a BPF trampoline.
    Fentry,
    /// At its return, by a BPF trampoline.
    Fexit,
    /// At the function's entry.
    Kprobe,
    /// At its return.
    Kretprobe,
}

use Method::{Fentry, Fexit, Kprobe, Kretprobe};

impl Method {
    /// Whether it needs BPF trampolines.
    pub const fn is_trampoline(self) -> bool {
        matches!(self, Fentry | Fexit)
    }
}

/// When a hook is attached. Each hook costs every new flow some hundred instructions, so those that have nothing to
/// report most of the time wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// From the start.
    Always,
    /// Once a table is near its limit: none is refused before.
    NearFull,
    /// Once the kernel's own counters have failures that no other hook has seen.
    Unexplained,
    /// While they have invalid packets that no other hook has seen: it costs each packet.
    Invalid,
    /// Once the stack or registers held something else than the kernel's machine code seemed to say.
    Misread,
}

/// What a program is part of. Programs with one purpose are attached together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Count refused new flows.
    Refusals,
    /// Count removals.
    Removals,
    /// Find a removal's cause where the removal itself can show who asked for it: the port id of a walk is noted.
    Walks,
    /// Find a removal's cause elsewhere: who calls `nf_ct_delete`.
    Callers,
    /// Count inserts that ctnetlink makes.
    NetlinkInserts,
    /// Count packets that raced for one flow.
    Clashes,
    /// Count packets that failed to enter; inserts too, where the compiler inlined the insert function.
    Confirmations,
    /// Count inserts.
    Inserts,
    /// Count invalid packets by the kernel's reason. By kprobes only: the functions have variable arguments.
    Reasons,
    /// Count those for which it gives no reason.
    Unsaid,
    /// Complete single events: attached only while those are asked for.
    Details,
    /// Time tracking.
    TimeTracking,
    /// Time next to nothing: what the timing itself takes.
    TimeFloor,
    /// Time the receive path.
    TimeReceive,
}

impl Purpose {
    /// Whether programs with it count. The others are attached on request only.
    pub const fn counts(self) -> bool {
        !matches!(self, Self::Details | Self::TimeTracking | Self::TimeFloor | Self::TimeReceive)
    }

    /// The functions that its kprobes need, the most important first, and the events that are unknown without one.
    pub const fn needs(self) -> (&'static [Function], &'static [Event]) {
        match self {
            Self::Refusals => (&[ALLOC, RATELIMIT], DROPS),
            Self::Removals | Self::Walks | Self::Callers => (&[REMOVAL, DELETE], DELETES),
            Self::NetlinkInserts => (&[CHECK_INSERT], &[Event::InsertNetlink]),
            Self::Clashes => (&[CONFIRM, RESOLVE_CLASH], CLASHES),
            Self::Confirmations => (&[CONFIRM], CONFIRMATIONS),
            // Without the function, confirmation counts inserts.
            Self::Inserts => (&[HASH_INSERT], &[]),
            Self::Reasons => (&[LOG_INVALID_OF_FLOW, LOG_INVALID], REASONS),
            Self::Unsaid => (&[IN], UNSAID),
            Self::Details | Self::TimeTracking | Self::TimeFloor | Self::TimeReceive => (&[], &[]),
        }
    }

    /// The offsets that its programs read packets by.
    pub const fn offsets(self) -> &'static [&'static str] {
        match self {
            Self::Reasons | Self::Unsaid => &["SKB_HEAD", "SKB_TAIL", "SKB_NETWORK", "STATE_PF", "STATE_NET"],
            _ => &[],
        }
    }

    /// Whether its programs are kprobes beside trampolines too.
    pub const fn has_no_trampoline(self) -> bool {
        matches!(self, Self::Reasons | Self::Unsaid)
    }
}

/// A program of the eBPF object.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub program: &'static str,
    /// How it is attached.
    pub method: Method,
    /// To which function.
    pub function: &'static Function,
    /// What it is part of.
    pub purpose: Purpose,
    /// When it is attached, unless the kernel at hand allows a later time or needs an earlier one.
    pub when: When,
    /// Events that it counts or completes.
    pub serves: &'static [Event],
}

const fn row(
    program: &'static str,
    method: Method,
    function: &'static Function,
    purpose: Purpose,
    when: When,
    serves: &'static [Event],
) -> Row {
    Row { program, method, function, purpose, when, serves }
}

const fn timed(program: &'static str, method: Method, function: &'static Function, purpose: Purpose) -> Row {
    row(program, method, function, purpose, Always, &[])
}

use Purpose::{
    Callers, Clashes, Confirmations, Details, Inserts, NetlinkInserts, Reasons, Refusals, Removals,
    TimeFloor, TimeReceive, TimeTracking, Unsaid, Walks,
};
use When::{Always, Invalid, NearFull, Unexplained};

const DROPS: &[Event] = &Event::DROPS;
/// An eviction names its newcomer, which `__nf_conntrack_alloc` knows.
const ALLOCATIONS: &[Event] = &[Event::DropTableFull, Event::DropNoMemory, Event::DeleteEarlyDrop];
const DELETES: &[Event] = &Event::DELETES;
const CLASHES: &[Event] = &[Event::FailedClash, Event::ClashResolve, Event::ClashReplyOnly];
const CONFIRMATIONS: &[Event] = &[
    Event::FailedClash,
    Event::FailedChaintoolong,
    Event::FailedDying,
    Event::FailedOther,
    Event::ClashResolve,
    Event::ClashReplyOnly,
];
const INVALID: &[Event] = &Event::INVALID;
/// Without the kernel's reason such a packet counts as `InvalidOther`.
const REASONS: &[Event] =
    &[Event::InvalidOutOfWindow, Event::InvalidBadState, Event::InvalidBadChecksum, Event::InvalidMalformed];
const UNSAID: &[Event] = &[Event::InvalidUnrelated, Event::InvalidOther];
/// One may be done inside the other; the programs see which.
const INSERTS: &[Event] = &[Event::Insert, Event::InsertNetlink];

/// Every program: kprobes, then trampolines, each in the order of attaching.
///
/// A kretprobe comes before the kprobe of its function, so that what runs in between cannot look like a return that was
/// missed. `ratelimit_bpf` comes before `alloc_bpf`: a refusal in between would look like `no_memory`.
pub static ROWS: [Row; 44] = [
    row("alloc_ret", Kretprobe, &ALLOC, Refusals, Unexplained, &[Event::DropNoMemory]),
    row("alloc", Kprobe, &ALLOC, Refusals, NearFull, ALLOCATIONS),
    row("ratelimit", Kprobe, &RATELIMIT, Refusals, Always, DROPS),
    row("iterate_ret", Kretprobe, &WALK, Walks, Always, DELETES),
    row("iterate", Kprobe, &WALK, Walks, Always, DELETES),
    row("delete", Kprobe, &DELETE, Callers, Always, DELETES),
    row("delete_from_lists", Kprobe, &REMOVAL, Removals, Always, DELETES),
    row("check_insert_ret", Kretprobe, &CHECK_INSERT, NetlinkInserts, Always, INSERTS),
    row("check_insert", Kprobe, &CHECK_INSERT, NetlinkInserts, Always, INSERTS),
    row("resolve_clash_ret", Kretprobe, &RESOLVE_CLASH, Clashes, Always, CONFIRMATIONS),
    row("resolve_clash", Kprobe, &RESOLVE_CLASH, Clashes, Always, CONFIRMATIONS),
    row("confirm_ret", Kretprobe, &CONFIRM, Confirmations, Unexplained, CONFIRMATIONS),
    row("confirm", Kprobe, &CONFIRM, Confirmations, Unexplained, CONFIRMATIONS),
    row("hash_insert", Kprobe, &HASH_INSERT, Inserts, Always, from_ref(&Event::Insert)),
    row("ct_log_invalid", Kprobe, &LOG_INVALID_OF_FLOW, Reasons, Always, INVALID),
    row("log_invalid", Kprobe, &LOG_INVALID, Reasons, Always, INVALID),
    row("track_ret", Kretprobe, &IN, Unsaid, Invalid, INVALID),
    row("track", Kprobe, &IN, Unsaid, Invalid, INVALID),
    timed("latency_in_ret", Kretprobe, &IN, TimeTracking),
    timed("latency_in", Kprobe, &IN, TimeTracking),
    timed("latency_confirm_ret", Kretprobe, &CONFIRM, TimeTracking),
    timed("latency_confirm", Kprobe, &CONFIRM, TimeTracking),
    timed("latency_floor_ret", Kretprobe, &FLOOR, TimeFloor),
    timed("latency_floor", Kprobe, &FLOOR, TimeFloor),
    timed("latency_receive_ret", Kretprobe, &RECEIVE, TimeReceive),
    timed("latency_receive", Kprobe, &RECEIVE, TimeReceive),
    row("ratelimit_bpf", Fentry, &RATELIMIT, Refusals, Always, DROPS),
    row("alloc_bpf", Fexit, &ALLOC, Refusals, NearFull, ALLOCATIONS),
    row("check_insert_bpf", Fexit, &CHECK_INSERT, NetlinkInserts, Always, INSERTS),
    row("resolve_clash_bpf", Fexit, &RESOLVE_CLASH, Clashes, Always, CONFIRMATIONS),
    row("confirm_bpf", Fexit, &CONFIRM, Confirmations, Unexplained, CONFIRMATIONS),
    row("delete_bpf", Fexit, &DELETE, Callers, Always, DELETES),
    row("hash_insert_bpf", Fentry, &HASH_INSERT, Inserts, Always, from_ref(&Event::Insert)),
    row("delete_from_lists_bpf", Fentry, &REMOVAL, Walks, Always, DELETES),
    row("alloc_enter_bpf", Fentry, &ALLOC, Details, NearFull, &[Event::DeleteEarlyDrop]),
    row("check_insert_enter_bpf", Fentry, &CHECK_INSERT, Details, Always, &[Event::Insert]),
    timed("latency_in_enter_bpf", Fentry, &IN, TimeTracking),
    timed("latency_in_bpf", Fexit, &IN, TimeTracking),
    timed("latency_confirm_enter_bpf", Fentry, &CONFIRM, TimeTracking),
    timed("latency_confirm_bpf", Fexit, &CONFIRM, TimeTracking),
    timed("latency_floor_enter_bpf", Fentry, &FLOOR, TimeFloor),
    timed("latency_floor_bpf", Fexit, &FLOOR, TimeFloor),
    timed("latency_receive_enter_bpf", Fentry, &RECEIVE, TimeReceive),
    timed("latency_receive_bpf", Fexit, &RECEIVE, TimeReceive),
];

impl Function {
    /// The newest name.
    pub const fn name(&self) -> &'static str {
        self.names[0]
    }

    /// The symbols that a kprobe is attached to on this kernel; none where it cannot be probed.
    pub fn symbols<'a>(&self, symbols: &'a Symbols) -> Vec<&'a str> {
        let of = |name: &&str| -> Vec<&'a str> {
            let fits = |symbol: &&str| {
                let suffix = &symbol[name.len()..];
                suffix.is_empty() || self.parts && suffix.starts_with(".part.")
            };
            symbols.names(name).filter(fits).collect()
        };
        self.names.iter().map(of).find(|found| !found.is_empty()).unwrap_or_default()
    }

    /// Whether a kprobe can be attached to it.
    pub fn is_in(&self, symbols: &Symbols) -> bool {
        !self.symbols(symbols).is_empty()
    }
}

/// Every name of every function that is watched.
pub fn functions() -> BTreeSet<&'static str> {
    ROWS.iter().flat_map(|row| row.function.names).copied().collect()
}

/// The row of a program.
pub fn find(program: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.program == program)
}

impl Row {
    /// Whether all that it reports are losses that the kernel counts as well, where it is attached at this time. There
    /// misses show in the kernel's counters; those of a hook that waits for a misread stack show at the removal.
    pub fn failures_only(&self, when: When) -> bool {
        when != Always || *self.function == RATELIMIT
    }
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;

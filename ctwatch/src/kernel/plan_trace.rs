//! The plan for single events: the hooks that those asked for need, and no other.

use ctwatch_ebpf::Event;

use super::facts::Facts;
use super::plan::{Hook, Method, Plan};
use crate::model::SourceKind;

use Event::{
    ClashReplyOnly, ClashResolve, DeleteCleanup, DeleteClosed, DeleteEarlyDrop, DeleteNetlink, DeleteOther,
    DeletePressure, DeleteTimeout, DropNoMemory, DropTableFull, FailedChaintoolong, FailedClash, FailedDying,
    FailedOther, Insert, InsertNetlink,
};

const DROPS: &[Event] = &[DropTableFull, DropNoMemory];
/// An eviction names its newcomer, which `__nf_conntrack_alloc` knows.
const ALLOCATIONS: &[Event] = &[DropTableFull, DropNoMemory, DeleteEarlyDrop];
const DELETES: &[Event] = &[
    DeleteTimeout,
    DeleteClosed,
    DeleteEarlyDrop,
    DeletePressure,
    DeleteNetlink,
    DeleteCleanup,
    DeleteOther,
];
const CONFIRMATIONS: &[Event] =
    &[FailedClash, FailedChaintoolong, FailedDying, FailedOther, ClashResolve, ClashReplyOnly];
/// One may be done inside the other, and is told apart by that.
const INSERTS: &[Event] = &[Insert, InsertNetlink];

/// What each program helps to tell. One that is not listed is always attached.
const SERVES: [(&str, &[Event]); 15] = [
    ("alloc", ALLOCATIONS),
    ("alloc_ret", ALLOCATIONS),
    ("alloc_bpf", ALLOCATIONS),
    ("early_drop_ret", DROPS),
    ("early_drop_bpf", DROPS),
    ("delete", DELETES),
    ("delete_bpf", DELETES),
    ("delete_from_lists", DELETES),
    ("resolve_clash_bpf", CONFIRMATIONS),
    ("confirm_bpf", CONFIRMATIONS),
    ("check_insert", INSERTS),
    ("check_insert_ret", INSERTS),
    ("check_insert_bpf", INSERTS),
    ("hash_insert", &[Insert]),
    ("hash_insert_bpf", &[Insert]),
];

impl Plan {
    /// The part of this plan that the events need (one bit each), and what single events need beyond it.
    #[must_use]
    pub fn tracing(mut self, facts: &Facts, events: u32) -> Self {
        let asked = |some: &[Event]| some.iter().any(|event| events >> *event as u32 & 1 != 0);
        // Where the insert function was inlined, inserts are seen at confirmation.
        let insert_at_confirm = !self.subtract_netlink;
        self.hooks.retain(|hook| match hook.program {
            "confirm" | "confirm_ret" => asked(CONFIRMATIONS) || insert_at_confirm && asked(&[Insert]),
            // It keeps clashes, of which confirmation also returns 1, from looking like inserts.
            "resolve_clash_ret" => asked(CONFIRMATIONS) || insert_at_confirm && asked(&[Insert]),
            program => SERVES.iter().find(|(name, _)| *name == program).is_none_or(|(_, some)| asked(some)),
        });
        self.unknown.retain(|event, _| asked(&[*event]));
        if self.kind == SourceKind::Fexit {
            let mut enter = |program, symbol: &str| {
                if facts.symbols.has(symbol) {
                    let hook = Hook { program, symbol: symbol.to_owned(), method: Method::Fentry };
                    self.hooks.push(hook);
                }
            };
            if asked(&[DeleteEarlyDrop]) {
                enter("alloc_enter_bpf", "__nf_conntrack_alloc");
            }
            if asked(&[Insert]) {
                enter("check_insert_enter_bpf", "nf_conntrack_hash_check_insert");
            }
        }
        self
    }
}

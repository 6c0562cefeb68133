//! The plan for kprobes: what can be told with the symbols that this kernel has.

use std::collections::BTreeMap;

use ctwatch_ebpf::Event;

use super::facts::Facts;
use super::obstacles::{Refusal, obstacles};
use super::plan::{Hook, Method, Plan, When, one_hook_deletes};
use crate::model::SourceKind;

/// The plan for kprobes.
pub fn kprobes(facts: &Facts) -> Result<Plan, Refusal> {
    let obstacles = obstacles(SourceKind::Kprobe, facts);
    if !obstacles.is_empty() {
        return Err(Refusal { kind: SourceKind::Kprobe, obstacles });
    }
    let mut draft = Draft { facts, hooks: Vec::new(), unknown: BTreeMap::new() };
    draft.refusals();
    draft.deletes();
    draft.netlink_inserts();
    let insert_at_confirm = !facts.symbols.has("__nf_conntrack_hash_insert");
    draft.confirmation(insert_at_confirm);
    if !insert_at_confirm {
        draft.hook("hash_insert", "__nf_conntrack_hash_insert", Method::Kprobe);
    }
    Ok(Plan {
        kind: SourceKind::Kprobe,
        why: None,
        hooks: draft.hooks,
        unknown: draft.unknown,
        subtract_netlink: !insert_at_confirm,
    })
}

/// The hooks that note a walk's port id for the one hook on removals.
pub(super) fn walks() -> [Hook; 2] {
    let walk = "nf_ct_iterate_cleanup_net";
    [("iterate_ret", Method::Kretprobe), ("iterate", Method::Kprobe)]
        .map(|(program, method)| Hook::always(program, walk, method))
}

struct Draft<'a> {
    facts: &'a Facts,
    hooks: Vec<Hook>,
    unknown: BTreeMap<Event, String>,
}

impl Draft<'_> {
    fn hook(&mut self, program: &'static str, symbol: &str, method: Method) {
        self.hook_when(When::Always, program, symbol, method);
    }

    fn hook_when(&mut self, when: When, program: &'static str, symbol: &str, method: Method) {
        self.hooks.push(Hook { when, ..Hook::always(program, symbol, method) });
    }

    fn unknown(&mut self, events: &[Event], function: &str) {
        let why = format!("{function} cannot be probed on {}", self.facts.release);
        for event in events {
            self.unknown.insert(*event, why.clone());
        }
    }

    /// The return of a function is attached before its entry, so that what runs during the
    /// attaching cannot look like a return that was missed.
    fn refusals(&mut self) {
        use Event::{DropNoMemory, DropTableFull};
        if !self.facts.symbols.has("__nf_conntrack_alloc") {
            self.unknown(&[DropTableFull, DropNoMemory], "__nf_conntrack_alloc");
        } else if !self.facts.symbols.has("net_ratelimit") {
            self.unknown(&[DropTableFull, DropNoMemory], "net_ratelimit");
        } else {
            // Where a refusal itself tells whose flow it was, only what else goes wrong there is left.
            let when = if self.facts.newcomer.is_some() { When::Unexplained } else { When::NearFull };
            self.hook_when(When::Unexplained, "alloc_ret", "__nf_conntrack_alloc", Method::Kretprobe);
            self.hook_when(when, "alloc", "__nf_conntrack_alloc", Method::Kprobe);
            self.hook("ratelimit", "net_ratelimit", Method::Kprobe);
        }
    }

    fn deletes(&mut self) {
        // `.part.N` keeps the registers of the whole; other suffixes may not.
        let callees: Vec<String> = self
            .facts
            .symbols
            .names("nf_ct_delete")
            .filter(|name| *name == "nf_ct_delete" || name.starts_with("nf_ct_delete.part."))
            .map(str::to_owned)
            .collect();
        let removal = ["__nf_ct_delete_from_lists", "nf_ct_delete_from_lists"]
            .into_iter()
            .find(|function| self.facts.symbols.has(function));
        match removal {
            Some(function) if !callees.is_empty() => {
                if one_hook_deletes(self.facts) {
                    self.hooks.extend(walks());
                } else {
                    for callee in callees {
                        self.hook("delete", &callee, Method::Kprobe);
                    }
                }
                self.hook("delete_from_lists", function, Method::Kprobe);
            }
            Some(_) => self.unknown(&Event::DELETES, "nf_ct_delete"),
            None => self.unknown(&Event::DELETES, "nf_ct_delete_from_lists"),
        }
    }

    fn netlink_inserts(&mut self) {
        if self.facts.symbols.has("nf_conntrack_hash_check_insert") {
            self.hook("check_insert_ret", "nf_conntrack_hash_check_insert", Method::Kretprobe);
            self.hook("check_insert", "nf_conntrack_hash_check_insert", Method::Kprobe);
        } else {
            self.unknown(&[Event::InsertNetlink], "nf_conntrack_hash_check_insert");
        }
    }

    fn confirmation(&mut self, insert_too: bool) {
        use Event::{
            ClashReplyOnly, ClashResolve, FailedChaintoolong, FailedClash, FailedDying, FailedOther, Insert,
        };
        if !self.facts.symbols.has("__nf_conntrack_confirm") {
            let failures =
                [FailedClash, FailedChaintoolong, FailedDying, FailedOther, ClashResolve, ClashReplyOnly];
            self.unknown(&failures, "__nf_conntrack_confirm");
            if insert_too {
                self.unknown(&[Insert], "__nf_conntrack_confirm");
            }
            return;
        }
        if self.facts.symbols.has("nf_ct_resolve_clash") {
            self.hook("resolve_clash_ret", "nf_ct_resolve_clash", Method::Kretprobe);
            self.hook("resolve_clash", "nf_ct_resolve_clash", Method::Kprobe);
        } else {
            self.unknown(&[FailedClash, ClashResolve, ClashReplyOnly], "nf_ct_resolve_clash");
        }
        let when = if insert_too { When::Always } else { When::Unexplained };
        self.hook_when(when, "confirm_ret", "__nf_conntrack_confirm", Method::Kretprobe);
        self.hook_when(when, "confirm", "__nf_conntrack_confirm", Method::Kprobe);
    }
}

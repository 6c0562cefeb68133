//! The plan for single events: the hooks that those asked for need, and no other.

use ctwatch_ebpf::Event;

use super::facts::Facts;
use super::hooks::{self, CONFIRM, Purpose, ROWS, Row, When};
use super::plan::{Hook, Plan};
use crate::model::SourceKind;
use crate::model::trace::Wanted;

impl Plan {
    /// What the single events need beyond this plan; and of the plan itself, unless everything is counted as well, only
    /// the part that they need.
    #[must_use]
    pub fn tracing(mut self, facts: &Facts, wanted: &Wanted) -> Self {
        let asked = |some: &[Event]| some.iter().any(|event| wanted.names.ask(*event));
        if !wanted.counting {
            // Where the insert function was inlined, inserts are seen at confirmation.
            let insert_at_confirm = !self.subtract_netlink;
            self.hooks.retain(|hook| {
                hooks::find(hook.program).is_none_or(|row| {
                    // Clashes too: confirmation also returns 1 of them, and they would look like inserts.
                    let inserts = insert_at_confirm && row.purpose.needs().0.contains(&CONFIRM);
                    asked(row.serves) || inserts && asked(&[Event::Insert])
                })
            });
            // Single events are asked for by somebody who looks for them: the first one must not be missed.
            for hook in self.hooks.iter_mut().filter(|hook| hook.when != When::Misread) {
                // The kernel counts what it reports, at the start too; but not evictions whose newcomer is missing.
                let newcomer = hook.program == "alloc" && asked(&[Event::DeleteEarlyDrop]);
                hook.reckoned = hook.failures_only() && !newcomer;
                hook.when = When::Always;
            }
            self.unknown.retain(|event, _| asked(&[*event]));
        }
        let when = |row: &Row| if wanted.counting { row.when } else { When::Always };
        // An eviction names its newcomer, which counting can do without.
        if asked(&[Event::DeleteEarlyDrop]) {
            for hook in self.hooks.iter_mut().filter(|hook| hook.program == "alloc") {
                hook.when = hooks::find("alloc").map_or(hook.when, when);
            }
        }
        if self.kind == SourceKind::Fexit {
            let details = ROWS.iter().filter(|row| row.purpose == Purpose::Details && asked(row.serves));
            let present = details.filter(|row| facts.symbols.has(row.function.name()));
            self.hooks
                .extend(present.map(|row| Hook { when: when(row), ..Hook::on(row, row.function.name()) }));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ctwatch_ebpf::Group;

    use super::*;
    use crate::kernel::hooks::Method;
    use crate::kernel::kallsyms::Symbols;
    use crate::model::trace::Names;

    const KPROBES: [&str; 14] = [
        "alloc_ret",
        "alloc",
        "ratelimit",
        "iterate_ret",
        "iterate",
        "delete_from_lists",
        "delete",
        "check_insert_ret",
        "check_insert",
        "resolve_clash_ret",
        "resolve_clash",
        "confirm_ret",
        "confirm",
        "hash_insert",
    ];
    const TRAMPOLINES: [&str; 7] = [
        "alloc_bpf",
        "ratelimit_bpf",
        "delete_bpf",
        "check_insert_bpf",
        "resolve_clash_bpf",
        "confirm_bpf",
        "hash_insert_bpf",
    ];

    fn programs(
        kind: SourceKind,
        all: &[&'static str],
        subtract: bool,
        asked: &[Group],
    ) -> Vec<&'static str> {
        programs_wanted(kind, all, subtract, asked, false)
    }

    fn programs_wanted(
        kind: SourceKind,
        all: &[&'static str],
        subtract: bool,
        asked: &[Group],
        counting: bool,
    ) -> Vec<&'static str> {
        let hooks = hooks_wanted(kind, all, subtract, asked, counting);
        hooks.into_iter().map(|hook| hook.program).collect()
    }

    fn hooks_wanted(
        kind: SourceKind,
        all: &[&'static str],
        subtract: bool,
        asked: &[Group],
        counting: bool,
    ) -> Vec<Hook> {
        let mut names = Names::default();
        for name in Group::ALL {
            names.remove(name);
        }
        for name in asked {
            names.insert(*name);
        }
        let hook = |program: &&'static str| Hook {
            program,
            symbol: String::new(),
            method: if kind == SourceKind::Fexit { Method::Fexit } else { Method::Kprobe },
            when: hooks::find(program).map_or(When::Always, |row| row.when),
            reckoned: false,
        };
        let plan = Plan {
            kind,
            why: None,
            hooks: all.iter().map(hook).collect(),
            unknown: BTreeMap::new(),
            subtract_netlink: subtract,
        };
        let watched = ["__nf_conntrack_alloc", "nf_conntrack_hash_check_insert"].map(str::to_owned).to_vec();
        let facts = Facts { symbols: Symbols { watched, ..Symbols::default() }, ..Facts::default() };
        let wanted = Wanted { names, counting, ..Wanted::default() };
        plan.tracing(&facts, &wanted).hooks
    }

    #[test]
    fn each_event_brings_its_hooks_and_no_other() {
        let kprobes = |asked: &[Group]| programs(SourceKind::Kprobe, &KPROBES, true, asked);
        assert_eq!(kprobes(&Group::ALL), KPROBES);
        assert_eq!(kprobes(&[Group::Drop]), ["alloc_ret", "alloc", "ratelimit"]);
        assert_eq!(
            kprobes(&[Group::EarlyDrop]),
            ["alloc", "iterate_ret", "iterate", "delete_from_lists", "delete"]
        );
        assert_eq!(
            kprobes(&[Group::InsertFailed]),
            ["resolve_clash_ret", "resolve_clash", "confirm_ret", "confirm"]
        );
        assert_eq!(kprobes(&[Group::Insert]), ["check_insert_ret", "check_insert", "hash_insert"]);
    }

    #[test]
    fn inserts_at_confirmation_bring_confirmation() {
        let inlined = |asked: &[Group]| programs(SourceKind::Kprobe, &KPROBES[..13], false, asked);
        // From check_insert_ret to confirm.
        assert_eq!(inlined(&[Group::Insert]), KPROBES[7..13]);
        assert_eq!(inlined(&[Group::Drop]), ["alloc_ret", "alloc", "ratelimit"]);
    }

    #[test]
    fn beside_counting_no_hook_is_left_out() {
        let losses = [Group::Drop, Group::EarlyDrop, Group::InsertFailed];
        let all = |kind, hooks| programs_wanted(kind, hooks, true, &losses, true);
        assert_eq!(all(SourceKind::Kprobe, &KPROBES), KPROBES);
        let mut trampolines = TRAMPOLINES.to_vec();
        trampolines.push("alloc_enter_bpf");
        assert_eq!(all(SourceKind::Fexit, &TRAMPOLINES), trampolines);
    }

    #[test]
    fn trampolines_learn_the_newcomer_at_an_entry_of_their_own() {
        let fexit = |asked: &[Group]| programs(SourceKind::Fexit, &TRAMPOLINES, true, asked);
        assert_eq!(fexit(&[Group::Drop]), ["alloc_bpf", "ratelimit_bpf"]);
        assert_eq!(fexit(&[Group::EarlyDrop]), ["alloc_bpf", "delete_bpf", "alloc_enter_bpf"]);
        assert_eq!(
            fexit(&[Group::Insert]),
            ["check_insert_bpf", "hash_insert_bpf", "check_insert_enter_bpf"]
        );
    }

    #[test]
    fn misses_of_what_reports_failures_alone_are_found_in_the_kernels_counters() {
        let reckoned = |asked: &[Group]| -> Vec<&str> {
            let hooks = hooks_wanted(SourceKind::Kprobe, &KPROBES, true, asked, false);
            assert!(hooks.iter().all(|hook| hook.when == When::Always));
            hooks.into_iter().filter(Hook::failures_only).map(|hook| hook.program).collect()
        };
        assert_eq!(
            reckoned(&[Group::Drop, Group::InsertFailed]),
            ["alloc_ret", "alloc", "ratelimit", "confirm_ret", "confirm"]
        );
        // An eviction whose newcomer was missed is in no counter.
        assert_eq!(reckoned(&[Group::Drop, Group::EarlyDrop]), ["alloc_ret", "ratelimit"]);
    }
}

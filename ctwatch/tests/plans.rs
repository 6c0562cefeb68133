//! Plans made from facts that were captured on real kernels (`ctwatch facts`).
#![expect(clippy::unwrap_used, reason = "an error in a helper fails the test, as it should")]

use std::{fmt::Write as _, fs, path::Path};

use ctwatch::{
    kernel::{
        facts::{Availability, Capabilities, Facts},
        hooks::When,
        plan::{self, Plan, Refusal},
    },
    model::SourceKind,
};
use ctwatch_ebpf::Group;

fn captured(name: &str) -> Facts {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/facts").join(format!("{name}.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn shown(plan: Result<Plan, Refusal>) -> String {
    let plan = match plan {
        Ok(plan) => plan,
        Err(refusal) => return refusal.to_string(),
    };
    let mut text = plan.kind.name().to_string();
    if let Some(why) = plan.why {
        write!(text, " because {why}").unwrap();
    }
    for hook in plan.hooks {
        write!(text, "\n{:?} {} -> {} ({:?})", hook.method, hook.symbol, hook.program, hook.when).unwrap();
    }
    for (event, why) in plan.unknown {
        write!(text, "\nunknown {event:?}: {why}").unwrap();
    }
    text
}

#[test]
fn debian_5_10_has_no_module_btf() {
    insta::assert_snapshot!(shown(plan::best(&captured("debian-5.10"))));
}

#[test]
fn debian_6_1_by_trampolines_and_by_kprobes() {
    let facts = captured("debian-6.1");
    insta::assert_snapshot!("debian_6_1_best", shown(plan::best(&facts)));
    insta::assert_snapshot!("debian_6_1_kprobes", shown(plan::kprobes(&facts)));
}

#[test]
fn code_that_cannot_be_followed_brings_more_hooks() {
    let mut facts = captured("debian-6.1");
    (facts.newcomer, facts.delete_frame) = (None, None);
    insta::assert_snapshot!("code_not_followed_trampolines", shown(plan::trampolines(&facts)));
    insta::assert_snapshot!("code_not_followed_kprobes", shown(plan::kprobes(&facts)));
}

/// A miss of a hook that tells only what the kernel's counters tell as well must not be lost twice.
#[test]
fn some_hooks_tell_nothing_but_failures_that_the_kernel_counts_too() {
    for name in ["debian-6.1", "debian-6.12", "debian-7.3"] {
        let facts = captured(name);
        for plan in [plan::trampolines(&facts).unwrap(), plan::kprobes(&facts).unwrap()] {
            // A miss of the hook that waits for a misread stack shows at the removal, which then has no cause.
            for hook in plan.hooks.iter().filter(|hook| hook.when != When::Misread) {
                let failures =
                    ["net_ratelimit", "__nf_conntrack_alloc", "__nf_conntrack_confirm", "nf_conntrack_in"];
                assert_eq!(
                    hook.failures_only(),
                    failures.contains(&hook.symbol.as_str()),
                    "{name}: {hook:?}"
                );
            }
        }
    }
}

#[test]
fn without_kprobes_trampolines_do_all() {
    let mut facts = captured("debian-6.1");
    facts.kprobes = false;
    let plan = plan::trampolines(&facts).unwrap();
    assert!(plan.hooks.iter().all(|hook| hook.program.ends_with("_bpf")), "{:?}", plan.hooks);
    assert!(Group::Invalid.parts().iter().all(|event| plan.unknown.contains_key(event)));
    assert_eq!(plan.unknown.len(), Group::Invalid.parts().len());
}

#[test]
fn later_kernels_are_planned_like_6_1() {
    let expected = shown(plan::trampolines(&captured("debian-6.1")));
    for name in ["debian-6.12", "debian-7.3"] {
        assert_eq!(shown(plan::trampolines(&captured(name))), expected, "{name}");
    }
}

#[test]
fn a_preemptible_kernel_gets_trampolines_only_where_nothing_can_nest() {
    insta::assert_snapshot!(shown(plan::best(&captured("debian-7.3"))));
}

#[test]
fn a_kernel_that_does_not_tell_counts_as_preemptible() {
    let mut facts = captured("debian-6.12");
    facts.preemption = None;
    let plan = plan::best(&facts).unwrap();
    assert_eq!(plan.kind, SourceKind::Kprobe);
    insta::assert_snapshot!(plan.why.unwrap());
}

#[test]
fn a_real_time_kernel_gets_kprobes_alone() {
    // There code with softirqs off can be preempted too.
    let plan = plan::best(&captured("debian-6.12-rt")).unwrap();
    assert_eq!(plan.kind, SourceKind::Kprobe);
    assert!(!plan.has_trampolines());
    assert!(plan.unknown.is_empty());
    insta::assert_snapshot!(plan.why.unwrap());
}

#[test]
fn kprobes_take_over_where_trampolines_are_refused_at_attaching() {
    let facts = captured("debian-6.1");
    assert!(plan::best(&facts).unwrap().has_trampolines());
    let plan = plan::after_trampolines(&facts, "cannot attach x: errno 524\nmore").unwrap();
    assert_eq!(plan.kind, SourceKind::Kprobe);
    assert!(!plan.has_trampolines());
    assert_eq!(plan.why.as_deref(), Some("the kernel refused BPF trampolines: cannot attach x: errno 524"));
}

#[test]
fn a_kernel_of_another_architecture_is_refused() {
    let mut facts = captured("debian-6.12");
    facts.machine = "i686".into();
    assert!(plan::best(&facts).is_ok(), "so a 64-bit kernel calls itself under setarch");
    facts.machine = "aarch64".into();
    insta::assert_snapshot!(shown(plan::best(&facts)));
}

#[test]
fn lockdown_refuses_both() {
    let facts = captured("debian-6.12-lockdown");
    insta::assert_snapshot!(shown(plan::best(&facts)));
}

#[test]
fn a_kernel_without_kprobes_says_so() {
    insta::assert_snapshot!(shown(plan::kprobes(&captured("without-kprobes"))));
}

#[test]
fn without_rights_only_the_rights_are_named() {
    let mut facts = captured("debian-6.12");
    facts.capabilities = Capabilities::default();
    facts.symbols.hidden = true;
    insta::assert_snapshot!(shown(plan::kprobes(&facts)));
}

#[test]
fn hidden_addresses_and_missing_btf_are_named_together() {
    let mut facts = captured("debian-6.12");
    facts.symbols.hidden = true;
    facts.btf = Availability::Absent;
    insta::assert_snapshot!(shown(plan::kprobes(&facts)));
}

#[test]
fn an_inlined_insert_is_counted_at_confirmation() {
    let mut facts = captured("debian-6.12");
    facts.symbols.watched.retain(|symbol| symbol != "__nf_conntrack_hash_insert");
    let plan = plan::best(&facts).unwrap();
    assert!(!plan.subtract_netlink);
    assert!(plan.unknown.is_empty());
    insta::assert_snapshot!(shown(Ok(plan)));
}

#[test]
fn what_cannot_be_probed_is_unknown_with_a_reason() {
    for function in [
        "net_ratelimit",
        "__nf_conntrack_alloc",
        "nf_ct_resolve_clash",
        "nf_conntrack_hash_check_insert",
        "__nf_ct_delete_from_lists",
        "nf_ct_delete",
        "__nf_conntrack_confirm",
        "nf_ct_l4proto_log_invalid",
        "nf_l4proto_log_invalid",
        "nf_conntrack_in",
    ] {
        let mut facts = captured("debian-6.12");
        facts.symbols.watched.retain(|symbol| symbol != function);
        let plan = plan::kprobes(&facts).unwrap();
        assert!(!plan.unknown.is_empty(), "{function}");
        for note in plan.unknown.values() {
            assert!(note.contains(&facts.release), "{note}");
        }
        assert!(plan.hooks.iter().all(|hook| hook.symbol != function), "{function}");
    }
}

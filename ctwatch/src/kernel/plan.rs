//! How each hook is attached on this kernel, and why: a pure function of facts.
//!
//! Never decided by version: a symbol exists under its name or it does not.

use std::{collections::BTreeMap, fmt};

use ctwatch_ebpf::{CONN_READ, Event};
use serde::Serialize;

use super::facts::{Availability, Facts, Presence, offset_names};
use crate::model::SourceKind;

/// What shall run and what it will not be able to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The mechanism.
    pub kind: SourceKind,
    /// What kept a better one from running.
    pub why: Option<String>,
    /// The attachments, in the order in which they must be made.
    pub hooks: Vec<Hook>,
    /// Events that cannot be told on this kernel, with the reason.
    pub unknown: BTreeMap<Event, String>,
    /// Whether inserts through ctnetlink pass the insert hook and have to be subtracted.
    pub subtract_netlink: bool,
}

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hook {
    /// The program's name in the object.
    pub program: &'static str,
    /// The kernel symbol.
    pub symbol: String,
    /// How.
    pub method: Method,
}

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

/// Why a source cannot run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The source.
    pub kind: SourceKind,
    /// Each obstacle.
    pub obstacles: Vec<Obstacle>,
}

/// One thing in the way, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// What is missing.
    pub missing: String,
    /// How to mend it.
    pub mend: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} source cannot run here", self.kind.name())?;
        for Obstacle { missing, mend } in &self.obstacles {
            write!(f, "\n  missing: {missing}\n  way out: {mend}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// In one line: the first obstacle.
    pub fn brief(&self) -> String {
        let first = self.obstacles.first().map_or("", |obstacle| obstacle.missing.as_str());
        format!("{} needs {first}", self.kind.name())
    }
}

const SETCAP: &str = "run ctwatch as root (sudo ctwatch), or once: sudo setcap \
                      cap_bpf,cap_perfmon,cap_net_admin,cap_syslog+ep FILE";

/// The plan for the best mechanism.
pub fn best(facts: &Facts) -> Result<Plan, Refusal> {
    match trampolines(facts) {
        Ok(plan) => match preemptible(facts) {
            None => Ok(plan),
            Some(why) => mixed(facts, why),
        },
        Err(refusal) => {
            let mut plan = kprobes(facts)?;
            plan.why = Some(refusal.brief());
            Ok(plan)
        }
    }
}

/// Why trampoline programs could be skipped here: the kernel runs no program inside itself on one
/// CPU, so where one can be preempted, the next call there is not counted (7.3, `full`: 5,599 of
/// 300,000 runs in a flood).
fn preemptible(facts: &Facts) -> Option<String> {
    match facts.preemption.as_deref() {
        Some("none" | "voluntary") => None,
        Some(mode) => Some(format!("this kernel is preemptible ({mode}): fexit programs would miss events")),
        None => Some(
            "this kernel does not tell whether it is preemptible, where fexit programs would miss \
             events; mount debugfs for it to tell"
                .to_owned(),
        ),
    }
}

/// Kprobes, which preemption does not skip, but a trampoline where softirqs are off and a spinlock
/// is held, so that nothing can nest.
fn mixed(facts: &Facts, why: String) -> Result<Plan, Refusal> {
    let mut plan = kprobes(facts)?;
    plan.why = Some(why);
    for hook in &mut plan.hooks {
        if hook.program == "hash_insert" {
            hook.program = "hash_insert_bpf";
            hook.method = Method::Fentry;
        }
    }
    Ok(plan)
}

/// The functions and programs of the trampoline plan, with the number of arguments that the
/// programs rely on to find the return value.
const TRAMPOLINES: [(&str, &str, Method, usize); 7] = [
    ("alloc_bpf", "__nf_conntrack_alloc", Method::Fexit, 6),
    ("early_drop_bpf", "early_drop", Method::Fexit, 2),
    ("delete_bpf", "nf_ct_delete", Method::Fexit, 3),
    ("check_insert_bpf", "nf_conntrack_hash_check_insert", Method::Fexit, 1),
    ("resolve_clash_bpf", "nf_ct_resolve_clash", Method::Fexit, 3),
    ("confirm_bpf", "__nf_conntrack_confirm", Method::Fexit, 1),
    ("hash_insert_bpf", "__nf_conntrack_hash_insert", Method::Fentry, 3),
];

/// The plan for BPF trampolines: all of them or none, so that their counts belong together.
pub fn trampolines(facts: &Facts) -> Result<Plan, Refusal> {
    let mut obstacles = obstacles(SourceKind::Fexit, facts);
    if facts.conntrack == Presence::Module && facts.module_btf != Availability::Present {
        let missing = match &facts.module_btf {
            Availability::Unreadable(why) => format!("usable type information of the module: {why}"),
            _ => "type information of the nf_conntrack module (CONFIG_DEBUG_INFO_BTF_MODULES)".into(),
        };
        obstacles.push(Obstacle { missing, mend: "Linux 5.11 or later with module BTF".into() });
    } else if facts.conntrack == Presence::Module && !facts.capabilities.sys_admin {
        obstacles.push(Obstacle {
            missing: "CAP_SYS_ADMIN, without which the kernel hands out no module BTF".into(),
            mend: "run ctwatch as root".into(),
        });
    }
    if obstacles.is_empty() && facts.conntrack != Presence::Absent {
        for (_, function, _, arguments) in TRAMPOLINES {
            if let Some(missing) = unfit(facts, function, arguments) {
                obstacles.push(Obstacle { missing, mend: "--source kprobe".into() });
            }
        }
    }
    if !obstacles.is_empty() {
        return Err(Refusal { kind: SourceKind::Fexit, obstacles });
    }
    Ok(Plan {
        kind: SourceKind::Fexit,
        why: None,
        hooks: TRAMPOLINES
            .iter()
            .map(|(program, symbol, method, _)| Hook {
                program,
                symbol: (*symbol).to_owned(),
                method: *method,
            })
            .collect(),
        unknown: BTreeMap::new(),
        subtract_netlink: true,
    })
}

/// What keeps a function from carrying a trampoline program of ours.
fn unfit(facts: &Facts, function: &str, arguments: usize) -> Option<String> {
    let Some(prototype) = facts.prototypes.get(function) else {
        return Some(format!("{function} in the kernel's type information"));
    };
    if !facts.symbols.has(function) {
        return Some(format!("{function} as a symbol of its own (the compiler inlined or split it)"));
    }
    if facts.symbols.names(function).count() > 1 {
        return Some(format!("a {function} in one piece (the compiler split it)"));
    }
    if count_arguments(prototype) != arguments {
        return Some(format!("a {function} with {arguments} arguments (here: {prototype})"));
    }
    None
}

/// Arguments in a prototype as [`super::btf`] prints it; none of ours takes a function.
fn count_arguments(prototype: &str) -> usize {
    match prototype.split_once('(') {
        Some((_, "void)")) | None => 0,
        Some((_, list)) => list.split(',').count(),
    }
}

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

/// What keeps programs from running, apart from tracking not being there yet.
fn obstacles(kind: SourceKind, facts: &Facts) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let mut add = |missing: String, mend: &str| {
        found.push(Obstacle { missing, mend: mend.to_owned() });
    };
    let caps = facts.capabilities;
    if !caps.sys_admin {
        let lacking: Vec<&str> = [
            (caps.bpf, "CAP_BPF (load programs)"),
            (caps.perfmon, "CAP_PERFMON (attach them to kernel functions)"),
            (caps.net_admin, "CAP_NET_ADMIN (read tracking state)"),
        ]
        .into_iter()
        .filter_map(|(has, name)| (!has).then_some(name))
        .collect();
        if !lacking.is_empty() {
            add(format!("{} (before Linux 5.8: CAP_SYS_ADMIN)", lacking.join(", ")), SETCAP);
            // Without rights nothing else could be read; the rest would only mislead.
            return found;
        }
    }
    if kind == SourceKind::Kprobe && !facts.kprobes {
        add(
            "kprobes: this kernel was built without CONFIG_KPROBES or CONFIG_KPROBE_EVENTS".into(),
            "a kernel that has them (every stock distribution kernel does)",
        );
    }
    if facts.lockdown.as_deref() == Some("confidentiality") {
        add(
            "the right to read kernel memory: kernel lockdown is in confidentiality mode".into(),
            "boot with lockdown=integrity, or without lockdown",
        );
    }
    match &facts.btf {
        Availability::Present => {}
        Availability::Absent => add(
            "/sys/kernel/btf/vmlinux: this kernel was built without CONFIG_DEBUG_INFO_BTF".into(),
            "a kernel that has it (stock Debian since 5.10, Ubuntu since 20.10, RHEL since 8.2)",
        ),
        Availability::Unreadable(why) => add(
            format!("usable kernel type information: {why}"),
            "please report this with the output of `ctwatch facts`",
        ),
    }
    if facts.btf == Availability::Present {
        let lacking: Vec<&str> = offset_names().filter(|name| !facts.offsets.contains_key(*name)).collect();
        if !lacking.is_empty() && facts.conntrack != Presence::Absent {
            add(
                format!("the layout of connection tracking in BTF ({})", lacking.join(", ")),
                "a kernel whose nf_conntrack carries type information",
            );
        }
        let far = ["CONN_TIMEOUT", "CONN_STATUS", "CONN_NET"]
            .iter()
            .filter_map(|name| facts.offsets.get(*name))
            .any(|offset| *offset as usize + 8 > CONN_READ);
        if far {
            add(
                format!("a struct nf_conn whose status lies in its first {CONN_READ} bytes"),
                "a kernel without lock debugging, which makes the structure larger",
            );
        }
    }
    if facts.symbols.hidden {
        add(
            "kernel symbol addresses: the kernel hides them".into(),
            "run as root or give CAP_SYSLOG, and check that sysctl kernel.kptr_restrict is not 2",
        );
    }
    found
}

struct Draft<'a> {
    facts: &'a Facts,
    hooks: Vec<Hook>,
    unknown: BTreeMap<Event, String>,
}

impl Draft<'_> {
    fn hook(&mut self, program: &'static str, symbol: &str, method: Method) {
        self.hooks.push(Hook { program, symbol: symbol.to_owned(), method });
    }

    /// Only its return value is read, so that a copy with other arguments serves as well.
    fn hook_returns(&mut self, program: &'static str, function: &str) {
        let names: Vec<String> = self.facts.symbols.names(function).map(str::to_owned).collect();
        for name in names {
            self.hook(program, &name, Method::Kretprobe);
        }
    }

    fn unknown(&mut self, events: &[Event], function: &str) {
        let why = format!("{function} cannot be probed on {}", self.facts.release);
        for event in events {
            self.unknown.insert(*event, why.clone());
        }
    }

    fn has_any(&self, function: &str) -> bool {
        self.facts.symbols.names(function).next().is_some()
    }

    /// The return of a function is attached before its entry, so that what runs during the
    /// attaching cannot look like a return that was missed.
    fn refusals(&mut self) {
        use Event::{DeleteEarlyDrop, DropNoMemory, DropTableFull};
        if !self.has_any("early_drop") {
            self.unknown(&[DropTableFull, DropNoMemory, DeleteEarlyDrop], "early_drop");
        } else if self.facts.symbols.has("__nf_conntrack_alloc") {
            self.hook("alloc", "__nf_conntrack_alloc", Method::Kprobe);
            self.hook("alloc_ret", "__nf_conntrack_alloc", Method::Kretprobe);
            self.hook_returns("early_drop_ret", "early_drop");
        } else {
            self.unknown(&[DropTableFull, DropNoMemory], "__nf_conntrack_alloc");
        }
    }

    fn deletes(&mut self) {
        use Event::{
            DeleteCleanup, DeleteClosed, DeleteEarlyDrop, DeleteNetlink, DeleteOther, DeletePressure,
            DeleteTimeout,
        };
        const DELETES: [Event; 7] = [
            DeleteTimeout,
            DeleteClosed,
            DeleteEarlyDrop,
            DeletePressure,
            DeleteNetlink,
            DeleteCleanup,
            DeleteOther,
        ];
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
                for callee in callees {
                    self.hook("delete", &callee, Method::Kprobe);
                }
                self.hook("delete_from_lists", function, Method::Kprobe);
            }
            Some(_) => self.unknown(&DELETES, "nf_ct_delete"),
            None => self.unknown(&DELETES, "nf_ct_delete_from_lists"),
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
        if self.has_any("nf_ct_resolve_clash") {
            self.hook_returns("resolve_clash_ret", "nf_ct_resolve_clash");
        } else {
            self.unknown(&[FailedClash, ClashResolve, ClashReplyOnly], "nf_ct_resolve_clash");
        }
        self.hook("confirm_ret", "__nf_conntrack_confirm", Method::Kretprobe);
        self.hook("confirm", "__nf_conntrack_confirm", Method::Kprobe);
    }
}

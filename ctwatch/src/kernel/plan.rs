//! How each hook is attached on this kernel, and why: a pure function of facts.
//!
//! Never decided by version: a symbol exists under its name or it does not.

use std::collections::BTreeMap;

use ctwatch_ebpf::{Event, FRAME_LIMIT};
use serde::Serialize;

use super::facts::{Availability, Facts, Presence};
use super::hooks::{self, Method, Purpose, REMOVAL, ROWS, Row, WALK, When};
use super::obstacles::obstacles;
pub use super::obstacles::{Obstacle, Refusal};
use super::plan_kprobe::add_invalid;
pub use super::plan_kprobe::kprobes;
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
    /// While what.
    pub when: When,
    /// Whether what it misses shows in the kernel's counters although it is attached from the start.
    #[serde(skip)]
    pub reckoned: bool,
}

impl Hook {
    /// A program on this symbol, at the time that its row says.
    pub fn on(row: &Row, symbol: &str) -> Self {
        Self {
            program: row.program,
            symbol: symbol.to_owned(),
            method: row.method,
            when: row.when,
            reckoned: false,
        }
    }

    /// See [`Row::failures_only`].
    pub fn failures_only(&self) -> bool {
        self.reckoned || hooks::find(self.program).is_some_and(|row| row.failures_only(self.when))
    }
}

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

/// The plan where the kernel refused the trampolines of [`best`] when they were loaded or attached.
pub fn after_trampolines(facts: &Facts, error: &str) -> Result<Plan, Refusal> {
    let mut plan = kprobes(facts)?;
    let cause = error.lines().next().unwrap_or_default();
    plan.why = Some(format!("the kernel refused BPF trampolines: {cause}"));
    Ok(plan)
}

impl Plan {
    /// Whether a part of it needs BPF trampolines.
    pub fn has_trampolines(&self) -> bool {
        self.hooks.iter().any(|hook| hook.method.is_trampoline())
    }
}

/// Why trampoline programs could be skipped here: the kernel runs no program inside itself on one
/// CPU, so where one can be preempted, the next call there is not counted (7.3, `full`: 5,599 of
/// 300,000 runs in a flood).
fn preemptible(facts: &Facts) -> Option<String> {
    match facts.preemption.as_deref() {
        Some("none" | "voluntary") => None,
        Some(REAL_TIME) => {
            Some("this is a real-time kernel (PREEMPT_RT): fexit programs would miss events".to_owned())
        }
        Some(mode) => Some(format!("this kernel is preemptible ({mode}): fexit programs would miss events")),
        None => Some(
            "ctwatch could not find out whether this kernel is preemptible, and there fexit programs would \
             miss events; mount debugfs, or give ctwatch CAP_SYS_RAWIO to read /proc/kcore"
                .to_owned(),
        ),
    }
}

/// The preemption mode of PREEMPT_RT, where code with softirqs off can be preempted too.
const REAL_TIME: &str = "rt";

/// Kprobes, which preemption does not skip, but a trampoline where softirqs are off, so that
/// nothing can nest.
fn mixed(facts: &Facts, why: String) -> Result<Plan, Refusal> {
    let mut plan = kprobes(facts)?;
    plan.why = Some(why);
    // The kernel runs kprobe programs with preemption off on PREEMPT_RT as well (trace_call_bpf, 6.1 to 7.3).
    if facts.preemption.as_deref() == Some(REAL_TIME) {
        return Ok(plan);
    }
    for hook in &mut plan.hooks {
        let held = |row: &&Row| {
            row.method == Method::Fentry
                && row.purpose.counts()
                && row.function.softirqs_off
                && row.function.names.contains(&hook.symbol.as_str())
        };
        if let Some(row) = ROWS.iter().find(held)
            && unfit(facts, &hook.symbol, row.function.arguments).is_none()
            && (row.purpose != Purpose::Walks || one_hook_deletes(facts))
        {
            *hook = Hook { when: hook.when, ..Hook::on(row, &hook.symbol) };
        }
    }
    Ok(plan)
}

/// Kprobes in the place of trampolines where that leaves less to run for each flow.
fn leaner(facts: &Facts, hooks: &mut Vec<Hook>) {
    let drop = |hooks: &mut Vec<Hook>, program| hooks.retain(|hook| hook.program != program);
    // At an entry less has to run than at the return of `nf_ct_delete`.
    if one_hook_deletes(facts) && unfit(facts, REMOVAL.name(), REMOVAL.arguments).is_none() {
        drop(hooks, "delete_bpf");
        let walks = ROWS.iter().filter(|row| row.purpose == Purpose::Walks);
        hooks.extend(walks.map(|row| Hook::on(row, row.function.name())));
        let callers =
            ROWS.iter().filter(|row| row.purpose == Purpose::Callers && !row.method.is_trampoline());
        for row in callers {
            let symbols = row.function.symbols(&facts.symbols).into_iter();
            hooks.extend(symbols.map(|symbol| Hook { when: When::Misread, ..Hook::on(row, symbol) }));
        }
    }
    if facts.newcomer.is_some() {
        drop(hooks, "ratelimit_bpf");
        hooks.extend(hooks::find("ratelimit").map(|row| Hook::on(row, row.function.name())));
        let alloc = hooks.iter_mut().filter(|hook| hook.program == "alloc_bpf");
        alloc.for_each(|hook| hook.when = When::Unexplained);
    }
}

/// The trampoline programs that count without any kprobe.
fn base() -> impl Iterator<Item = &'static Row> {
    ROWS.iter()
        .filter(|row| row.method.is_trampoline() && row.purpose.counts() && row.purpose != Purpose::Walks)
}

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
        for row in base() {
            if let Some(missing) = unfit(facts, row.function.name(), row.function.arguments) {
                obstacles.push(Obstacle { missing, mend: "--source kprobe".into() });
            }
        }
    }
    if !obstacles.is_empty() {
        return Err(Refusal { kind: SourceKind::Fexit, obstacles });
    }
    let mut hooks = base().map(|row| Hook::on(row, row.function.name())).collect();
    if facts.kprobes {
        leaner(facts, &mut hooks);
    }
    let mut unknown = BTreeMap::new();
    add_invalid(facts, &mut hooks, &mut unknown);
    Ok(Plan { kind: SourceKind::Fexit, why: None, hooks, unknown, subtract_netlink: true })
}

/// Whether one hook on the function that takes entries out of the table can tell who asked for it:
/// where the caller's address lies on the stack is known, and a walk can be asked for its port id.
pub(super) fn one_hook_deletes(facts: &Facts) -> bool {
    let fits =
        facts.prototypes.get(WALK.name()).is_some_and(|prototype| match facts.offsets.get("ITER_PORTID") {
            Some(_) => count_arguments(prototype) == WALK.arguments && prototype.contains("nf_ct_iter_data"),
            None => count_arguments(prototype) == 5 && prototype.contains("portid"),
        });
    let known = facts.delete_frame.is_some_and(|distance| u64::from(distance) < FRAME_LIMIT);
    known && facts.symbols.has(REMOVAL.name()) && facts.symbols.has(WALK.name()) && fits
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

/// Arguments in a prototype as [`super::btf`] prints it. An argument may be a function, with its own.
fn count_arguments(prototype: &str) -> usize {
    let list = prototype.find('(').map_or("", |at| &prototype[at + 1..]);
    let list = list.strip_suffix(')').unwrap_or(list);
    let mut depth = 0_usize;
    let commas = list.bytes().filter(|byte| {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        *byte == b',' && depth == 0
    });
    if list.is_empty() || list == "void" { 0 } else { commas.count() + 1 }
}

//! The plan for kprobes: what can be counted with the symbols that this kernel has.

use std::collections::BTreeMap;

use ctwatch_ebpf::Event;

use super::facts::Facts;
use super::hooks::{HASH_INSERT, Purpose, ROWS, Row, When};
use super::obstacles::{Refusal, obstacles};
use super::plan::{Hook, Plan, one_hook_deletes};
use crate::model::SourceKind;

/// The plan for kprobes.
pub fn kprobes(facts: &Facts) -> Result<Plan, Refusal> {
    let obstacles = obstacles(SourceKind::Kprobe, facts);
    if !obstacles.is_empty() {
        return Err(Refusal { kind: SourceKind::Kprobe, obstacles });
    }
    let (mut hooks, mut unknown) = (Vec::new(), BTreeMap::new());
    let insert_at_confirm = !HASH_INSERT.is_in(&facts.symbols);
    let one_hook_deletes = one_hook_deletes(facts);
    let kprobes = ROWS.iter().filter(|row| row.purpose.counts() && !row.method.is_trampoline());
    for row in kprobes.filter(|row| one_hook_deletes || row.purpose != Purpose::Walks) {
        if let Some(why) = obstacle(facts, row) {
            let (_, events) = row.purpose.needs();
            let insert = insert_at_confirm && row.purpose == Purpose::Confirmations;
            let events = events.iter().copied().chain(insert.then_some(Event::Insert));
            unknown.extend(events.map(|event| (event, why.clone())));
            continue;
        }
        let when = match row.when {
            // Where a refusal itself tells whose flow it was, only what else goes wrong there is left.
            When::NearFull if facts.newcomer.is_some() => When::Unexplained,
            // Where a removal itself shows who asked for it, that is looked for elsewhere only once it proved wrong.
            _ if one_hook_deletes && row.purpose == Purpose::Callers => When::Misread,
            _ if insert_at_confirm && row.purpose == Purpose::Confirmations => When::Always,
            when => when,
        };
        let symbols = row.function.symbols(&facts.symbols);
        hooks.extend(symbols.into_iter().map(|symbol| Hook { when, ..Hook::on(row, symbol) }));
    }
    let subtract_netlink = !insert_at_confirm;
    Ok(Plan { kind: SourceKind::Kprobe, why: None, hooks, unknown, subtract_netlink })
}

/// Why the programs of a row cannot count here.
fn obstacle(facts: &Facts, row: &Row) -> Option<String> {
    let (needs, _) = row.purpose.needs();
    if let Some(missing) = needs.iter().find(|function| !function.is_in(&facts.symbols)) {
        let name = missing.names.last().unwrap_or(&"a function");
        return Some(format!("{name} cannot be probed on {}", facts.release));
    }
    let offsets = row.purpose.offsets().iter().filter(|name| !facts.offsets.contains_key(**name));
    let lacking: Vec<&str> = offsets.copied().collect();
    let why = || format!("the kernel's type information lacks where packets lie ({})", lacking.join(", "));
    (!lacking.is_empty()).then(why)
}

/// Adds what is watched by kprobes beside trampolines too.
pub(super) fn add_invalid(facts: &Facts, hooks: &mut Vec<Hook>, unknown: &mut BTreeMap<Event, String>) {
    for row in ROWS.iter().filter(|row| row.purpose.has_no_trampoline()) {
        let why =
            if facts.kprobes { obstacle(facts, row) } else { Some("this kernel has no kprobes".into()) };
        if let Some(why) = why {
            let (_, events) = row.purpose.needs();
            unknown.extend(events.iter().map(|event| (*event, why.clone())));
        } else {
            let symbols = row.function.symbols(&facts.symbols);
            hooks.extend(symbols.into_iter().map(|symbol| Hook::on(row, symbol)));
        }
    }
}

//! One round of watching: programs attached after a plan, and what they have counted since.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya_log::EbpfLogger;
use ctwatch_ebpf::{
    ALLOC_PARTS, CALLERS, Caller, Counters, Event, FlowType, HealthCounters,
    entry::TraceEntries,
    field::Field,
    loss::{Budget, TraceFilter},
};
use nix::libc;

use super::{
    attached::Attached,
    counts::{self, Counts},
    invalid::Invalid,
    logger::{self, Stderr},
    now,
    object::{Globals, Object},
    probe::Wishes,
};
use crate::{
    kernel::{
        facts::Facts,
        hooks::{self, ALLOC, When},
        kallsyms::{CallerText, Newcomer},
        plan::{Hook, Plan},
    },
    model::{
        Cost, Filter,
        ranking::{By, Top},
    },
};

/// Some 5,700 events: what all CPUs may hand over while we are not scheduled. A power of two, as the kernel wants.
const RING_BYTES: u32 = 1 << 20;

/// Where single events come from, of programs that have been attached.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Events {
    /// The events themselves.
    pub ring: RingBuf<MapData>,
    /// What each CPU held back.
    pub budget: PerCpuArray<MapData, Budget>,
    /// When the last program was attached, on the monotonic clock: what came before is no whole picture.
    pub since_ns: u64,
}

/// How often at most the programs' health is read again while a refusal seems to be unknown: by trampolines it is known at
/// its return only, so it may be under way.
const SETTLING: u32 = 3;

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Reading {
    /// By flow type.
    pub rows: BTreeMap<FlowType, Counters>,
    /// Ranked.
    pub top: Vec<Top>,
    /// How much is known to have been missed, …
    pub lost: u64,
    /// … refusals included whose flow nobody looked at.
    pub refused_unknown: u64,
    /// Whether the kernel's code was misread: registers held no flow, or the stack no caller.
    pub misread: bool,
    /// What it cost.
    pub cost: Cost,
    /// Invalid packets, those included that the filter leaves out.
    pub(super) invalid: Invalid,
}

/// Attached programs and their maps. Dropping it detaches.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Watch {
    attached: Attached,
    counts: Counts,
    /// Whether the programs still believe what registers and the stack hold.
    disbelieved: Array<MapData, u32>,
    /// Whether `__nf_conntrack_alloc` is watched.
    alloc_watched: Array<MapData, u32>,
    facts: Facts,
    /// Hooks that are not due yet.
    waiting: Vec<Hook>,
    /// Hooks that are attached for a while only.
    let_go: Vec<Hook>,
    by: Vec<By>,
    /// Whether missed failures are found by comparing with the kernel's counters.
    reckoned: bool,
    logger: Option<EbpfLogger<Stderr>>,
    subtract_netlink: bool,
    /// What the first hooks counted, or missed, before the last one was attached.
    before: BTreeMap<FlowType, Counters>,
    missed_before: u64,
    invalid_before: Invalid,
    /// Refusals of which the last reading did not know whose they were.
    refused_unknown: u64,
}

impl Watch {
    /// Attaches what the plan names and what is due by now.
    pub fn start(facts: &Facts, plan: &Plan, wishes: &Wishes, due: &[When], reckoned: bool) -> Result<Self> {
        let mut object = Object::parse(&globals(facts, plan, wishes))?;
        if wishes.trace.is_some() {
            object.resize("TRACE_RING", RING_BYTES)?;
        }
        if let Some(ends) = &wishes.filter.ends {
            let mut filters: Array<_, TraceFilter> = object.map("TRACE_FILTERS")?;
            filters.set(0, ends, 0).context("cannot write map TRACE_FILTERS")?;
        }
        if let Some(entries) = wishes.entries() {
            if !facts.offsets.contains_key("CONN_REPLY") {
                bail!(
                    "this kernel does not say where answers lie in an entry, so nothing can be filtered by them"
                );
            }
            let mut filters: Array<_, TraceEntries> = object.map("TRACE_ENTRIES")?;
            filters.set(0, entries, 0).context("cannot write map TRACE_ENTRIES")?;
        }
        let at_once = |hook: &&Hook| hook.when == When::Always || due.contains(&hook.when);
        let (now, waiting): (Vec<&Hook>, Vec<&Hook>) = plan.hooks.iter().partition(at_once);
        let now: Vec<Hook> = now.into_iter().cloned().collect();
        let mut watch = Self {
            counts: Counts::new(&mut object)?,
            disbelieved: object.map("DISBELIEVED")?,
            alloc_watched: object.map("ALLOC_WATCHED")?,
            attached: Attached::new(object),
            facts: facts.clone(),
            let_go: now.iter().filter(|hook| hook.when == When::Invalid).cloned().collect(),
            waiting: waiting.into_iter().cloned().collect(),
            by: wishes.ranked().collect(),
            reckoned,
            logger: None,
            subtract_netlink: plan.subtract_netlink,
            before: BTreeMap::new(),
            missed_before: 0,
            invalid_before: Invalid::default(),
            refused_unknown: 0,
        };
        watch.announce(&now)?;
        watch.attached.hook(facts, &now)?;
        if !settle() {
            // Nor can it be waited for later, so refusals are noted from now on.
            watch.note_refusals()?;
        }
        if wishes.verbose {
            watch.logger = logger::of(&watch.attached);
        }
        // Hooks that belong together are attached one by one: what some of them saw alone is not
        // a whole picture, so counting starts here.
        let reading = watch.read()?;
        watch.before = reading.rows;
        watch.missed_before = reading.lost;
        watch.invalid_before = reading.invalid;
        Ok(watch)
    }

    /// Whether hooks wait for this.
    pub fn waits_for(&self, when: When) -> bool {
        self.waiting.iter().any(|hook| hook.when == when)
    }

    /// Attaches the hooks that waited for this. They stay: what came once comes again.
    pub fn arm(&mut self, when: When) -> Result<()> {
        let (due, waiting): (Vec<Hook>, Vec<Hook>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|hook| hook.when == when);
        self.waiting = waiting;
        if when == When::Invalid {
            self.let_go.clone_from(&due);
        }
        self.announce(&due)?;
        let before = self.counts.health()?.unpaired();
        self.attached.hook(&self.facts, &due)?;
        settle();
        // While only one hook of a pair is there, it meets calls that it cannot follow. What they may have
        // told shows in the kernel's own counters; but not who asked for a removal.
        if when != When::Misread {
            self.missed_before += self.counts.health()?.unpaired() - before;
        }
        Ok(())
    }

    /// Has refusals noted for the return of `__nf_conntrack_alloc`, before that is watched: one that it does not know
    /// of would count a second time, as `no_memory`.
    fn announce(&mut self, hooks: &[Hook]) -> Result<()> {
        if !hooks.iter().any(|hook| hooks::find(hook.program).is_some_and(|row| *row.function == ALLOC)) {
            return Ok(());
        }
        self.note_refusals()?;
        settle();
        Ok(())
    }

    fn note_refusals(&mut self) -> Result<()> {
        self.alloc_watched.set(0, 1, 0).context("cannot write map ALLOC_WATCHED")
    }

    /// Detaches the hooks on packets about which the kernel says nothing. They wait again.
    pub fn disarm(&mut self) {
        self.attached.release(&self.let_go);
        self.waiting.append(&mut self.let_go);
    }

    /// Has registers and the stack ignored from now on.
    pub fn disbelieve(&mut self) -> Result<()> {
        self.disbelieved.set(0, 1, 0).context("cannot write map DISBELIEVED")
    }

    /// How many programs are attached.
    pub const fn programs(&self) -> usize {
        self.attached.programs()
    }

    /// The channel of single events.
    pub fn events(&mut self) -> Result<Events> {
        let object = &mut self.attached.object;
        Ok(Events {
            ring: object.map("TRACE_RING")?,
            budget: object.map("TRACE_BUDGET")?,
            since_ns: now()?.1,
        })
    }

    /// Prints what the programs have logged.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// What is known to have been missed since the start.
    pub fn lost(&mut self) -> Result<u64> {
        Ok(self.missed()?.0.saturating_sub(self.missed_before))
    }

    /// Of these, how many calls were seen at one end only.
    pub fn unpaired(&mut self) -> Result<u64> {
        Ok(self.counts.health()?.unpaired())
    }

    /// Everything since the start.
    pub fn read(&mut self) -> Result<Reading> {
        self.flush_log();
        let counts::Reading { mut rows, top, invalid } = self.counts.read(&self.by)?;
        let invalid = invalid.since(&self.invalid_before);
        for (flow, row) in &mut rows {
            if self.subtract_netlink {
                let netlink = row.get(Event::InsertNetlink);
                let insert = &mut row.0[Event::Insert as usize];
                // What is read first is less than what it is subtracted from where a flow type had such
                // entries only.
                *insert = insert.saturating_sub(netlink);
            }
            if let Some(before) = self.before.get(flow) {
                for (count, before) in row.0.iter_mut().zip(before.0) {
                    *count = count.saturating_sub(before);
                }
            }
        }
        let (missed, health, cost) = self.missed()?;
        let lost = missed.saturating_sub(self.missed_before);
        let (refused_unknown, misread) = (health.refused_unknown(), health.misread());
        Ok(Reading { rows, top, lost, refused_unknown, misread, cost, invalid })
    }

    fn missed(&mut self) -> Result<(u64, HealthCounters, Cost)> {
        let runs = self.attached.runs()?;
        let mut health = self.counts.health()?;
        for _ in 0..SETTLING {
            if health.refused_unknown() == 0 {
                break;
            }
            let later = self.counts.health()?;
            if later.refused_unknown() < health.refused_unknown() {
                health = later;
            }
        }
        // The processor that it is under way on may belong to somebody else for a while (a busy host of a guest).
        if health.refused_unknown() > self.refused_unknown && settle() {
            let later = self.counts.health()?;
            if later.refused_unknown() < health.refused_unknown() {
                health = later;
            }
        }
        self.refused_unknown = health.refused_unknown();
        let failures = if self.reckoned { 0 } else { runs.missed_failures };
        Ok((runs.missed + failures + health.lost(), health, runs.cost))
    }
}

/// Waits until no watched function runs any more that was entered before this: of such a call only the return is seen.
///
/// All of them run inside RCU read-side sections (netfilter's hooks, 5.10 to 7.3), and `MEMBARRIER_CMD_GLOBAL` waits for
/// a grace period (kernel/sched/membarrier.c, 4.3). Where it is refused (nohz_full) such a call counts as lost. False
/// where it is.
pub(super) fn settle() -> bool {
    // SAFETY: the call takes three numbers.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

/// Members that programs load by single instructions, and the facts whose sum is their offset.
const FIELDS: [(Field, &[&str]); 9] = [
    (Field::ConnTimeout, &["CONN_TIMEOUT"]),
    (Field::ConnNet, &["CONN_NET"]),
    (Field::ConnL3num, &["CONN_TUPLE", "TUPLE_L3NUM"]),
    (Field::ConnProtonum, &["CONN_TUPLE", "TUPLE_PROTONUM"]),
    (Field::ConnDport, &["CONN_TUPLE", "TUPLE_DST_PART"]),
    (Field::NetInum, &["NET_INUM"]),
    (Field::TupleL3num, &["TUPLE_L3NUM"]),
    (Field::TupleProtonum, &["TUPLE_PROTONUM"]),
    (Field::TupleDport, &["TUPLE_DST_PART"]),
];

/// So many words for the programs' constants.
fn words(values: impl Iterator<Item = u64>, count: usize) -> Vec<u8> {
    values.chain(std::iter::repeat(0)).take(count).flat_map(u64::to_ne_bytes).collect()
}

/// Offsets that no program needs otherwise.
const ONLY_FIELDS: [&str; 2] = ["CONN_TIMEOUT", "CONN_NET"];

/// This kernel's offsets and the user's filter, for the programs.
fn globals(facts: &Facts, plan: &Plan, wishes: &Wishes) -> Globals {
    let Filter { protos, family, netns, ends } = wishes.filter;
    let by_type = protos.is_some() || family.is_some() || netns.is_some();
    let protos = protos.map_or([u64::MAX; 4], |protos| protos.0);
    let (events, per_second) =
        wishes.trace.as_ref().map_or((0, 0), |wanted| (wanted.names.events(), wanted.per_second));
    let log_level = if wishes.verbose { log::Level::Debug as u8 } else { 0 };
    // The hook on `nf_ct_delete` and the distance to what it would report exclude each other until that proves wrong.
    let hooked = plan.hooks.iter().any(|hook| hook.program == "delete" && hook.when != When::Misread);
    let delete_frame = facts.delete_frame.filter(|_| !hooked).unwrap_or(0);
    let mut globals = Globals::default();
    let offset = |name: &str| facts.offsets.get(name).copied();
    for (name, offset) in &facts.offsets {
        if !ONLY_FIELDS.contains(&name.as_str()) {
            globals.set(name, &offset.to_ne_bytes());
        }
    }
    for (field, names) in FIELDS {
        if let Some(offset) = names.iter().map(|name| offset(name)).sum() {
            globals.field(field, offset);
        }
    }
    // What does not fit is counted as `other`.
    let callers = &facts.symbols.callers;
    let column = |of: fn(&CallerText) -> u64| words(callers.iter().map(of), CALLERS);
    let alloc = |of: fn(&CallerText) -> u64| {
        words(callers.iter().filter(|text| text.caller == Caller::Alloc).map(of), ALLOC_PARTS)
    };
    globals
        .set("CALLER_STARTS", &column(|text| text.start))
        .set("CALLER_ENDS", &column(|text| text.end))
        .set("CALLER_CODES", &column(|text| (text.caller as u32).into()))
        .set("ALLOC_STARTS", &alloc(|text| text.start))
        .set("ALLOC_ENDS", &alloc(|text| text.end));
    // Where registers are not asked, the verifier still wants to see places in `pt_regs`.
    let Newcomer { net, zone, orig } = facts.newcomer.unwrap_or(Newcomer { net: 0, zone: 0, orig: 0 });
    globals
        .field(Field::RefusedNet, net)
        .field(Field::RefusedZone, zone)
        .field(Field::RefusedOrig, orig)
        .set("REFUSED_BY_REGISTERS", &[u8::from(facts.newcomer.is_some())])
        .set("FILTERED", &[u8::from(by_type || ends.is_some())])
        .set("FILTER", &[u8::from(by_type)])
        .set("FILTER_FAMILY", &[family.unwrap_or(0)])
        .set("FILTER_NETNS", &netns.unwrap_or(0).to_ne_bytes())
        .set("FILTER_PROTO", &protos.map(u64::to_ne_bytes).concat())
        .set("HAS_CHAINTOOLONG", &[u8::from(facts.chaintoolong)])
        .set("INSERT_AT_CONFIRM", &[u8::from(!plan.subtract_netlink)])
        .set("TRACE_EVENTS", &events.to_ne_bytes())
        .set("TRACE_PER_SECOND", &per_second.to_ne_bytes())
        .set("TRACE_FILTER", &[u8::from(ends.is_some())])
        .set("TRACE_ENTRY", &[u8::from(wishes.entries().is_some())])
        .set("DELETE_FRAME", &delete_frame.to_ne_bytes())
        // At most CONN_READ, or the plan was refused.
        .set("CONN_LENGTH", &u32::try_from(facts.conn_length()).unwrap_or(0).to_ne_bytes())
        .set("BY_ADDRESS", &[u8::from(wishes.addresses.src) | u8::from(wishes.addresses.dst) << 1])
        .set(aya_log::LEVEL, &[log_level]);
    globals
}

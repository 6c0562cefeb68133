//! One round of watching: programs attached after a plan, and what they have counted since.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya_log::EbpfLogger;
use ctwatch_ebpf::{
    CALLERS, CallerRange, Counters, Event, FlowType, Health, HealthCounters, OVERFLOW_ROW,
    loss::{Budget, TraceFilter},
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::{
    attached::Attached,
    logger::{self, Stderr},
    now,
    object::{Globals, Object},
    probe::Wishes,
    reader::{Hash, PerCpu, Reader},
};
use crate::{
    kernel::{facts::Facts, plan::Plan},
    model::{Cost, Filter},
};

/// Some 8,000 events: what all CPUs may hand over while we are not scheduled. A power of two, as the kernel wants.
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

/// Attached programs and their maps. Dropping it detaches.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Watch {
    attached: Attached,
    reader: Reader,
    owners: Hash,
    counters: PerCpu<Counters>,
    health: PerCpu<HealthCounters>,
    logger: Option<EbpfLogger<Stderr>>,
    subtract_netlink: bool,
    /// What the first hooks counted, or missed, before the last one was attached.
    before: BTreeMap<FlowType, Counters>,
    missed_before: u64,
}

impl Watch {
    /// Attaches what the plan names.
    pub fn start(facts: &Facts, plan: &Plan, wishes: &Wishes) -> Result<Self> {
        // Before 5.11 maps count against RLIMIT_MEMLOCK; later kernels ignore it.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let mut object = Object::parse(&globals(facts, plan, wishes))?;
        let mut ranges: Array<_, [CallerRange; CALLERS]> = object.map("CALLER_RANGES")?;
        ranges.set(0, facts.symbols.ranges(), 0).context("cannot write map CALLER_RANGES")?;
        if wishes.trace.is_some() {
            object.resize("TRACE_RING", RING_BYTES)?;
        }
        if let Some(ends) = &wishes.filter.ends {
            let mut filters: Array<_, TraceFilter> = object.map("TRACE_FILTERS")?;
            filters.set(0, ends, 0).context("cannot write map TRACE_FILTERS")?;
        }
        let mut watch = Self {
            reader: Reader::new()?,
            owners: Hash::new(&mut object, "ROW_OWNERS")?,
            counters: PerCpu::new(&mut object, "COUNTERS")?,
            health: PerCpu::new(&mut object, "HEALTH")?,
            attached: Attached::new(object),
            logger: None,
            subtract_netlink: plan.subtract_netlink,
            before: BTreeMap::new(),
            missed_before: 0,
        };
        watch.attached.hook(facts, &plan.hooks)?;
        if wishes.verbose {
            watch.logger = logger::of(&watch.attached);
        }
        // Hooks that belong together are attached one by one: what some of them saw alone is not
        // a whole picture, so counting starts here.
        let (rows, missed, _) = watch.read()?;
        watch.before = rows;
        watch.missed_before = missed;
        Ok(watch)
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

    /// Rows, misses and cost since the start.
    pub fn read(&mut self) -> Result<(BTreeMap<FlowType, Counters>, u64, Cost)> {
        self.flush_log();
        let owners = self.reader.entries(&self.owners).context("cannot read map ROW_OWNERS")?;
        let owners = owners.into_iter().map(|(row, key)| (row, FlowType::unpack(key)));
        let mut rows = BTreeMap::new();
        for (row, flow) in owners.chain([(OVERFLOW_ROW, FlowType::OVERFLOW)]) {
            let mut sum = Counters::default();
            for cpu in self.reader.element(&self.counters, row).context("cannot read map COUNTERS")? {
                sum.add(cpu);
            }
            if flow == FlowType::OVERFLOW && sum == Counters::default() {
                continue;
            }
            if self.subtract_netlink {
                let netlink = sum.get(Event::InsertNetlink);
                let insert = &mut sum.0[Event::Insert as usize];
                // A reading between the two hooks of one insertion sees the entry as the packet
                // path's until the next reading.
                *insert = insert.saturating_sub(netlink);
            }
            if let Some(before) = self.before.get(&flow) {
                for (count, before) in sum.0.iter_mut().zip(before.0) {
                    *count = count.saturating_sub(before);
                }
            }
            rows.insert(flow, sum);
        }
        let (missed, cost) = self.missed()?;
        Ok((rows, missed.saturating_sub(self.missed_before), cost))
    }

    fn missed(&mut self) -> Result<(u64, Cost)> {
        let runs = self.attached.runs()?;
        let mut missed = runs.missed;
        for cpu in self.reader.element(&self.health, 0).context("cannot read map HEALTH")? {
            missed += [Health::NoEntry, Health::NoReturn, Health::ReadFailed]
                .iter()
                .map(|what| cpu.0[*what as usize])
                .sum::<u64>();
        }
        Ok((missed, runs.cost))
    }
}

/// This kernel's offsets and the user's filter, for the programs.
fn globals(facts: &Facts, plan: &Plan, wishes: &Wishes) -> Globals {
    let Filter { protos, family, netns, ends } = wishes.filter;
    let by_type = protos.is_some() || family.is_some() || netns.is_some();
    let protos = protos.map_or([u64::MAX; 4], |protos| protos.0);
    let (events, per_second) =
        wishes.trace.as_ref().map_or((0, 0), |wanted| (wanted.names.events(), wanted.per_second));
    let log_level = if wishes.verbose { log::Level::Debug as u8 } else { 0 };
    let mut globals = Globals::default();
    for (global, offset) in &facts.offsets {
        globals.set(global, &offset.to_ne_bytes());
    }
    globals
        .set("FILTER", &[u8::from(by_type)])
        .set("FILTER_FAMILY", &[family.unwrap_or(0)])
        .set("FILTER_NETNS", &netns.unwrap_or(0).to_ne_bytes())
        .set("FILTER_PROTO", &protos.map(u64::to_ne_bytes).concat())
        .set("HAS_CHAINTOOLONG", &[u8::from(facts.chaintoolong)])
        .set("INSERT_AT_CONFIRM", &[u8::from(!plan.subtract_netlink)])
        .set("TRACE_EVENTS", &events.to_ne_bytes())
        .set("TRACE_PER_SECOND", &per_second.to_ne_bytes())
        .set("TRACE_FILTER", &[u8::from(ends.is_some())])
        .set(aya_log::LEVEL, &[log_level]);
    globals
}

//! The eBPF source: loads the programs that the plan names, attaches them, reads their maps.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
    programs::{KProbe, ProgramFd},
    sys::{Stats, enable_stats},
};
use aya_log::EbpfLogger;
use ctwatch_ebpf::{
    CALLERS, CallerRange, Counters, Event, FlowType, Health, HealthCounters, OVERFLOW_ROW, ROWS,
    loss::{Budget, TraceFilter},
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::{
    Source, Status,
    logger::Stderr,
    now,
    sys::{ProgramStats, program_stats},
    tables::Tables,
    trampoline::{Trampoline, Trampolines},
};
use crate::{
    kernel::{
        facts::{self, Facts, Presence},
        plan::{self, Hook, Method, Plan, Refusal},
    },
    model::{Cost, Filter, Sample, SourceInfo, SourceKind, trace::Wanted},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ctwatch-ebpf"));

/// Some 8,000 events: what all CPUs may hand over while we are not scheduled. A power of two, as the kernel wants.
const RING_BYTES: u32 = 1 << 20;

/// Which mechanism may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The best that this kernel allows.
    Best,
    /// BPF trampolines or nothing.
    Trampolines,
    /// Kprobes or nothing.
    Kprobes,
}

impl Mechanism {
    fn plan(self, facts: &Facts) -> Result<Plan, Refusal> {
        match self {
            Self::Best => plan::best(facts),
            Self::Trampolines => plan::trampolines(facts),
            Self::Kprobes => plan::kprobes(facts),
        }
    }
}

/// What the programs shall do beside counting.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// Which mechanism may be used.
    pub mechanism: Mechanism,
    /// Only these flow types.
    pub filter: Filter,
    /// Whether the programs' own log is read.
    pub verbose: bool,
    /// Whether the kernel shall measure the programs.
    pub cost: bool,
    /// Single events to hand over.
    pub trace: Option<Wanted>,
}

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

/// Counts by programs in the kernel.
pub struct Probe {
    wishes: Wishes,
    info: SourceInfo,
    tables: Tables,
    /// Attached programs; `None` while there is nothing to watch.
    attached: Option<Attached>,
    /// Counted by programs that have been let go.
    past: Past,
    /// Of the programs attached last, until somebody takes it.
    events: Option<Events>,
    /// Read at opening, for the first attaching only: later ones may meet another load of the module.
    facts: Option<Facts>,
    stats: Option<OwnedFd>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("info", &self.info).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Past {
    rows: BTreeMap<FlowType, Counters>,
    lost: u64,
    cost: Cost,
}

struct Attached {
    ebpf: Ebpf,
    /// Programs on kprobes, which aya attached and `ebpf` holds.
    probes: Vec<ProgramFd>,
    trampolines: Vec<Trampoline>,
    logger: Option<EbpfLogger<Stderr>>,
    /// Which load of the module the programs hang on.
    module: Option<u64>,
    subtract_netlink: bool,
    /// What the first hooks counted, or missed, before the last one was attached.
    before: BTreeMap<FlowType, Counters>,
    missed_before: u64,
}

impl Probe {
    /// Prepares the source and attaches at once where tracking is there.
    pub fn open(wishes: Wishes) -> anyhow::Result<Self> {
        let stats = wishes.cost.then(|| enable_stats(Stats::RunTime)).transpose();
        let mut probe = Self {
            wishes,
            info: SourceInfo { kind: SourceKind::Kprobe, why: None, unknown: BTreeMap::new() },
            tables: Tables::new(wishes.filter.netns)?,
            attached: None,
            past: Past::default(),
            events: None,
            facts: None,
            // Needs CAP_SYS_ADMIN (5.8 to 7.3): without it, cost is not known and all else works.
            stats: stats.unwrap_or(None),
        };
        // Rights and kernel features are checked before anything is waited for.
        let facts = Facts::read()?;
        wishes.mechanism.plan(&facts)?;
        // Reading them is most of the start-up, so they serve for attaching too where tracking is there.
        probe.facts = Some(facts).filter(|facts| facts.conntrack != Presence::Absent);
        probe.look()?;
        probe.facts = None;
        Ok(probe)
    }

    fn attach(&mut self) -> anyhow::Result<()> {
        let facts = match self.facts.take() {
            Some(facts) => facts,
            None => Facts::read()?,
        };
        let mut plan = self.wishes.mechanism.plan(&facts)?;
        if let Some(wanted) = &self.wishes.trace {
            plan = plan.tracing(&facts, wanted);
        }
        let mut attached = Attached::new(&facts, &plan, &self.wishes)?;
        self.events = self.wishes.trace.map(|_| attached.events()).transpose()?;
        self.info = SourceInfo { kind: plan.kind, why: plan.why, unknown: plan.unknown };
        self.attached = Some(attached);
        Ok(())
    }

    /// The events of programs attached since the last call.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// Lets the programs go for good.
    pub fn close(&mut self) -> anyhow::Result<()> {
        self.detach()
    }

    /// What is known to have been missed since the source was opened.
    pub fn lost(&mut self) -> anyhow::Result<u64> {
        let missed = match &mut self.attached {
            Some(attached) => attached.missed()?.0.saturating_sub(attached.missed_before),
            None => 0,
        };
        Ok(self.past.lost + missed)
    }

    /// Keeps what was counted and lets the programs go.
    fn detach(&mut self) -> anyhow::Result<()> {
        if let Some(mut attached) = self.attached.take() {
            let (rows, lost, cost) = attached.read()?;
            for (flow, counters) in rows {
                // As bounded as one load's rows, however often the module comes and goes.
                let known = self.past.rows.len() < ROWS as usize || self.past.rows.contains_key(&flow);
                let flow = if known { flow } else { FlowType::OVERFLOW };
                self.past.rows.entry(flow).or_default().add(&counters);
            }
            self.past.lost += lost;
            self.past.cost.run_ns += cost.run_ns;
            self.past.cost.runs += cost.runs;
        }
        Ok(())
    }
}

impl Source for Probe {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn look(&mut self) -> anyhow::Result<Status> {
        let module = module_identity();
        let mut gap = false;
        if self.attached.as_ref().is_some_and(|attached| attached.module != module) {
            self.detach()?;
            // Loaded again since the last look: what happened until now was seen by nobody.
            gap = module.is_some();
        }
        if let Some(attached) = &mut self.attached {
            if let Some(logger) = &mut attached.logger {
                logger.flush();
            }
            return Ok(Status::Watching);
        }
        if facts::presence() == Presence::Absent {
            return Ok(Status::Waiting(
                "connection tracking (nf_conntrack) is not loaded: there is nothing to watch. \
                 It loads when a firewall rule or NAT needs it; ctwatch never loads it"
                    .into(),
            ));
        }
        match self.attach() {
            Ok(()) => {
                if gap {
                    let tables = self.tables.read([]);
                    self.past.lost += tables.iter().filter_map(|table| table.count).sum::<u64>();
                }
                Ok(Status::Watching)
            }
            // The module can leave between the look and the attaching.
            Err(_) if facts::presence() == Presence::Absent => {
                Ok(Status::Waiting("connection tracking (nf_conntrack) is being unloaded".into()))
            }
            Err(error) => Err(error),
        }
    }

    fn sample(&mut self) -> anyhow::Result<Sample> {
        let (mut rows, mut lost, mut cost) = match &mut self.attached {
            Some(attached) => attached.read()?,
            None => Default::default(),
        };
        let (wall_ns, mono_ns) = now()?;
        for (flow, counters) in &self.past.rows {
            rows.entry(*flow).or_default().add(counters);
        }
        lost += self.past.lost;
        cost.run_ns += self.past.cost.run_ns;
        cost.runs += self.past.cost.runs;
        let tables = self.tables.read(rows.keys().map(|flow| flow.netns));
        let cost = self.stats.is_some().then_some(cost);
        Ok(Sample { wall_ns, mono_ns, rows, tables, lost, cost, top: None, losses: None })
    }
}

/// A number that changes whenever the module is loaded anew.
fn module_identity() -> Option<u64> {
    // sysfs makes a new inode for each load (fs/kernfs, 5.10 to 7.3).
    fs::metadata("/sys/module/nf_conntrack").ok().map(|directory| directory.ino())
}

impl Attached {
    fn new(facts: &Facts, plan: &Plan, wishes: &Wishes) -> anyhow::Result<Self> {
        let module = module_identity();
        // Before 5.11 maps count against RLIMIT_MEMLOCK; later kernels ignore it.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let mut ebpf = load(facts, plan, wishes)?;
        let logger =
            if wishes.verbose { Some(EbpfLogger::init_with_logger(&mut ebpf, Stderr)?) } else { None };
        let mut ranges: Array<_, [CallerRange; CALLERS]> = map(&mut ebpf, "CALLER_RANGES")?;
        ranges.set(0, facts.symbols.ranges(), 0).context("cannot write map CALLER_RANGES")?;
        if let Some(wanted) = &wishes.trace {
            let mut filters: Array<_, TraceFilter> = map(&mut ebpf, "TRACE_FILTERS")?;
            filters.set(0, wanted.filter, 0).context("cannot write map TRACE_FILTERS")?;
        }
        let mut attached = Self {
            ebpf,
            probes: Vec::new(),
            trampolines: Vec::new(),
            logger,
            module,
            subtract_netlink: plan.subtract_netlink,
            before: BTreeMap::new(),
            missed_before: 0,
        };
        attached.hook_all(facts, &plan.hooks)?;
        // Hooks that belong together are attached one by one: what some of them saw alone is not
        // a whole picture, so counting starts here.
        let (rows, missed, _) = attached.read()?;
        attached.before = rows;
        attached.missed_before = missed;
        Ok(attached)
    }

    fn events(&mut self) -> anyhow::Result<Events> {
        let mut take = |name| self.ebpf.take_map(name).ok_or_else(|| anyhow!("the object has no map {name}"));
        Ok(Events {
            ring: take("TRACE_RING")?.try_into()?,
            budget: take("TRACE_BUDGET")?.try_into()?,
            since_ns: now()?.1,
        })
    }

    fn hook_all(&mut self, facts: &Facts, hooks: &[Hook]) -> anyhow::Result<()> {
        let by_btf = |hook: &&Hook| matches!(hook.method, Method::Fentry | Method::Fexit);
        if hooks.iter().any(|hook| by_btf(&hook)) {
            let module = (facts.conntrack == Presence::Module).then_some("nf_conntrack");
            let trampolines = Trampolines::new(OBJECT, &self.ebpf, module)?;
            for hook in hooks.iter().filter(by_btf) {
                let function = facts.functions.get(&hook.symbol).copied().unwrap_or(0);
                let attached = trampolines
                    .attach(hook.program, hook.method, function)
                    .with_context(|| format!("cannot watch {}", hook.symbol))?;
                self.trampolines.push(attached);
            }
        }
        let mut loaded = HashSet::new();
        for hook in hooks.iter().filter(|hook| !by_btf(hook)) {
            let program: &mut KProbe = self
                .ebpf
                .program_mut(hook.program)
                .with_context(|| format!("the object has no program {}", hook.program))?
                .try_into()?;
            if loaded.insert(hook.program) {
                program
                    .load()
                    .with_context(|| format!("the kernel does not accept program {}", hook.program))?;
                self.probes.push(program.fd()?.try_clone()?);
            }
            program
                .attach(&hook.symbol, 0)
                .with_context(|| format!("cannot attach {} to {}", hook.program, hook.symbol))?;
        }
        Ok(())
    }

    /// Rows, misses and cost since attaching.
    fn read(&mut self) -> anyhow::Result<(BTreeMap<FlowType, Counters>, u64, Cost)> {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let owners: HashMap<_, u32, u64> = map(&mut self.ebpf, "ROW_OWNERS")?;
        let mut places: Vec<(u32, FlowType)> = owners
            .iter()
            .map(|entry| entry.map(|(row, key)| (row, FlowType::unpack(key))))
            .collect::<Result<_, _>>()
            .context("cannot read map ROW_OWNERS")?;
        places.push((OVERFLOW_ROW, FlowType::OVERFLOW));
        let counters: PerCpuArray<_, Counters> = map(&mut self.ebpf, "COUNTERS")?;
        let mut rows = BTreeMap::new();
        for (row, flow) in places {
            let mut sum = Counters::default();
            for cpu in counters.get(&row, 0).context("cannot read map COUNTERS")?.iter() {
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

    fn missed(&mut self) -> anyhow::Result<(u64, Cost)> {
        let health: PerCpuArray<_, HealthCounters> = map(&mut self.ebpf, "HEALTH")?;
        let mut missed = 0;
        for cpu in health.get(&0, 0).context("cannot read map HEALTH")?.iter() {
            missed += [Health::NoEntry, Health::NoReturn, Health::ReadFailed]
                .iter()
                .map(|what| cpu.0[*what as usize])
                .sum::<u64>();
        }
        let mut cost = Cost::default();
        let probes = self.probes.iter().map(AsFd::as_fd);
        let trampolines = self.trampolines.iter().map(|attached| attached.program.as_fd());
        for program in probes.chain(trampolines) {
            let ProgramStats { run_ns, runs, missed: skipped } =
                program_stats(program).context("cannot read a program's statistics")?;
            cost.run_ns += run_ns;
            cost.runs += runs;
            missed += skipped;
        }
        Ok((missed, cost))
    }
}

fn map<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<T>
where
    T: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = ebpf.map_mut(name).ok_or_else(|| anyhow!("the object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name} is not what it should be"))
}

/// Loads the object with this kernel's offsets and the user's filter as read-only globals.
fn load(facts: &Facts, plan: &Plan, wishes: &Wishes) -> anyhow::Result<Ebpf> {
    let Filter { protos, family, netns } = wishes.filter;
    let filter = u8::from(wishes.filter != Filter::default());
    let protos = protos.map_or([u64::MAX; 4], |protos| protos.0);
    let family = family.unwrap_or(0);
    let netns = netns.unwrap_or(0);
    let chaintoolong = u8::from(facts.chaintoolong);
    let insert_at_confirm = u8::from(!plan.subtract_netlink);
    let (events, per_second, trace_filter) = match &wishes.trace {
        Some(wanted) => (wanted.names.events(), wanted.per_second, u8::from(!wanted.filter.is_empty())),
        None => (0, 0, 0),
    };
    let log_level = if wishes.verbose { log::Level::Debug as u8 } else { 0 };
    let mut loader = EbpfLoader::new();
    for (global, offset) in &facts.offsets {
        loader.override_global(global, offset, true);
    }
    loader
        .override_global("FILTER", &filter, true)
        .override_global("FILTER_FAMILY", &family, true)
        .override_global("FILTER_NETNS", &netns, true)
        .override_global("FILTER_PROTO", &protos, true)
        .override_global("HAS_CHAINTOOLONG", &chaintoolong, true)
        .override_global("INSERT_AT_CONFIRM", &insert_at_confirm, true)
        .override_global("TRACE_EVENTS", &events, true)
        .override_global("TRACE_PER_SECOND", &per_second, true)
        .override_global("TRACE_FILTER", &trace_filter, true)
        .override_global(aya_log::LEVEL, &log_level, true);
    if wishes.trace.is_some() {
        loader.map_max_entries("TRACE_RING", RING_BYTES);
    }
    loader.load(OBJECT).context("cannot create the maps")
}

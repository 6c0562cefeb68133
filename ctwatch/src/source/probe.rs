//! The eBPF source: programs attached while connection tracking is there, and their counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
};

use ctwatch_ebpf::{Counters, Event, FlowType, ROWS, entry::TraceEntries};

use super::{
    Source, Status,
    demand::{DROPPED, FAILED, Reckoning, near_full},
    invalid::{Search, Step},
    now, own_time,
    program_time::{ProgramTime, Work},
    tables::Tables,
    watch::{Events, Reading, Watch, settle},
};
use crate::{
    kernel::{
        facts::{self, Facts, Presence},
        hooks::When,
        plan::{self, Plan, Refusal},
    },
    model::{Filter, Sample, SourceInfo, SourceKind, Table, ranking::By, trace::Wanted},
};

/// Why hooks are used that cost more.
const MISREAD: &str = "refused flows are counted at __nf_conntrack_alloc and causes of deletes are read at nf_ct_delete, \
                       because registers or the stack did not hold what the kernel's machine code seemed to say";

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
    /// Addresses to rank.
    pub addresses: Addresses,
}

/// Which ends' addresses are ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those of sources.
    pub src: bool,
    /// Those of destinations.
    pub dst: bool,
}

impl Wishes {
    /// What is ranked: the destination port always.
    pub fn ranked(&self) -> impl Iterator<Item = By> {
        [Some(By::Dport), self.addresses.src.then_some(By::Src), self.addresses.dst.then_some(By::Dst)]
            .into_iter()
            .flatten()
    }

    /// Of which entries single events are handed over, where that is not of all.
    pub fn entries(&self) -> Option<&TraceEntries> {
        self.trace.as_ref()?.entries.as_ref()
    }

    /// Whether every failure that the kernel counts is to be seen here too.
    fn all_failures(&self) -> bool {
        let seen = |wanted: &Wanted| {
            wanted.counting || FAILED.iter().chain(&DROPPED).all(|event| wanted.names.ask(*event))
        };
        self.filter == Filter::default() && self.trace.as_ref().is_none_or(seen)
    }
}

/// Counts by programs in the kernel.
pub struct Probe {
    wishes: Wishes,
    info: SourceInfo,
    tables: Tables,
    /// Attached programs; `None` while there is nothing to watch.
    attached: Option<Watch>,
    /// Which load of the module they hang on.
    module: Option<u64>,
    /// Counted by programs that have been let go.
    past: Past,
    /// Of the programs attached last, until somebody takes it.
    events: Option<Events>,
    /// Read at opening, for the first attaching only: later ones may meet another load of the module.
    facts: Option<Facts>,
    time: ProgramTime,
    /// The tables at the last look.
    seen: Vec<Table>,
    /// Namespaces that the counters knew at the last sample.
    met: BTreeSet<u32>,
    /// Failures that no hook has told of.
    unexplained: u64,
    /// Once the kernel's code turned out to be misread: refusals that were counted for namespaces that do not exist.
    misread: Option<BTreeMap<FlowType, u64>>,
    /// Compares the kernel's counters with ours, where nothing is filtered and the kernel shows them.
    reckoning: Option<Reckoning>,
    /// The same for invalid packets, whatever is filtered.
    search: Option<Search>,
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
}

impl Probe {
    /// Prepares the source and attaches at once where tracking is there.
    pub fn open(wishes: Wishes) -> anyhow::Result<Self> {
        let mut probe = Self {
            wishes,
            info: SourceInfo { kind: SourceKind::Kprobe, why: None, unknown: BTreeMap::new() },
            tables: Tables::new(wishes.filter.netns)?,
            attached: None,
            module: None,
            past: Past::default(),
            events: None,
            facts: None,
            time: ProgramTime::open(wishes.cost),
            seen: Vec::new(),
            met: BTreeSet::new(),
            unexplained: 0,
            misread: None,
            reckoning: None,
            search: None,
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
        let mut facts = match self.facts.take() {
            Some(facts) => facts,
            None => Facts::read()?,
        };
        if let Some(strange) = &mut self.misread {
            // What was misread once is not read again. What it led to is among the losses of the past.
            strange.clear();
            facts.newcomer = None;
            facts.delete_frame = None;
        }
        let plan = self.wishes.mechanism.plan(&facts)?;
        // Before the programs hang on it, so that a load of the module in between is noticed.
        let module = module_identity();
        self.seen = self.tables.read([]);
        let failures = self.tables.failures();
        let comparable = self.wishes.all_failures() && failures.len() == self.seen.len();
        self.reckoning = comparable.then(Reckoning::default);
        let mut due = Vec::new();
        if near_full(&[], &self.seen) {
            due.push(When::NearFull);
        }
        if !comparable {
            due.push(When::Unexplained);
        }
        let countable = !failures.is_empty();
        if !countable {
            due.push(When::Invalid);
        }
        let start = |plan: Plan| {
            let plan = match &self.wishes.trace {
                Some(wanted) => plan.tracing(&facts, wanted),
                None => plan,
            };
            anyhow::Ok((Watch::start(&facts, &plan, &self.wishes, &due, comparable)?, plan))
        };
        let trampolines = plan.has_trampolines();
        let (mut attached, plan) = match start(plan) {
            // What keeps trampolines from running does not always show beforehand (a kernel without BPF JIT, or one
            // that cannot hook a function directly).
            Err(error) if trampolines && self.wishes.mechanism == Mechanism::Best => {
                let kprobes = plan::after_trampolines(&facts, &format!("{error:#}"))
                    .map_err(|refusal| anyhow::anyhow!("{error:#}\n{refusal}"))?;
                start(kprobes).map_err(|second| anyhow::anyhow!("{error:#}\n{second:#}"))?
            }
            started => started?,
        };
        self.events = self.wishes.trace.map(|_| attached.events()).transpose()?;
        // Where they do not wait, they are there for good.
        let temporary = countable && attached.waits_for(When::Invalid);
        self.search = temporary.then(|| {
            // Once more, since the hooks are there only now.
            self.tables.read([]);
            Search::begin(&self.tables.invalid(), None)
        });
        self.info = SourceInfo { kind: plan.kind, why: plan.why, unknown: plan.unknown };
        self.say_misread();
        self.time.begin(now()?.1, attached.programs());
        self.attached = Some(attached);
        self.module = module;
        Ok(())
    }

    /// The events of programs attached since the last call.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// Lets the programs go for good. What they have missed since the last look is known then.
    pub fn close(&mut self) -> anyhow::Result<()> {
        if let Some(attached) = &mut self.attached
            && self.reckoning.is_some()
        {
            // The kernel's own counters before ours, as in a sample.
            self.tables.read(self.met.iter().copied());
            let mut reading = attached.read()?;
            self.reckon(&mut reading)?;
        }
        self.detach()
    }

    /// What is known to have been missed since the source was opened.
    pub fn lost(&mut self) -> anyhow::Result<u64> {
        let missed = match &mut self.attached {
            Some(attached) => attached.lost()?,
            None => 0,
        };
        Ok(self.past.lost + missed + self.unexplained + self.search.as_ref().map_or(0, Search::lost))
    }

    /// Attaches hooks whose time has come.
    fn tend(&mut self) -> anyhow::Result<()> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        let programs = attached.programs();
        let (_, mono_ns) = now()?;
        if self.time.is_due(mono_ns, programs) {
            let reading = attached.read()?;
            self.time.take(&work(mono_ns, &reading, programs));
        }
        let waits = [When::NearFull, When::Unexplained, When::Misread]
            .into_iter()
            .any(|when| attached.waits_for(when));
        if !waits && self.search.is_none() {
            return Ok(());
        }
        // The kernel's own counters before ours: what happens in between cannot look missed then.
        let now = self.tables.read(self.met.iter().copied());
        if attached.waits_for(When::NearFull) && near_full(&self.seen, &now) {
            attached.arm(When::NearFull)?;
        }
        self.seen = now;
        if self.reckoning.is_some() || self.search.is_some() {
            let mut reading = attached.read()?;
            self.reckon(&mut reading)?;
        }
        Ok(())
    }

    /// Compares a reading with the kernel's counters, and has looked at from now on what they alone tell:
    /// before anybody is told of it. Takes out of the reading what was counted where it cannot have happened.
    fn reckon(&mut self, reading: &mut Reading) -> anyhow::Result<()> {
        self.doubt(reading)?;
        self.disown(reading);
        let mut unexplained = self.unexplained_by(reading);
        if unexplained > self.unexplained
            && settle()
            && let Some(attached) = &mut self.attached
        {
            // The kernel counts a failure inside the function at whose return it is seen here.
            let mut later = attached.read()?;
            self.disown(&mut later);
            unexplained = self.unexplained_by(&later);
        }
        self.unexplained = unexplained;
        if let Some(attached) = &mut self.attached
            && unexplained > 0
            && attached.waits_for(When::Unexplained)
        {
            attached.arm(When::Unexplained)?;
        }
        if let (Some(search), Some(attached)) = (&mut self.search, &mut self.attached) {
            match search.step(now()?.1, &self.tables.invalid(), &reading.invalid) {
                Step::Stay => {}
                Step::Attach => attached.arm(When::Invalid)?,
                Step::Detach => attached.disarm(),
            }
        }
        Ok(())
    }

    /// How many failures the kernel has counted that no hook has reported; 0 where nothing is attached.
    fn unexplained_by(&mut self, reading: &Reading) -> u64 {
        self.reckoning.as_mut().filter(|_| self.attached.is_some()).map_or(0, |reckoning| {
            reckoning.unexplained(self.tables.failures(), &reading.rows, reading.refused_unknown)
        })
    }

    /// Takes out what was counted for namespaces that do not exist. Where the kernel's counters can be compared, they show
    /// it as missed.
    fn disown(&self, reading: &mut Reading) {
        for (flow, refused) in self.misread.iter().flatten() {
            if let Some(row) = reading.rows.get_mut(flow) {
                let count = &mut row.0[Event::DropTableFull as usize];
                *count = count.saturating_sub(*refused);
            }
        }
    }

    /// Gives up what was read from the kernel's machine code at the first contradiction.
    fn doubt(&mut self, reading: &Reading) -> anyhow::Result<()> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        if self.misread.is_some() {
            return Ok(());
        }
        let mut strange = BTreeMap::new();
        let mut evicted = false;
        if let Some(reckoning) = &mut self.reckoning {
            reckoning.follow(self.tables.failures());
            strange = reckoning.contradiction(&reading.rows);
            evicted = sum(&reading.rows, Event::DeleteOther) > 0 && reckoning.evicted() > reading.lost;
        }
        // What was taken for the address of who asked for a removal is something else, if all evictions counted under
        // another cause. It is looked for in the same place for all: one that is seen shows that the place is right.
        let misjudged = attached.waits_for(When::Misread)
            && sum(&reading.rows, Event::DeleteEarlyDrop) == 0
            && (evicted || reading.misread);
        if strange.is_empty() && !misjudged && !reading.misread {
            return Ok(());
        }
        attached.disbelieve()?;
        if misjudged {
            // Their causes are lost; the programs say so themselves where the stack held no address of code, and since
            // the line above.
            let said = attached.unpaired()?;
            self.past.lost += sum(&attached.read()?.rows, Event::DeleteOther).saturating_sub(said);
        }
        // The hook on removals first: what they miss until it is there is lost, and arming others takes no account of it.
        for when in [When::Misread, When::Unexplained] {
            if attached.waits_for(when) {
                attached.arm(when)?;
            }
        }
        self.misread = Some(strange);
        self.say_misread();
        Ok(())
    }

    fn say_misread(&mut self) {
        if self.misread.is_some() {
            let why = self.info.why.take().map(|why| why + "; ").unwrap_or_default();
            self.info.why = Some(why + MISREAD);
        }
    }

    /// Keeps what was counted and lets the programs go.
    fn detach(&mut self) -> anyhow::Result<()> {
        if let Some(mut attached) = self.attached.take() {
            let mut reading = attached.read()?;
            self.disown(&mut reading);
            self.time.end(&work(now()?.1, &reading, attached.programs()));
            let Reading { rows, lost, .. } = reading;
            for (flow, counters) in rows {
                // As bounded as one load's rows, however often the module comes and goes.
                let known = self.past.rows.len() < ROWS as usize || self.past.rows.contains_key(&flow);
                let flow = if known { flow } else { FlowType::OVERFLOW };
                self.past.rows.entry(flow).or_default().add(&counters);
            }
            let unseen = self.search.take().map_or(0, |search| search.lost());
            self.past.lost += lost + std::mem::take(&mut self.unexplained) + unseen;
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
        if self.attached.is_some() && self.module != module {
            self.detach()?;
            // Loaded again since the last look: what happened until now was seen by nobody.
            gap = module.is_some();
        }
        if let Some(attached) = &mut self.attached {
            attached.flush_log();
            self.tend()?;
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
        // The kernel's own counters before ours: what happens in between cannot look missed then.
        let tables = self.tables.read(self.met.iter().copied());
        let mut reading = match &mut self.attached {
            Some(attached) => attached.read()?,
            None => Reading::default(),
        };
        self.reckon(&mut reading)?;
        let (wall_ns, mono_ns) = now()?;
        let cost = match &self.attached {
            Some(attached) => self.time.take(&work(mono_ns, &reading, attached.programs())),
            None => self.time.total(),
        };
        let Reading { mut rows, top, mut lost, .. } = reading;
        lost += self.unexplained + self.search.as_ref().map_or(0, Search::lost);
        for (flow, counters) in &self.past.rows {
            rows.entry(*flow).or_default().add(counters);
        }
        lost += self.past.lost;
        self.met = rows.keys().map(|flow| flow.netns).collect();
        Ok(Sample {
            wall_ns,
            mono_ns,
            rows,
            tables,
            namespaces_left_out: self.tables.left_out(),
            lost,
            cost,
            own_ns: own_time(),
            top: Some(top),
            ..Sample::default()
        })
    }
}

/// What the programs did until this reading.
fn work(mono_ns: u64, reading: &Reading, programs: usize) -> Work {
    let events = reading.rows.values().flat_map(|row| row.0).fold(0, u64::saturating_add);
    Work { mono_ns, measured: reading.cost, events, programs }
}

fn sum(rows: &BTreeMap<FlowType, Counters>, event: Event) -> u64 {
    rows.values().map(|row| row.get(event)).sum()
}

/// A number that changes whenever the module is loaded anew.
fn module_identity() -> Option<u64> {
    // sysfs makes a new inode for each load (fs/kernfs, 5.10 to 7.3).
    fs::metadata("/sys/module/nf_conntrack").ok().map(|directory| directory.ino())
}

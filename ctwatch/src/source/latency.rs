//! How long tracking takes, timed by programs that are attached only while somebody asks.

use std::time::Duration;

use anyhow::Context as _;
use ctwatch_ebpf::timing::{Receive, Stage, Timing};
use nix::unistd::getppid;
use tokio::time::sleep;

use super::SourceChoice;
use super::attached::Attached;
use super::now;
use super::object::{Globals, Object};
use super::reader::{PerCpu, Reader};
use crate::kernel::facts::{Facts, Presence};
use crate::kernel::plan;
use crate::kernel::plan_latency::{Plan, plan as timing_plan};
use crate::model::SourceKind;

/// Calls that show what the timing itself takes.
const FLOOR_CALLS: usize = 2000;

/// What was timed.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The mechanism.
    pub kind: SourceKind,
    /// What kept a better one from running.
    pub why: Option<String>,
    /// How long, in seconds.
    pub seconds: f64,
    /// `nf_conntrack_in`, each packet.
    pub tracking: Timing,
    /// `__nf_conntrack_confirm`, once a flow.
    pub confirm: Timing,
    /// A function that does next to nothing, timed the same way; empty where there is none to attach to.
    pub floor: Timing,
    /// The receive softirqs; `None` where they could not be watched.
    pub receive: Option<Receive>,
}

/// Attaches, calls `began`, waits, lets go, and only then reads: what passed while the programs were there is in the
/// sums, all of it.
pub async fn measure(
    length: Duration,
    choice: SourceChoice,
    began: impl FnOnce(),
) -> anyhow::Result<Measured> {
    let facts = Facts::read()?;
    anyhow::ensure!(facts.conntrack != Presence::Absent, "connection tracking is not loaded");
    let counting = match choice {
        // Netlink tells no times; where it was named for counting, probes still may.
        SourceChoice::Auto | SourceChoice::Netlink => plan::best(&facts)?,
        SourceChoice::Fexit => plan::trampolines(&facts)?,
        SourceChoice::Kprobe => plan::kprobes(&facts)?,
    };
    let plan = timing_plan(&facts, counting)?;
    if choice == SourceChoice::Fexit && plan.kind != SourceKind::Fexit {
        anyhow::bail!("{}", plan.why.unwrap_or_default());
    }
    let stack = facts.offsets.get("TASK_STACK").context("the kernel's types have no task_struct.stack")?;
    let mut globals = Globals::default();
    globals.set("TASK_STACK", &stack.to_ne_bytes());
    let mut attached = Attached::new(Object::parse(&globals)?);
    let mut sums = Sums::new(&mut attached)?;
    time_nothing(&mut attached, &facts, &plan)?;
    attached.hook(&facts, &plan.tracking)?;
    // Without it all but one share can be told.
    let receives = !plan.receive.is_empty() && attached.hook(&facts, &plan.receive).is_ok();
    // A function's two programs are attached one by one: what one of them saw alone is not told.
    let (before, receive_before) = sums.read()?;
    let start = now()?.1;
    began();
    sleep(length).await;
    let seconds = Duration::from_nanos(now()?.1.saturating_sub(start)).as_secs_f64();
    drop(attached);
    let (after, receive_after) = sums.read()?;
    let between = |stage: Stage| after[stage as usize].since(&before[stage as usize]);
    Ok(Measured {
        kind: plan.kind,
        why: plan.why,
        seconds,
        tracking: between(Stage::In),
        confirm: between(Stage::Confirm),
        floor: after[Stage::Floor as usize],
        receive: receives.then(|| Receive {
            began_ns: 0,
            total_ns: receive_after.total_ns.wrapping_sub(receive_before.total_ns),
            tracking_ns: receive_after.tracking_ns.wrapping_sub(receive_before.tracking_ns),
        }),
    })
}

/// Times a function of which only the timing takes time.
fn time_nothing(attached: &mut Attached, facts: &Facts, plan: &Plan) -> anyhow::Result<()> {
    attached.hook(facts, &plan.floor)?;
    for _ in 0..FLOOR_CALLS {
        let _ = getppid();
    }
    attached.unhook();
    Ok(())
}

/// What the programs added up; readable after they have gone.
struct Sums {
    timings: PerCpu<Timing>,
    receive: PerCpu<Receive>,
    reader: Reader,
}

impl Sums {
    fn new(attached: &mut Attached) -> anyhow::Result<Self> {
        let object = &mut attached.object;
        Ok(Self {
            timings: PerCpu::new(object, "LATENCY")?,
            receive: PerCpu::new(object, "LATENCY_RECEIVE")?,
            reader: Reader::new()?,
        })
    }

    /// Summed over CPUs.
    fn read(&mut self) -> anyhow::Result<([Timing; Stage::COUNT], Receive)> {
        let mut timings = [Timing::default(); Stage::COUNT];
        for (sum, stage) in timings.iter_mut().zip(Stage::ALL) {
            let cpus = self.reader.element(&self.timings, stage as u32).context("cannot read map LATENCY")?;
            for cpu in cpus {
                sum.add(cpu);
            }
        }
        let mut receive = Receive::default();
        for cpu in self.reader.element(&self.receive, 0).context("cannot read map LATENCY_RECEIVE")? {
            receive.total_ns = receive.total_ns.wrapping_add(cpu.total_ns);
            receive.tracking_ns = receive.tracking_ns.wrapping_add(cpu.tracking_ns);
        }
        Ok((timings, receive))
    }
}

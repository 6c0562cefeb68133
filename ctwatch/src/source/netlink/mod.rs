//! The netlink source: ctnetlink's events and statistics, for kernels that refuse probes.
//!
//! It hears each insert and delete with its flow type, and takes drops, evictions and failed inserts from the kernel's
//! own statistics, which have none: these stand on the namespace's row for any flow type.

mod account;
pub mod entry;
mod event;
mod fate;
mod filter;
mod follower;
mod listener;
pub mod message;
mod notes;
pub mod presence;
pub(super) mod remote;
mod room;
mod setting;
mod settlement;
pub mod singles;
pub mod socket;
pub mod statistics;
pub mod table;
mod watched;
mod window;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::follower::Follower;
use self::listener::{Listener, Met, Past};
use self::presence::Missing;
use self::singles::{Asked, Singles, Told};
use super::namespaces::Roots;
use super::tables::Tables;
use super::{Source, Status, now, own_time};
use crate::kernel::plan::{Obstacle, Refusal};
use crate::model::{Cost, Filter, Sample, SourceInfo, SourceKind};
use crate::privileges::advice_for_namespaces;

/// Counts by listening to ctnetlink.
#[derive(Debug)]
pub struct Netlink {
    filter: Filter,
    /// Single events to hand over.
    asked: Option<Arc<Asked>>,
    better: String,
    info: SourceInfo,
    tables: Tables,
    own: u32,
    /// `None` while there is nothing to listen to.
    listening: Option<Listening>,
    past: Past,
    past_cost: Cost,
}

#[derive(Debug)]
struct Listening {
    listener: Arc<Listener>,
    follower: Follower,
    identity: [Option<u64>; 2],
}

impl Netlink {
    /// Prepares the source and listens at once where there is something to hear. `better` says why no better source
    /// runs.
    pub fn open(filter: Filter, better: String) -> anyhow::Result<Self> {
        Self::open_for(filter, None, better)
    }

    /// The same, with single events where they are asked for: `filter` then selects no flows, or the kernel's statistics
    /// could not be compared.
    pub fn open_for(filter: Filter, asked: Option<Arc<Asked>>, better: String) -> anyhow::Result<Self> {
        raise_descriptor_limit();
        let mut source = Self {
            filter,
            asked,
            info: SourceInfo {
                kind: SourceKind::Netlink,
                why: Some(better.clone()),
                unknown: BTreeMap::new(),
            },
            better,
            tables: Tables::new(filter.netns)?,
            own: Roots::default().own()?,
            listening: None,
            past: Past::default(),
            past_cost: Cost::default(),
        };
        match presence::check() {
            Err(missing @ (Missing::Ctnetlink | Missing::Unproven)) => {
                return Err(refusal(missing.text(), missing.way_out()).into());
            }
            // Waiting for it is what `look` is for.
            Err(Missing::Conntrack) => {}
            Ok(()) => source.listen()?,
        }
        source.inform();
        Ok(source)
    }

    fn listen(&mut self) -> anyhow::Result<()> {
        let listener = Arc::new(Listener::start().context("cannot start the thread that listens")?);
        let identity = presence::identity();
        let mut follower = Follower::new(Arc::clone(&listener), self.own, &self.filter, self.asked.clone());
        follower.look();
        let watching = listener.watching();
        if watching.namespaces.is_empty() {
            let left_out = watching.met.left_out.iter().take(3);
            let why: Vec<String> =
                left_out.map(|(netns, why)| format!("network namespace {netns}: {why}")).collect();
            let why = if why.is_empty() { "the network namespace is gone".into() } else { why.join("; ") };
            return Err(refusal(
                &format!("the right to listen to connection tracking ({why})"),
                &advice_for_namespaces("ctwatch"),
            )
            .into());
        }
        drop(watching);
        self.listening = Some(Listening { listener, follower, identity });
        Ok(())
    }

    /// Keeps what was heard and closes all sockets.
    fn stop(&mut self) {
        let Some(Listening { listener, .. }) = self.listening.take() else { return };
        listener.settle(None);
        let mut watching = listener.watching();
        let all: Vec<u32> = watching.namespaces.keys().copied().collect();
        for netns in all {
            watching.let_go(netns, false);
        }
        let past = std::mem::take(&mut watching.past);
        for (flow, counters) in past.rows {
            self.past.rows.entry(flow).or_default().add(&counters);
        }
        self.past.lost += past.lost;
        self.past.heard.add(past.heard);
        let cost = watching.cost();
        self.past_cost.run_ns += cost.run_ns;
        self.past_cost.runs += cost.runs;
    }

    /// Single events since the last time, up to this moment. At the `last` time nothing is left to wait.
    pub fn told(&mut self, last: bool) -> Told {
        let mut heard = self.past.heard.since_last();
        let mut missed = self.past.lost;
        if let Some(Listening { listener, .. }) = &self.listening {
            listener.settle(None);
            if last && listener.watching().singles().any(|singles| singles.is_waiting()) {
                // Evictions were going on. What is still open after that counts as lost.
                listener.settle(None);
            }
            let mut watching = listener.watching();
            watching.leave_out_failed();
            if last {
                watching.singles().for_each(Singles::give_up);
            }
            missed += watching.lost();
            heard.add(watching.heard());
        }
        heard.told(missed)
    }

    /// Looks for namespaces that came or went, where that is due. A stopped ctwatch asks for no sample.
    pub(super) fn follow(&mut self) {
        if presence::check().is_err() {
            self.stop();
        } else if let Some(listening) = &mut self.listening {
            listening.follower.look_if_due();
        }
    }

    /// When that is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.listening.as_ref().map(|listening| listening.follower.due())
    }

    fn inform(&mut self) {
        (self.info.why, self.info.unknown) = if let Some(Listening { listener, .. }) = &self.listening {
            let watching = listener.watching();
            let watched = watching.namespaces.values().collect();
            notes::notes(&self.better, &self.filter, &notes::Listening { watched, met: &watching.met })
        } else {
            let nothing = notes::Listening { watched: Vec::new(), met: &Met::default() };
            notes::notes(&self.better, &self.filter, &nothing)
        };
    }
}

/// Each namespace needs four descriptors. The soft limit is often 1,024; more than the hard one is not ours to take.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Where it is refused, namespaces without a descriptor are left out, and the reason is reported.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refusal(missing: &str, mend: &str) -> Refusal {
    Refusal {
        kind: SourceKind::Netlink,
        obstacles: vec![Obstacle { missing: missing.into(), mend: mend.into() }],
    }
}

impl Source for Netlink {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn look(&mut self) -> anyhow::Result<Status> {
        if let Err(missing) = presence::check() {
            self.stop();
            return Ok(Status::Waiting(format!("{}; {}", missing.text(), missing.way_out())));
        }
        if self.listening.as_ref().is_some_and(|listening| listening.identity != presence::identity()) {
            self.stop();
        }
        if let Some(listening) = &mut self.listening {
            listening.follower.look_if_due();
            self.inform();
        } else {
            match self.listen() {
                // A module can leave between the look and the listening.
                Err(_) if presence::check().is_err() => {
                    return Ok(Status::Waiting("connection tracking is being unloaded".into()));
                }
                other => other?,
            }
            self.inform();
        }
        Ok(Status::Watching)
    }

    fn sample(&mut self) -> anyhow::Result<Sample> {
        let (mut rows, mut lost) = (self.past.rows.clone(), self.past.lost);
        let mut cost = self.past_cost;
        if let Some(Listening { listener, .. }) = &self.listening {
            listener.settle(None);
            let mut watching = listener.watching();
            watching.leave_out_failed();
            for (flow, counters) in watching.rows() {
                rows.entry(flow).or_default().add(&counters);
            }
            lost += watching.lost();
            cost.run_ns += watching.cost().run_ns;
            cost.runs += watching.cost().runs;
        }
        let (wall_ns, mono_ns) = now()?;
        let tables = self.tables.read(rows.keys().map(|flow| flow.netns));
        let namespaces_left_out = self.tables.left_out();
        Ok(Sample {
            wall_ns,
            mono_ns,
            rows,
            tables,
            namespaces_left_out,
            lost,
            cost: Some(cost),
            own_ns: own_time(),
            ..Sample::default()
        })
    }
}

#[cfg(test)]
mod tests;

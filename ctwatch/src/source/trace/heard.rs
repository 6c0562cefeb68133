//! Single events by ctnetlink, where programs are refused or netlink was asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ctwatch_ebpf::{Event, Group};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::super::keeper::{self, Keeper};
use super::super::netlink::Netlink;
use super::super::netlink::singles::{Asked, Told};
use super::super::{Source as _, Status};
use crate::model::trace::{Names, Record, decode};
use crate::model::{Filter, SourceInfo};

/// How often it is asked what was heard. Whether a removal was an eviction is known some milliseconds after it.
const EVERY: Duration = Duration::from_millis(250);

/// What ctnetlink announces, one by one …
const HEARD: [Group; 3] = [Group::Insert, Group::InsertNetlink, Group::Delete];
/// … and what follows from that.
const TOLD: [Group; 4] = [Group::Insert, Group::InsertNetlink, Group::Delete, Group::EarlyDrop];

const UNANNOUNCED: &str =
    "ctnetlink announces no such packet; `ctwatch live --source netlink` shows how many the kernel counted";

/// Who listens.
#[derive(Debug)]
enum Ears {
    Here(Box<Netlink>),
    There(&'static Keeper),
}

/// Events as they are heard.
#[derive(Debug)]
pub(super) struct Heard {
    ears: Ears,
    info: SourceInfo,
    names: Names,
    ready: VecDeque<Record>,
    asking: Interval,
    pub(super) suppressed: u64,
    pub(super) lost: u64,
}

impl Heard {
    /// Listens at once where there is something to hear. `why` says why no better source runs.
    pub(super) fn open(asked: &Asked, why: String) -> anyhow::Result<Self> {
        anyhow::ensure!(
            asked.names.iter().any(|name| TOLD.contains(&name)),
            "the netlink source tells of none of these events one by one: it hears of {}, and infers early_drop from the \
             kernel's count of evictions. {UNANNOUNCED}",
            HEARD.map(Group::name).join(", ")
        );
        let filter = unselected(&asked.filter);
        // Its sockets hold namespaces: not in the process that may be stopped.
        let (ears, info) = if let Some(keeper) = keeper::get().filter(|keeper| keeper.traces(asked)) {
            (Ears::There(keeper), keeper.open(why)?)
        } else {
            let netlink = Netlink::open_for(filter, Some(Arc::new(asked.clone())), why)?;
            let info = netlink.info().clone();
            (Ears::Here(Box::new(netlink)), info)
        };
        let mut asking = interval(EVERY);
        asking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Self {
            ears,
            info: SourceInfo { unknown: [].into(), ..info.clone() },
            names: asked.names,
            ready: VecDeque::new(),
            asking,
            suppressed: 0,
            lost: 0,
        };
        heard.note(info);
        Ok(heard)
    }

    pub(super) const fn info(&self) -> &SourceInfo {
        &self.info
    }

    pub(super) fn look(&mut self) -> anyhow::Result<Status> {
        let (status, info) = match &mut self.ears {
            Ears::Here(netlink) => (netlink.look()?, netlink.info().clone()),
            Ears::There(keeper) => keeper.look()?,
        };
        self.note(info);
        Ok(status)
    }

    /// Waits until some event was heard. Nothing is lost where the waiting is given up.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        while self.ready.is_empty() {
            self.asking.tick().await;
            self.ask(false)?;
        }
        Ok(())
    }

    /// Takes what was heard up to now. At the `last` time that is all: what still waits for its cause then counts as lost.
    pub(super) fn ask(&mut self, last: bool) -> anyhow::Result<()> {
        let Told { events, suppressed, lost } = match &mut self.ears {
            Ears::Here(netlink) => netlink.told(last),
            Ears::There(keeper) => keeper.told(last)?,
        };
        (self.suppressed, self.lost) = (suppressed, lost);
        let names = self.names;
        let record =
            |(bytes, certainty): (Vec<u8>, _)| Some(Record { certainty, ..decode(&bytes, names, 0)? });
        self.ready.extend(events.into_iter().filter_map(record));
        Ok(())
    }

    pub(super) fn next(&mut self) -> Option<Record> {
        self.ready.pop_front()
    }

    /// What counting cannot tell, and what it can but no single event.
    fn note(&mut self, info: SourceInfo) {
        self.info = info;
        let announced = |event: &Event| event.groups().iter().any(|group| TOLD.contains(group));
        for event in Event::ALL.into_iter().filter(|event| !announced(event)) {
            self.info.unknown.insert(event, UNANNOUNCED.to_owned());
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        if let Ears::There(keeper) = self.ears {
            keeper.close();
        }
    }
}

/// The filter with which the netlink source listens for single events: that the kernel's statistics can be compared, all
/// flows of a namespace are heard.
pub fn unselected(filter: &Filter) -> Filter {
    Filter { netns: filter.netns, ..Filter::default() }
}

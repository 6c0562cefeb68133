//! Single events from the programs' ring buffer or by ctnetlink, with the namespace's name and the wall clock.

mod heard;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use self::heard::Heard;
pub use self::heard::unselected;
use super::channel::Channel;
pub use super::netlink::singles::Asked;
use super::probe::{Addresses, Mechanism, Probe, Wishes};
use super::tables::Tables;
use super::watch::Events;
use super::{Source as _, SourceChoice, Status, short};
use crate::model::SourceInfo;
use crate::model::trace::{Names, Record, Wanted};

/// How many events are read before the reader of our output gets them.
const BATCH: usize = 256;
/// How long a namespace's name is believed: its inode may be given to another.
const NAME_HOLDS: Duration = Duration::from_secs(5);

/// Hands out events as they come.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Tracer {
    by: By,
    /// What to trace by netlink where programs turn out to be refused.
    next: Option<Asked>,
    namespaces: Namespaces,
}

/// Who tells of events.
enum By {
    Programs(Box<Programs>),
    Netlink(Heard),
}

impl Tracer {
    /// Prepares the source and attaches at once where tracking is there.
    pub fn open(source: SourceChoice, asked: &Asked, verbose: bool) -> anyhow::Result<Self> {
        let may_listen = source.mechanism() == Some(Mechanism::Best);
        let by = match source.mechanism() {
            Some(mechanism) => match Programs::open(mechanism, asked, verbose) {
                Ok(programs) => By::Programs(Box::new(programs)),
                Err(refused) if may_listen => By::Netlink(listen(asked, &refused)?),
                Err(refused) => return Err(refused),
            },
            None => By::Netlink(Heard::open(asked, "chosen by --source netlink".into())?),
        };
        let next = may_listen.then(|| asked.clone());
        Ok(Self { by, next, namespaces: Namespaces::new(asked.filter.netns)? })
    }

    /// What runs and what it cannot tell.
    pub fn info(&self) -> &SourceInfo {
        match &self.by {
            By::Programs(programs) => programs.probe.info(),
            By::Netlink(heard) => heard.info(),
        }
    }

    /// Looks whether there is something to watch, as [`super::Source::look`] does.
    pub fn look(&mut self) -> anyhow::Result<Status> {
        let status = match &mut self.by {
            By::Programs(programs) => programs.look(),
            By::Netlink(heard) => return heard.look(),
        };
        match status {
            // What they have told of by now nobody else could continue.
            Ok(Status::Watching) => self.next = None,
            Ok(Status::Waiting(_)) => {}
            Err(refused) => {
                let Some(asked) = self.next.take() else { return Err(refused) };
                let mut heard = listen(&asked, &refused)?;
                let status = heard.look();
                self.by = By::Netlink(heard);
                return status;
            }
        }
        status
    }

    /// Waits for events and reads those that are there, a batch at most. Without anything to watch, waits for ever.
    /// Nothing is lost where the waiting is given up.
    pub async fn next(&mut self) -> anyhow::Result<Vec<(Record, String)>> {
        match &mut self.by {
            By::Programs(programs) => programs.ready().await?,
            By::Netlink(heard) => heard.ready().await?,
        }
        self.read()
    }

    /// Events that are there now, a batch at most. Empty where there are none.
    pub fn read(&mut self) -> anyhow::Result<Vec<(Record, String)>> {
        let records: Vec<Record> = match &mut self.by {
            By::Programs(programs) => programs.read()?,
            By::Netlink(heard) => std::iter::from_fn(|| heard.next()).take(BATCH).collect(),
        };
        let namespaces = &mut self.namespaces;
        let named = |record: Record| {
            let name = namespaces.name(record.netns);
            (record, name)
        };
        Ok(records.into_iter().map(named).collect())
    }

    /// How many events were held back since the start.
    pub fn suppressed(&self) -> anyhow::Result<u64> {
        match &self.by {
            By::Programs(programs) => programs.suppressed(),
            By::Netlink(heard) => Ok(heard.suppressed),
        }
    }

    /// How many events are known to have been missed.
    pub fn lost(&mut self) -> anyhow::Result<u64> {
        match &mut self.by {
            By::Programs(programs) => programs.probe.lost(),
            By::Netlink(heard) => Ok(heard.lost),
        }
    }

    /// Lets the source go; what it has handed over can still be read.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        match &mut self.by {
            By::Programs(programs) => programs.probe.close(),
            By::Netlink(heard) => heard.ask(true),
        }
    }
}

/// Traces by netlink, because programs were refused.
fn listen(asked: &Asked, refused: &anyhow::Error) -> anyhow::Result<Heard> {
    Heard::open(asked, short(refused)).map_err(|second| anyhow::anyhow!("{refused:#}\n{second:#}"))
}

/// Programs in the kernel, and their channel.
struct Programs {
    probe: Probe,
    names: Names,
    channel: Option<Waited>,
    /// Left in the ring buffer of programs that have been let go.
    left: VecDeque<Record>,
    /// Held back by those programs.
    past_suppressed: u64,
}

/// A channel that can be waited for.
struct Waited {
    ring: AsyncFd<RingBuf<MapData>>,
    channel: Channel,
    /// Whether the ring buffer was read to its end since it was last seen to hold something.
    dry: bool,
}

impl Programs {
    fn open(mechanism: Mechanism, asked: &Asked, verbose: bool) -> anyhow::Result<Self> {
        let Asked { names, per_second, filter, entries } = asked;
        let wanted =
            Wanted { names: *names, per_second: *per_second, counting: false, entries: entries.in_kernel() };
        let probe = Probe::open(Wishes {
            mechanism,
            filter: *filter,
            verbose,
            cost: false,
            trace: Some(wanted),
            addresses: Addresses::default(),
        })?;
        let mut programs =
            Self { probe, names: *names, channel: None, left: VecDeque::new(), past_suppressed: 0 };
        programs.take_channel()?;
        Ok(programs)
    }

    fn look(&mut self) -> anyhow::Result<Status> {
        let status = self.probe.look()?;
        self.take_channel()?;
        Ok(status)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        if !self.left.is_empty() {
            return Ok(());
        }
        match &mut self.channel {
            Some(channel) => channel.ready().await,
            None => std::future::pending().await,
        }
    }

    fn read(&mut self) -> anyhow::Result<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        while records.len() < BATCH
            && let Some(record) = self.left.pop_front()
        {
            records.push(record);
        }
        if let Some(channel) = &mut self.channel {
            channel.read(BATCH - records.len(), |record| records.push(record))?;
        }
        Ok(records)
    }

    fn suppressed(&self) -> anyhow::Result<u64> {
        let now = match &self.channel {
            Some(waited) => waited.channel.suppressed()?,
            None => 0,
        };
        Ok(self.past_suppressed + now)
    }

    fn take_channel(&mut self) -> anyhow::Result<()> {
        let Some(events) = self.probe.take_events() else { return Ok(()) };
        if let Some(mut old) = self.channel.take() {
            let left = &mut self.left;
            old.read(usize::MAX, |record| left.push_back(record))?;
            self.past_suppressed += old.channel.suppressed()?;
        }
        self.channel = Some(Waited::new(events, self.names)?);
        Ok(())
    }
}

impl Waited {
    fn new(events: Events, names: Names) -> anyhow::Result<Self> {
        let (ring, channel) = Channel::new(events, names)?;
        // SAFETY: the map owns its descriptor, gives out no other, and keeps it open for as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(std::io::Error::from)
            .context("cannot wait for events")?;
        Ok(Self { ring, channel, dry: true })
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        if self.dry {
            let mut guard = self.ring.readable_mut().await.context("cannot wait for events")?;
            // The next wait begins anew: what comes from here on wakes it, what is there is read first.
            guard.clear_ready();
            self.dry = false;
        }
        Ok(())
    }

    fn read(&mut self, most: usize, each: impl FnMut(Record)) -> anyhow::Result<()> {
        self.dry |= self.channel.read(self.ring.get_mut(), most, each)?;
        Ok(())
    }
}

/// Names of namespaces, as all views show them.
#[derive(Debug)]
struct Namespaces {
    tables: Tables,
    names: BTreeMap<u32, String>,
    read: Option<Instant>,
}

impl Namespaces {
    fn new(only: Option<u32>) -> anyhow::Result<Self> {
        Ok(Self { tables: Tables::new(only)?, names: BTreeMap::new(), read: None })
    }

    /// The name, or the inode in decimal where nobody knows one.
    fn name(&mut self, netns: u32) -> String {
        let fresh = self.read.is_some_and(|read| read.elapsed() < NAME_HOLDS);
        if !fresh {
            let tables = self.tables.read([netns]);
            self.names = tables.into_iter().map(|table| (table.netns, table.name)).collect();
            self.read = Some(Instant::now());
        }
        self.names.get(&netns).cloned().unwrap_or_else(|| netns.to_string())
    }
}

//! `ctwatch trace`: one line an event, as it happens.

use tokio::sync::watch;

use ctwatch_ebpf::Group;

use super::running::{
    LOOK_WHILE_WATCHING, Reader, announce, every, look_after, print, run_to_end, settle_for, settle_in,
    stdout_is_closed, stop_on_signals, stopped,
};
use super::{color, tell};
use crate::cli::{Format, TraceOptions};
use crate::model::trace::Record;
use crate::model::{SourceInfo, SourceKind};
use crate::privileges::Work;
use crate::source::trace::{Asked, Tracer};
use crate::source::{Status, keeper};
use crate::view::trace_json;
use crate::view::trace_lines::TraceLines;

/// Runs until stopped, until the count is reached or until nobody reads.
pub fn run(options: &TraceOptions) -> anyhow::Result<()> {
    if let Some(file) = &options.from {
        return super::trace_recorded::run(options, file);
    }
    if options.entries.needs_entry() && options.wanted.names.contains(Group::Drop) {
        tell("drop is left out: a refused flow has neither answers nor NAT nor a mark to filter by");
    }
    let asked = Asked {
        names: options.wanted.names,
        filter: options.filter,
        entries: options.entries.clone(),
        per_second: options.wanted.per_second,
    };
    keeper::start_tracing(&asked);
    settle_in(options.source, Work::NOTHING);
    run_to_end(async {
        // Signals first: one that comes while probes are attached must not skip the detaching.
        let stop = stop_on_signals(false)?;
        let tracer = Tracer::open(options.source, &asked, options.verbose)?;
        settle_for(tracer.info(), Work::NOTHING);
        let mut trace = Trace {
            tracer,
            view: view(options),
            out: tokio::io::stdout(),
            stop,
            left: options.count,
            suppressed: 0,
            lost: 0,
        };
        trace.watch(options).await
    })
}

pub(super) enum View {
    Json,
    Lines(TraceLines),
}

pub(super) fn view(options: &TraceOptions) -> View {
    if options.format == Format::Json {
        return View::Json;
    }
    View::Lines(TraceLines::new(jiff::tz::TimeZone::system(), color(options.color)))
}

impl View {
    pub(super) fn record(&self, record: &Record, netns_name: &str) -> String {
        match self {
            Self::Json => trace_json::record(record, netns_name),
            Self::Lines(lines) => lines.record(record, netns_name),
        }
    }

    fn suppressed(&self, count: u64) -> String {
        match self {
            Self::Json => trace_json::suppressed(count),
            Self::Lines(lines) => lines.suppressed(count),
        }
    }

    pub(super) fn lost(&self, count: u64, kind: SourceKind) -> String {
        match self {
            Self::Json => trace_json::lost(count),
            Self::Lines(lines) => lines.lost(count, kind),
        }
    }
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    /// The count was reached, or nobody reads any more.
    Home,
}

struct Trace {
    tracer: Tracer,
    view: View,
    out: tokio::io::Stdout,
    stop: watch::Receiver<bool>,
    /// How many events are still to be shown.
    left: Option<u64>,
    /// Held back and missed, as far as it was told.
    suppressed: u64,
    lost: u64,
}

impl Trace {
    async fn watch(&mut self, options: &TraceOptions) -> anyhow::Result<()> {
        let mut status = None;
        let mut looks = every(LOOK_WHILE_WATCHING);
        let mut look = true;
        loop {
            if look {
                let now = self.tracer.look()?;
                if status.as_ref() != Some(&now) {
                    let go = self.turn(&now, status.is_some(), options).await?;
                    if go == Go::Home {
                        return Ok(());
                    }
                    looks = every(look_after(&now));
                    status = Some(now);
                }
                if self.tell_counts().await? == Go::Home || stdout_is_closed() {
                    return Ok(());
                }
            }
            let go = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => break,
                _ = looks.tick() => {
                    look = true;
                    continue;
                }
                records = self.tracer.next() => {
                    look = false;
                    self.show(records?).await?
                }
            };
            match go {
                Go::On => {}
                Go::Home if self.left == Some(0) => return self.tell_counts().await.map(drop),
                Go::Home => return Ok(()),
            }
        }
        self.finish().await
    }

    /// Tells that there is something to watch, or nothing.
    async fn turn(&mut self, now: &Status, again: bool, options: &TraceOptions) -> anyhow::Result<Go> {
        match now {
            Status::Waiting(_) => {
                announce(now);
                Ok(Go::On)
            }
            Status::Watching => {
                if again {
                    announce(now);
                }
                let info = self.tracer.info();
                for name in options.wanted.names.iter() {
                    if let Some(text) = unknown(info, name) {
                        tell(&text);
                    }
                }
                let text = match &self.view {
                    View::Lines(lines) => lines.start(info, options.wanted.names, options.wanted.per_second),
                    View::Json => String::new(),
                };
                self.print(&text).await
            }
        }
    }

    async fn show(&mut self, mut records: Vec<(Record, String)>) -> anyhow::Result<Go> {
        if let Some(left) = &mut self.left {
            records.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= records.len() as u64;
        }
        let text: String = records.iter().map(|(record, name)| self.view.record(record, name)).collect();
        let go = self.print(&text).await?;
        Ok(if self.left == Some(0) { Go::Home } else { go })
    }

    /// Tells what was held back or missed since the last time, after what was shown before it.
    async fn tell_counts(&mut self) -> anyhow::Result<Go> {
        let (suppressed, lost) = (self.tracer.suppressed()?, self.tracer.lost()?);
        let mut text = String::new();
        if suppressed > self.suppressed {
            text += &self.view.suppressed(suppressed - self.suppressed);
            self.suppressed = suppressed;
        }
        if lost > self.lost {
            text += &self.view.lost(lost - self.lost, self.tracer.info().kind);
            self.lost = lost;
        }
        self.print(&text).await
    }

    /// What happened up to the moment of stopping is shown too.
    async fn finish(&mut self) -> anyhow::Result<()> {
        self.tracer.detach()?;
        loop {
            let records = self.tracer.read()?;
            if records.is_empty() {
                break;
            }
            if self.show(records).await? == Go::Home {
                return Ok(());
            }
        }
        self.tell_counts().await.map(drop)
    }

    async fn print(&mut self, text: &str) -> anyhow::Result<Go> {
        if text.is_empty() {
            return Ok(Go::On);
        }
        Ok(match print(&mut self.out, &mut self.stop, text).await? {
            Reader::Reads => Go::On,
            Reader::Gone => Go::Home,
        })
    }
}

/// What cannot be told of an event by this source, all of it or some causes, and why.
fn unknown(info: &SourceInfo, name: Group) -> Option<String> {
    let whys = || name.events().iter().map(|event| info.unknown.get(event));
    let why = whys().flatten().next()?;
    let all = whys().all(|why| why.is_some());
    Some(if all {
        format!("{} is unknown here: {why}", name.name())
    } else {
        format!("not all of {} is told apart here: {why}", name.name())
    })
}

#[cfg(test)]
mod tests {
    use ctwatch_ebpf::Event;

    use super::*;

    #[test]
    fn what_is_unknown_in_part_is_not_said_to_be_unknown() {
        let unknown_of = |events: &[Event]| {
            let whys = events.iter().map(|event| (*event, "a reason".to_owned())).collect();
            unknown(&SourceInfo { kind: SourceKind::Netlink, why: None, unknown: whys }, Group::Drop)
        };
        assert_eq!(unknown_of(&[Event::Insert]), None);
        let part = unknown_of(&[Event::DropNoMemory]).unwrap();
        assert_eq!(part, "not all of drop is told apart here: a reason");
        let all = unknown_of(&[Event::DropTableFull, Event::DropNoMemory]).unwrap();
        assert_eq!(all, "drop is unknown here: a reason");
    }
}

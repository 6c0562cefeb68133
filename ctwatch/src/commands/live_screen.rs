//! `ctwatch live` on a terminal: keys, reports and signals drive the full-screen view.

use anyhow::Context as _;
use ratatui::Terminal;
use ratatui::backend::{Backend, CrosstermBackend};
use tokio::sync::{mpsc, watch};

use ctwatch_ebpf::Group;

use super::running::{LOOK_WHILE_WAITING, LOOK_WHILE_WATCHING, every, stopped};
use super::terminal::{
    Guard, KEYS_AHEAD, Pending, Surface, Told, Tty, draw, read_keys, tell_continued, terminal,
};
use crate::model::live::{Baseline, Dump};
use crate::model::{Filter, Report, Sample, SourceKind, Tracker};
use crate::source::{Source, Status, census};
use crate::view::tui::{App, Outcome};

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Quit,
    Counted,
    /// Nobody sees the screen any more.
    Gone,
}

/// Watches until quit, stopped or counted to the end; the report is that of the last, partial interval.
///
/// The terminal is as it was before when this returns, and when it panics.
pub async fn watch_screen(
    source: &mut dyn Source,
    mut app: App,
    filter: Filter,
    count: Option<u64>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Option<Report>> {
    let pending = Pending::default();
    let backend = CrosstermBackend::new(pending.clone());
    let guard = Guard::enter()?;
    let terminal = terminal(backend).context("cannot read the terminal's size")?;
    let (tell, told) = mpsc::channel(KEYS_AHEAD);
    read_keys(tell.clone());
    tell_continued(tell.clone())?;
    // Counts from between attaching and this moment belong to the first interval; single losses are told only once.
    let first = source.sample()?;
    let tracker = Tracker::new(first.mono_ns);
    app.losses(first.losses.as_ref(), first.wall_ns);
    let tty = Tty { pending, out: tokio::io::stdout(), guard };
    let census = Census { take: census::take, filter, tell, before: None };
    let mut screen = Screen { source, app, tracker, terminal, tty, told, stop, reported: false, census };
    screen.count_entries(first);
    let end = screen.until_end(count).await?;
    Ok(if end == End::Gone { None } else { Some(screen.finish()?) })
}

/// Whether block characters can be shown: the locale says UTF-8, and it is not the kernel's own console, whose font has
/// few of them.
pub fn shows_blocks(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &&str| variable(name).filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
    let utf8 = locale.contains("utf-8") || locale.contains("utf8");
    utf8 && variable("TERM").is_none_or(|term| term != "linux")
}

/// The one reading of the tables that tells how many entries there are.
struct Census {
    take: fn(&Filter) -> Option<Dump>,
    filter: Filter,
    tell: mpsc::Sender<Told>,
    /// What had been counted when it began.
    before: Option<Sample>,
}

impl Census {
    /// Begins it on a thread of its own: it may take a while.
    fn begin(&mut self, before: Sample) {
        self.before = Some(before);
        let (take, filter, tell) = (self.take, self.filter, self.tell.clone());
        std::thread::spawn(move || {
            if let Some(dump) = take(&filter) {
                // It fails where the screen has ended.
                let _ = tell.blocking_send(Told::Counted(dump));
            }
        });
    }
}

struct Screen<'a, B: Backend, S> {
    source: &'a mut dyn Source,
    app: App,
    tracker: Tracker,
    terminal: Terminal<B>,
    tty: S,
    told: mpsc::Receiver<Told>,
    stop: watch::Receiver<bool>,
    /// Whether anything was reported yet.
    reported: bool,
    census: Census,
}

impl<B: Backend<Error: Send + Sync + 'static>, S: Surface> Screen<'_, B, S> {
    async fn until_end(&mut self, mut count: Option<u64>) -> anyhow::Result<End> {
        let mut status = Status::Watching;
        let mut ticks = every(self.app.interval());
        let mut looks = every(LOOK_WHILE_WATCHING);
        let mut look = true;
        loop {
            if std::mem::take(&mut look) {
                let was = std::mem::replace(&mut status, self.source.look()?);
                match (&was, &status) {
                    (Status::Watching, Status::Waiting(why)) => {
                        if self.reported {
                            // What was counted up to the moment of its going is a report of its own.
                            self.report(&mut count)?;
                        }
                        self.app.waiting(Some(why.clone()));
                        looks = every(LOOK_WHILE_WAITING);
                    }
                    (Status::Waiting(_), Status::Watching) => {
                        self.app.waiting(None);
                        let first = self.source.sample()?;
                        self.tracker.restart_interval(first.mono_ns);
                        self.app.losses(first.losses.as_ref(), first.wall_ns);
                        self.count_entries(first);
                        ticks = every(self.app.interval());
                        looks = every(LOOK_WHILE_WATCHING);
                    }
                    (Status::Waiting(before), Status::Waiting(why)) if before != why => {
                        self.app.waiting(Some(why.clone()));
                    }
                    _ => {}
                }
            }
            if count == Some(0) {
                return Ok(End::Counted);
            }
            draw(&mut self.terminal, &self.app).context("cannot draw")?;
            if !self.tty.show(&mut self.stop).await? {
                return Ok(End::Gone);
            }
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(End::Quit),
                Some(told) = self.told.recv() => match self.hear(told)? {
                    Outcome::Quit => return Ok(End::Quit),
                    Outcome::Interval(interval) => ticks = every(interval),
                    _ => {}
                },
                _ = ticks.tick(), if status == Status::Watching => self.report(&mut count)?,
                _ = looks.tick() => look = true,
            }
        }
    }

    /// Has the tables read once, where the source tells exactly what comes and goes from then on.
    fn count_entries(&mut self, before: Sample) {
        let info = self.source.info();
        let exact = matches!(info.kind, SourceKind::Fexit | SourceKind::Kprobe)
            && [Group::Insert, Group::Delete]
                .iter()
                .flat_map(|sum| sum.parts())
                .all(|event| !info.unknown.contains_key(event));
        if exact {
            self.census.begin(before);
        }
    }

    fn hear(&mut self, told: Told) -> anyhow::Result<Outcome> {
        let outcome = match told {
            Told::Key(key) => self.app.key(key),
            Told::Resized => Outcome::Draw,
            Told::Counted(dump) => {
                if let Some(before) = self.census.before.take() {
                    let after = self.source.sample()?;
                    self.app.losses(after.losses.as_ref(), after.wall_ns);
                    self.app.baseline(Baseline::new(&dump, &before, &after));
                }
                Outcome::Draw
            }
            Told::Continued => {
                self.tty.resume()?;
                Outcome::Redraw
            }
        };
        match outcome {
            Outcome::Redraw => self.terminal.clear().context("cannot draw")?,
            Outcome::Suspend => self.tty.suspend()?,
            _ => {}
        }
        Ok(outcome)
    }

    fn report(&mut self, count: &mut Option<u64>) -> anyhow::Result<()> {
        let report = self.tracker.advance(self.source.sample()?);
        self.app.report(report, self.source.info());
        self.reported = true;
        *count = count.map(|left| left.saturating_sub(1));
        Ok(())
    }

    /// The exact totals at the end.
    fn finish(mut self) -> anyhow::Result<Report> {
        Ok(self.tracker.advance(self.source.sample()?))
    }
}

#[cfg(test)]
#[path = "live_screen_tests.rs"]
mod tests;

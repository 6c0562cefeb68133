//! `ctwatch live` on a terminal: keys, reports and signals drive the full-screen view.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::crossterm::event::{self, Event, KeyEvent};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};
use tokio::io::AsyncWrite;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use ctwatch_ebpf::Group;

use super::running::{self, LOOK_WHILE_WAITING, LOOK_WHILE_WATCHING, every, stopped};
use crate::model::live::{Baseline, Dump};
use crate::model::{Filter, Report, Sample, SourceKind, Tracker};
use crate::source::{Source, Status, census};
use crate::view::tui::{self, App, Outcome};

/// Keys typed ahead of the screen; more wait in the terminal.
const KEYS_AHEAD: usize = 16;

/// What the terminal tells.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Key(KeyEvent),
    Resized,
    /// What the tables held a moment ago.
    Counted(Dump),
    /// Continued after a stop: a shell may have changed the terminal meanwhile.
    Continued,
}

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

/// A serial line has no size of its own (0 by 0) until somebody sets it: then the one that every terminal has.
fn terminal<B: Backend>(backend: B) -> Result<Terminal<B>, B::Error> {
    if backend.size()?.area() > 0 {
        return Terminal::new(backend);
    }
    let viewport = Viewport::Fixed(Rect::new(0, 0, 80, 24));
    Terminal::with_options(backend, TerminalOptions { viewport })
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

/// Reads the terminal on a thread of its own: it ends with the process, since a read cannot be called off.
fn read_keys(tell: mpsc::Sender<Told>) {
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let told = match event {
                Event::Key(key) => Told::Key(key),
                Event::Resize(..) => Told::Resized,
                _ => continue,
            };
            if tell.blocking_send(told).is_err() {
                break;
            }
        }
    });
}

fn tell_continued(tell: mpsc::Sender<Told>) -> anyhow::Result<()> {
    let kind = SignalKind::from_raw(nix::sys::signal::Signal::SIGCONT as i32);
    let mut continued = signal(kind).context("cannot handle SIGCONT")?;
    tokio::spawn(async move {
        while continued.recv().await.is_some() && tell.send(Told::Continued).await.is_ok() {}
    });
    Ok(())
}

/// What ratatui has drawn and the terminal has not got yet. Written by the loop, which can still be stopped while a
/// terminal takes nothing.
#[derive(Clone, Debug, Default)]
struct Pending(Rc<RefCell<Vec<u8>>>);

impl io::Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the terminal in raw mode and on its other screen; dropping it, in a panic too, gives the terminal back.
struct Guard {
    /// Whether the terminal takes nothing: then only its mode is set back, which waits for nobody.
    stuck: bool,
}

impl Guard {
    fn enter() -> anyhow::Result<Self> {
        let guard = Self { stuck: false };
        enter()?;
        // The message of a panic would be drawn over, or be lost with the other screen.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            before(panic);
        }));
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.stuck {
            let _ = disable_raw_mode();
        } else {
            leave();
        }
    }
}

/// Whether the terminal is on its other screen. Leaving that twice would put the cursor back to where it was when it was
/// entered, over what was written since.
static ENTERED: AtomicBool = AtomicBool::new(false);

fn enter() -> anyhow::Result<()> {
    enable_raw_mode().context("cannot set the terminal to raw mode")?;
    ENTERED.store(true, Ordering::Relaxed);
    execute!(io::stdout(), EnterAlternateScreen, cursor::Hide).context("cannot write to the terminal")
}

fn leave() {
    // Nothing can be done where this fails: the terminal is gone.
    let _ = disable_raw_mode();
    if !ENTERED.swap(false, Ordering::Relaxed) {
        return;
    }
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
}

/// Where the screen goes.
trait Surface {
    /// Brings what was drawn to the terminal; false where nobody sees it any more.
    async fn show(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<bool>;

    /// Hands the terminal to the shell until continued.
    fn suspend(&mut self) -> anyhow::Result<()>;

    /// Takes the terminal back after a stop.
    fn resume(&mut self) -> anyhow::Result<()>;
}

struct Tty<W> {
    pending: Pending,
    out: W,
    guard: Guard,
}

impl<W: AsyncWrite + Unpin> Surface for Tty<W> {
    async fn show(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<bool> {
        let bytes = std::mem::take(&mut *self.pending.0.borrow_mut());
        match running::write(&mut self.out, stop, &bytes).await {
            Some(Ok(())) => Ok(true),
            // SIGHUP is on its way, or was not meant for us.
            Some(Err(error)) if super::nobody_reads(&error) => Ok(false),
            Some(Err(error)) => Err(error).context("cannot write to the terminal"),
            None => {
                self.guard.stuck = true;
                Ok(false)
            }
        }
    }

    fn suspend(&mut self) -> anyhow::Result<()> {
        leave();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTSTP).context("cannot stop")
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        enter()
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
            let app = &self.app;
            self.terminal.draw(|frame| tui::draw(frame, app)).context("cannot draw")?;
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

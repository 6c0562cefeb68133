//! `ctwatch live`: reports at each interval until stopped.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use super::{live_screen, tell};
use crate::cli::{Format, Options};
use crate::model::Tracker;
use crate::source::{self, Source, Status};
use crate::view::json::Json;
use crate::view::lines::Lines;
use crate::view::tui::{App, Settings, Theme};
use crate::view::{Machine, View};

/// How soon the appearance of connection tracking is seen.
const LOOK_WHILE_WAITING: Duration = Duration::from_millis(200);
/// How soon it is seen that it went away, or went away and came back.
const LOOK_WHILE_WATCHING: Duration = Duration::from_secs(1);
/// How long a reader that does not read may hold up our end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs until stopped, until the count is reached or until nobody reads.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let options = &Options { format: format(options), ..options.clone() };
    let ended = runtime.block_on(async {
        // Signals first: one that comes while probes are attached must not skip the detaching.
        let stop = stop_on_signals(options.format == Format::Screen)?;
        let mut source = source::open(options)?;
        if options.format == Format::Screen {
            return screen(&mut *source, options, stop).await;
        }
        let mut view = view(options)?;
        watch(&mut *source, options, &mut *view, tokio::io::stdout(), stdout_is_closed, stop).await
    });
    // A write that hangs on a reader that does not read would otherwise be waited for.
    runtime.shutdown_background();
    ended
}

/// What `Auto` comes to: the screen where somebody looks at it and nothing else writes there.
fn format(options: &Options) -> Format {
    let logs = options.verbose && io::stderr().is_terminal();
    match options.format {
        Format::Auto if io::stdout().is_terminal() && io::stdin().is_terminal() && !logs => Format::Screen,
        Format::Auto => Format::Plain,
        named => named,
    }
}

/// The full-screen view, then the exact totals where a shell can show them.
async fn screen(
    source: &mut dyn Source,
    options: &Options,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let settings = Settings {
        machine: machine()?,
        zone: jiff::tz::TimeZone::system(),
        theme: Theme {
            color: color(options),
            blocks: live_screen::shows_blocks(|name| std::env::var(name).ok()),
        },
    };
    let app = App::new(settings, source.info().clone(), options.interval);
    if let Some(last) = live_screen::watch_screen(source, app, options.filter, options.count, stop).await? {
        super::print(view(options)?.end(&last, source.info()).as_bytes())?;
    }
    Ok(())
}

pub(super) fn machine() -> anyhow::Result<Machine> {
    let host = nix::unistd::gethostname().context("cannot read the host name")?;
    let system = nix::sys::utsname::uname().context("cannot read the kernel release")?;
    Ok(Machine {
        host: host.to_string_lossy().into_owned(),
        kernel: system.release().to_string_lossy().into_owned(),
    })
}

fn color(options: &Options) -> bool {
    // NO_COLOR counts when it is set to anything but nothing (no-color.org).
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    options.color && !refused && io::stdout().is_terminal()
}

fn view(options: &Options) -> anyhow::Result<Box<dyn View>> {
    let machine = machine()?;
    Ok(match options.format {
        Format::Json => Box::new(Json::new(machine)),
        Format::Plain | Format::Auto | Format::Screen => {
            Box::new(Lines::new(machine, jiff::tz::TimeZone::system(), color(options)))
        }
    })
}

/// Becomes true on SIGINT or SIGTERM, and with a screen, which ends with its terminal, on SIGHUP and SIGQUIT. Without one
/// SIGHUP is left as it is: `nohup` has it ignored.
pub(super) fn stop_on_signals(screen: bool) -> anyhow::Result<watch::Receiver<bool>> {
    let (stop, stopped) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let of_screen = |kind| if screen { signal(kind).map(Some) } else { Ok(None) };
    let mut hangup = of_screen(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let mut quit = of_screen(SignalKind::quit()).context("cannot handle SIGQUIT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            Some(()) = received(&mut hangup) => {}
            Some(()) = received(&mut quit) => {}
        }
        // It fails when the watching has ended already.
        let _ = stop.send(true);
    });
    Ok(stopped)
}

/// Never where the signal is not handled here.
async fn received(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody can say stop any more, which the signal task does only after it has said so.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whether stdout is a pipe or socket that nobody reads any more; seen without writing to it.
pub(super) fn stdout_is_closed() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Whether the reader still takes what we write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    Reads,
    Gone,
}

/// Why the loop ended.
enum End {
    Stopped,
    Counted,
    ReaderGone,
}

struct Watch<'a, W> {
    source: &'a mut dyn Source,
    view: &'a mut dyn View,
    tracker: Tracker,
    out: W,
    stop: watch::Receiver<bool>,
    started: bool,
}

/// The loop itself, on any source, view and writer.
async fn watch<W: AsyncWrite + Unpin>(
    source: &mut dyn Source,
    options: &Options,
    view: &mut dyn View,
    out: W,
    reader_is_gone: impl Fn() -> bool,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    // Counts from between attaching and this moment belong to the first interval.
    let tracker = Tracker::new(source.sample()?.mono_ns);
    let mut watch = Watch { source, view, tracker, out, stop, started: false };
    match watch.until_end(options, reader_is_gone).await? {
        End::ReaderGone => Ok(()),
        End::Counted => watch.finish(false).await,
        End::Stopped => watch.finish(true).await,
    }
}

impl<W: AsyncWrite + Unpin> Watch<'_, W> {
    async fn until_end(
        &mut self,
        options: &Options,
        reader_is_gone: impl Fn() -> bool,
    ) -> anyhow::Result<End> {
        let mut left = options.count;
        let mut status = Status::Watching;
        let mut ticks = every(options.interval);
        let mut looks = every(LOOK_WHILE_WATCHING);
        let mut look_now = true;
        loop {
            if look_now {
                let was = std::mem::replace(&mut status, self.source.look()?);
                match (&was, &status) {
                    (Status::Watching, Status::Waiting(why)) => {
                        tell(why);
                        // What was counted up to the moment of its going is a report of its own.
                        if self.started && self.report(&mut left).await? == Reader::Gone {
                            return Ok(End::ReaderGone);
                        }
                        looks = every(LOOK_WHILE_WAITING);
                    }
                    (Status::Waiting(_), Status::Watching) => {
                        tell("connection tracking is loaded: watching");
                        self.tracker.restart_interval(self.source.sample()?.mono_ns);
                        ticks = every(options.interval);
                        looks = every(LOOK_WHILE_WATCHING);
                    }
                    _ => {}
                }
                if status == Status::Watching && self.start().await? == Reader::Gone || reader_is_gone() {
                    return Ok(End::ReaderGone);
                }
            }
            if left == Some(0) {
                return Ok(End::Counted);
            }
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(End::Stopped),
                _ = ticks.tick(), if status == Status::Watching => {
                    look_now = false;
                    if self.report(&mut left).await? == Reader::Gone {
                        return Ok(End::ReaderGone);
                    }
                }
                _ = looks.tick() => look_now = true,
            }
        }
    }

    async fn start(&mut self) -> anyhow::Result<Reader> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(Reader::Reads);
        }
        let text = self.view.start(self.source.info());
        self.print(&text).await
    }

    async fn report(&mut self, left: &mut Option<u64>) -> anyhow::Result<Reader> {
        let report = self.tracker.advance(self.source.sample()?);
        let text = self.view.report(&report, self.source.info());
        *left = left.map(|left| left.saturating_sub(1));
        self.print(&text).await
    }

    /// The last partial interval, where there is one, then what the view says at its end.
    async fn finish(&mut self, partial: bool) -> anyhow::Result<()> {
        if self.start().await? == Reader::Gone {
            return Ok(());
        }
        let mut text = String::new();
        let report = self.tracker.advance(self.source.sample()?);
        if partial {
            text += &self.view.report(&report, self.source.info());
        }
        text += &self.view.end(&report, self.source.info());
        self.print(&text).await?;
        Ok(())
    }

    async fn print(&mut self, text: &str) -> anyhow::Result<Reader> {
        print(&mut self.out, &mut self.stop, text).await
    }
}

/// Writes and flushes. A reader that does not read delays the end by no more than [`PATIENCE`].
pub(super) async fn print(
    out: &mut (impl AsyncWrite + Unpin),
    stop: &mut watch::Receiver<bool>,
    text: &str,
) -> anyhow::Result<Reader> {
    let mut writing = pin!(async {
        out.write_all(text.as_bytes()).await?;
        out.flush().await
    });
    let written = tokio::select! {
        biased;
        written = &mut writing => written,
        () = stopped(stop) => match timeout(PATIENCE, writing).await {
            Ok(written) => written,
            Err(_) => return Ok(Reader::Gone),
        },
    };
    match written {
        Ok(()) => Ok(Reader::Reads),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

pub(super) fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;

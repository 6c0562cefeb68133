//! `ctwatch live`: reports at each interval until stopped.

use std::io::{self, IsTerminal as _};

use tokio::io::AsyncWrite;
use tokio::sync::watch;

use super::running::{
    LOOK_WHILE_WATCHING, Reader, announce, every, look_after, print, run_to_end, settle_for, settle_in,
    stdout_is_closed, stop_on_signals, stopped,
};
use super::{color, live_screen, machine, tell};
use crate::cli::{Format, Options};
use crate::model::Tracker;
use crate::privileges::Work;
use crate::source::{self, Source, Status, keeper};
use crate::view::View;
use crate::view::json::Json;
use crate::view::lines::Lines;
use crate::view::tui::{App, Settings, Theme};

/// Runs until stopped, until the count is reached or until nobody reads.
pub fn run(options: &Options) -> anyhow::Result<()> {
    keeper::start(&options.filter);
    let options = &Options { format: format(options), ..options.clone() };
    // The screen lists the tables by ctnetlink, later and in a thread of its own.
    let beside = Work { namespaces: options.format == Format::Screen, ..Work::NOTHING };
    settle_in(options.source, beside);
    run_to_end(async {
        // Signals first: one that comes while probes are attached must not skip the detaching.
        let stop = stop_on_signals(options.format == Format::Screen)?;
        let mut source = source::open(&options.needs())?;
        settle_for(source.info(), beside);
        if options.format == Format::Screen {
            return screen(&mut *source, options, stop).await;
        }
        let mut view = view(options)?;
        watch(&mut *source, options, &mut *view, tokio::io::stdout(), stdout_is_closed, stop).await
    })
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
            color: color(options.color),
            blocks: live_screen::shows_blocks(|name| std::env::var(name).ok()),
        },
    };
    let app = App::new(settings, source.info().clone(), options.interval);
    if let Some(last) = live_screen::watch_screen(source, app, options.filter, options.count, stop).await? {
        super::print(view(options)?.end(&last, source.info()).as_bytes())?;
    }
    Ok(())
}

pub(super) fn view(options: &Options) -> anyhow::Result<Box<dyn View>> {
    let machine = machine()?;
    Ok(match options.format {
        Format::Json => Box::new(Json::new(machine)),
        Format::Plain | Format::Auto | Format::Screen => {
            Box::new(Lines::new(machine, jiff::tz::TimeZone::system(), color(options.color)))
        }
    })
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
    why: Option<String>,
}

/// The loop itself, on any source, view and writer.
pub(super) async fn watch<W: AsyncWrite + Unpin>(
    source: &mut dyn Source,
    options: &Options,
    view: &mut dyn View,
    out: W,
    reader_is_gone: impl Fn() -> bool,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    // Counts from between attaching and this moment belong to the first interval.
    let tracker = Tracker::new(source.sample()?.mono_ns);
    let mut watch = Watch { source, view, tracker, out, stop, started: false, why: None };
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
                    (Status::Watching, Status::Waiting(_)) => {
                        announce(&status);
                        // What was counted up to the moment of its going is a report of its own.
                        if self.started && self.report(&mut left).await? == Reader::Gone {
                            return Ok(End::ReaderGone);
                        }
                        looks = every(look_after(&status));
                    }
                    (Status::Waiting(_), Status::Watching) => {
                        announce(&status);
                        self.tracker.restart_interval(self.source.sample()?.mono_ns);
                        ticks = every(options.interval);
                        looks = every(look_after(&status));
                    }
                    _ => {}
                }
                self.tell_news();
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

    /// What the source has said of itself since the start was shown: it may have had to leave something out.
    fn tell_news(&mut self) {
        let why = &self.source.info().why;
        if self.started
            && *why != self.why
            && let Some(why) = why
        {
            tell(why);
        }
        self.why.clone_from(why);
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

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;

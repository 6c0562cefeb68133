//! `ctwatch export`: readings at each interval, published for Prometheus until stopped.

mod http;
mod listen;
mod page;
mod textfile;

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;

use self::page::Page;
use self::textfile::Textfile;
use super::running::{
    announce, every, look_after, run_to_end, settle_for, settle_in, stop_on_signals, stopped,
};
use super::tell;
use crate::cli::{ExportOptions, Listen, Outlet};
use crate::model::Tracker;
use crate::model::series::{Series, Totals};
use crate::privileges::Work;
use crate::source::{self, Source, Status, keeper};
use crate::view::openmetrics::Build;

/// Which ctwatch this is. A package says which commit it was built from.
const BUILD: Build = Build {
    version: env!("CARGO_PKG_VERSION"),
    revision: match option_env!("CTWATCH_REVISION") {
        Some(revision) => revision,
        None => "unknown",
    },
};

/// Runs until stopped.
pub fn run(options: &ExportOptions) -> anyhow::Result<()> {
    keeper::start(&options.needs.filter);
    let files = match &options.outlet {
        Outlet::Textfile(_) => true,
        // The file of a Unix socket is removed at the end.
        Outlet::Http(places) => places.iter().any(|place| matches!(place, Listen::Unix(_))),
    };
    let beside = Work { writes: files, serves: true, ..Work::NOTHING };
    run_to_end(async {
        // Signals first: one that comes while probes are attached must not skip the detaching.
        let stop = stop_on_signals(false)?;
        // Before anything is attached: an address that is taken needs no probes to be found out.
        let outlet = match &options.outlet {
            Outlet::Http(places) => Out::Http(listen::open(places)?),
            Outlet::Textfile(path) => Out::Textfile(Textfile::new(path)?),
        };
        // After that: a low port, or a socket in another user's directory, takes rights.
        settle_in(options.needs.source, beside);
        let mut source = source::open(&options.needs)?;
        settle_for(source.info(), beside);
        export(&mut *source, options, outlet, stop).await
    })
}

/// Where pages go.
enum Out {
    Http(Vec<listen::Listener>),
    Textfile(Textfile),
}

/// The loop itself, on any source.
async fn export(
    source: &mut dyn Source,
    options: &ExportOptions,
    mut out: Out,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let interval = options.interval;
    let mut status = source.look()?;
    let mut tracker = Tracker::new(source.sample()?.mono_ns);
    let mut series = Series::new(options.bounds);
    let mut read = |source: &mut dyn Source, status: &Status| {
        let sample = source.sample()?;
        let totals = Totals::of(&sample);
        let report = tracker.advance(sample);
        let watching = *status == Status::Watching;
        anyhow::Ok(Page::new(series.expose(&report, &totals, source.info(), watching), BUILD, interval))
    };
    let (publish, published) = watch::channel(read(source, &status)?);
    begin(&mut out, &published, &status)?;
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let mut writes = Writes::default();
    let mut ticks = every(interval);
    let mut looks = every(look_after(&status));
    let mut alive = every(alive_after(sd_notify::watchdog_enabled()));
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            _ = ticks.tick() => {
                let page = read(source, &status)?;
                if let Out::Textfile(file) = &mut out {
                    // A disk that is full now may have room at the next reading, and totals live as long as we do.
                    writes.note(file.replace(page.prometheus()));
                }
                publish.send_replace(page);
            }
            _ = looks.tick() => {
                let now = source.look()?;
                if now != status {
                    announce(&now);
                    looks = every(look_after(&now));
                }
                status = now;
            }
            // Only where the readings go on: this arm comes after them.
            _ = alive.tick() => {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
        }
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    if let Out::Textfile(file) = &mut out {
        file.replace(read(source, &status)?.prometheus())?;
    }
    Ok(())
}

/// Serves, or writes the first page; then says so.
fn begin(out: &mut Out, published: &watch::Receiver<Page>, status: &Status) -> anyhow::Result<()> {
    match out {
        Out::Http(listeners) => {
            let places: Vec<String> = listeners.iter().map(listen::Listener::place).collect();
            http::serve(std::mem::take(listeners), published);
            tell(&format!("metrics at {}", places.join(", ")));
        }
        Out::Textfile(file) => {
            file.replace(published.borrow().prometheus())?;
            tell(&format!("metrics in {}", file.path().display()));
        }
    }
    if matches!(status, Status::Waiting(_)) {
        announce(status);
    }
    Ok(())
}

/// Reports the first of a row of failed writes.
#[derive(Default)]
struct Writes {
    failing: bool,
}

impl Writes {
    fn note(&mut self, outcome: anyhow::Result<()>) {
        let was_failing = std::mem::replace(&mut self.failing, outcome.is_err());
        if let Err(error) = outcome
            && !was_failing
        {
            tell(&format!("{error:#}; trying again"));
        }
    }
}

/// How often to report to systemd's watchdog: twice in the time that it allows, and never where there is no watchdog.
fn alive_after(allowed: Option<Duration>) -> Duration {
    /// tokio's timer takes no longer time.
    const NEVER: Duration = Duration::from_hours(24 * 365);
    allowed.map_or(NEVER, |allowed| (allowed / 2).max(Duration::from_millis(1)))
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;

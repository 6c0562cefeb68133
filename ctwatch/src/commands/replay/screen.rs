//! A recording on the screen of `live`: played, held, and gone through by keys.

use std::time::Duration;

use anyhow::Context as _;
use ctwatch_ebpf::Group;
use ratatui::Terminal;
use ratatui::backend::{Backend, CrosstermBackend};
use tokio::sync::{mpsc, watch};

use super::super::live_screen::shows_blocks;
use super::super::running::{every, stopped};
use super::super::terminal::{
    Guard, KEYS_AHEAD, Pending, Surface, Told, Tty, draw, read_keys, tell_continued, terminal,
};
use super::film::Film;
use crate::model::Report;
use crate::record::{Session, Step};
use crate::view::Machine;
use crate::view::tui::{App, Control, Outcome, Playing, Settings, Theme};

/// How often the screen is drawn while it plays.
const FRAME: Duration = Duration::from_millis(50);
/// How many times as fast as it was.
const SPEEDS: [u32; 9] = [1, 2, 5, 10, 30, 60, 120, 300, 1000];
/// Taken in at most between two drawings: keys must not wait.
const AT_ONCE: usize = 500;

/// Plays until quit or stopped.
pub(super) async fn play(mut film: Film, color: bool, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let first = film.peek()?.context("there is no report in this part of the recording")?.session.clone();
    let settings = Settings {
        machine: machine(&first),
        zone: jiff::tz::TimeZone::system(),
        theme: Theme { color, blocks: shows_blocks(|name| std::env::var(name).ok()) },
    };
    let app = App::of_recording(settings.clone(), first.info);
    let pending = Pending::default();
    let backend = CrosstermBackend::new(pending.clone());
    let guard = Guard::enter()?;
    let terminal = terminal(backend).context("cannot read the terminal's size")?;
    let (tell, told) = mpsc::channel(KEYS_AHEAD);
    read_keys(tell.clone());
    tell_continued(tell)?;
    let tty = Tty { pending, out: tokio::io::stdout(), guard };
    Player::new(film, app, settings.zone, terminal, tty, told, stop).until_end().await
}

fn machine(session: &Session) -> Machine {
    Machine { host: session.host.clone(), kernel: session.kernel.clone() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Held,
    Playing,
    /// Looks for the next loss.
    Searching,
}

struct Player<B: Backend, S> {
    film: Film,
    app: App,
    zone: jiff::tz::TimeZone,
    terminal: Terminal<B>,
    tty: S,
    told: mpsc::Receiver<Told>,
    stop: watch::Receiver<bool>,
    mode: Mode,
    /// Its place in [`SPEEDS`].
    speed: usize,
    /// Time played that no report has taken yet.
    owed: Duration,
    /// The run and the report that are shown.
    run: Option<u64>,
    shown: Option<i128>,
    note: Option<String>,
}

impl<B: Backend<Error: Send + Sync + 'static>, S: Surface> Player<B, S> {
    fn new(
        film: Film,
        app: App,
        zone: jiff::tz::TimeZone,
        terminal: Terminal<B>,
        tty: S,
        told: mpsc::Receiver<Told>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            film,
            app,
            zone,
            terminal,
            tty,
            told,
            stop,
            mode: Mode::Playing,
            speed: 0,
            owed: Duration::ZERO,
            run: None,
            shown: None,
            note: None,
        }
    }

    async fn until_end(&mut self) -> anyhow::Result<()> {
        let first = self.film.begin()?;
        self.show(first);
        let mut ticks = every(FRAME);
        loop {
            self.app.plays(Playing { state: self.state(), note: self.note.clone() });
            draw(&mut self.terminal, &self.app).context("cannot draw")?;
            if !self.tty.show(&mut self.stop).await? {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(()),
                Some(told) = self.told.recv() => if self.hear(&told)? == Outcome::Quit {
                    return Ok(());
                },
                _ = ticks.tick(), if self.mode != Mode::Held => match self.mode {
                    Mode::Playing => self.go_on(FRAME * SPEEDS[self.speed])?,
                    _ => self.search()?,
                },
            }
        }
    }

    fn state(&self) -> String {
        match self.mode {
            Mode::Held => "HELD".to_owned(),
            Mode::Playing => format!("PLAY {}x", SPEEDS[self.speed]),
            Mode::Searching => "SEARCHING".to_owned(),
        }
    }

    fn hear(&mut self, told: &Told) -> anyhow::Result<Outcome> {
        let outcome = match told {
            Told::Key(key) => {
                self.note = None;
                self.app.key(*key)
            }
            Told::Continued => {
                self.tty.resume()?;
                Outcome::Redraw
            }
            Told::Resized | Told::Counted(_) => Outcome::Draw,
        };
        let plays = self.mode == Mode::Playing;
        match &outcome {
            Outcome::Redraw => self.terminal.clear().context("cannot draw")?,
            Outcome::Suspend => self.tty.suspend()?,
            Outcome::Replay(control) => self.control(*control)?,
            Outcome::GoTo(typed) => self.go_to(typed)?,
            _ => {}
        }
        if !plays || self.mode != Mode::Playing {
            self.owed = Duration::ZERO;
        }
        Ok(outcome)
    }

    fn control(&mut self, control: Control) -> anyhow::Result<()> {
        match control {
            Control::Play => self.mode = if self.mode == Mode::Held { Mode::Playing } else { Mode::Held },
            Control::Faster => self.speed = (self.speed + 1).min(SPEEDS.len() - 1),
            Control::Slower => self.speed = self.speed.saturating_sub(1),
            Control::NextLoss => self.mode = Mode::Searching,
            Control::StepOn => {
                self.mode = Mode::Held;
                match self.film.take()? {
                    Some(step) => self.take_in(step),
                    None => self.at_end(),
                }
            }
            Control::StepBack => {
                self.mode = Mode::Held;
                let steps = self.film.back()?;
                self.jump(steps);
            }
            Control::Begin => {
                let steps = self.film.begin()?;
                self.jump(steps);
            }
            Control::End => {
                let steps = self.film.end()?;
                self.jump(steps);
            }
        }
        Ok(())
    }

    /// Shows the report at this time, as typed.
    fn go_to(&mut self, typed: &str) -> anyhow::Result<()> {
        match time(typed, self.shown, &self.zone) {
            Some(wall_ns) => {
                let steps = self.film.go_to(wall_ns)?;
                self.jump(steps);
            }
            None => self.note = Some(format!("`{typed}` is no time")),
        }
        Ok(())
    }

    /// Plays this much of it.
    fn go_on(&mut self, time: Duration) -> anyhow::Result<()> {
        self.owed = self.owed.saturating_add(time);
        for _ in 0..AT_ONCE {
            let Some(next) = self.film.peek()? else {
                self.at_end();
                break;
            };
            let takes = next.report.elapsed;
            let Some(left) = self.owed.checked_sub(takes) else { return Ok(()) };
            self.owed = left;
            if let Some(step) = self.film.take()? {
                self.take_in(step);
            }
        }
        // What could not be taken in at once is not made up for.
        self.owed = Duration::ZERO;
        Ok(())
    }

    fn search(&mut self) -> anyhow::Result<()> {
        for _ in 0..AT_ONCE {
            let Some(step) = self.film.take()? else {
                self.at_end();
                self.note = Some("no loss from there to the end of the recording".to_owned());
                break;
            };
            let found = has_loss(&step.report);
            self.take_in(step);
            if found {
                self.mode = Mode::Held;
                break;
            }
        }
        Ok(())
    }

    fn at_end(&mut self) {
        self.mode = Mode::Held;
        self.note = Some("this is the end of the recording".to_owned());
    }

    /// Shows the last of these reports; those before it are its past.
    fn jump(&mut self, steps: Vec<Step>) {
        self.run = None;
        self.show(steps);
    }

    fn show(&mut self, steps: Vec<Step>) {
        for step in steps {
            self.take_in(step);
        }
    }

    fn take_in(&mut self, step: Step) {
        if self.run.replace(step.session.id) != Some(step.session.id) {
            self.app.begin(machine(&step.session), step.session.info.clone());
        }
        self.shown = Some(step.report.wall_ns);
        self.app.report(step.report, &step.session.info);
    }
}

fn has_loss(report: &Report) -> bool {
    let lossy = |counts| Group::ALL.into_iter().any(|group| group.is_loss() && group.of(counts) > 0);
    report.flows.iter().any(|flow| lossy(&flow.counts))
}

/// A time as typed, nanoseconds since the Unix epoch: one of the day that is shown, or with its date, or with its zone.
fn time(typed: &str, shown: Option<i128>, zone: &jiff::tz::TimeZone) -> Option<i128> {
    if let Ok(time) = typed.parse::<jiff::Timestamp>() {
        return Some(time.as_nanosecond());
    }
    let civil = match typed.parse::<jiff::civil::Time>() {
        Ok(time) => {
            let shown = jiff::Timestamp::from_nanosecond(shown?).ok()?;
            shown.to_zoned(zone.clone()).date().to_datetime(time)
        }
        Err(_) => typed.parse().ok()?,
    };
    Some(civil.to_zoned(zone.clone()).ok()?.timestamp().as_nanosecond())
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;

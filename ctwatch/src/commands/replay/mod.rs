//! `ctwatch replay`: what `live` would have shown, from a recording.

mod against;
mod film;
mod screen;

use std::io::{self, IsTerminal as _};

use self::film::Film;
use super::running::{Reader as Reads, print, run_to_end, stop_on_signals};
use super::{color, tell};
use crate::cli::{Format, ReplayArgs};
use crate::model::Report;
use crate::privileges::{self, Work};
use crate::record::{Reader, Session, Step};
use crate::view::json::Json;
use crate::view::lines::Lines;
use crate::view::{Machine, View};

/// Shows the recording on the screen where somebody looks at one, and prints it otherwise. With another one, it prints
/// what changed.
pub fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let reader = Reader::open(&args.file)?;
    if let Some(other) = &args.against {
        let against = Reader::open(other)?;
        privileges::restrict(Work::NOTHING);
        return against::run(args, reader, against, &other.to_string_lossy());
    }
    privileges::restrict(Work::NOTHING);
    let seen = io::stdout().is_terminal() && io::stdin().is_terminal();
    match args.format() {
        Format::Auto if seen => run_to_end(async {
            let stop = stop_on_signals(true)?;
            let film = Film::new(reader, args.from, args.to);
            screen::play(film, color(!args.output.no_color), stop).await
        }),
        _ => print_all(args, reader),
    }
}

/// Prints it until its end, until stopped or until nobody reads.
fn print_all(args: &ReplayArgs, mut reader: Reader) -> anyhow::Result<()> {
    run_to_end(async {
        let mut stop = stop_on_signals(false)?;
        let mut out = tokio::io::stdout();
        let mut player = Player { args, run: None };
        while let Some(step) = reader.next_step()? {
            // Nothing below waits where stdout takes it all at once: signals need a turn, too.
            tokio::task::yield_now().await;
            if *stop.borrow() {
                return Ok(());
            }
            if !step.is_within(args.from, args.to) {
                continue;
            }
            if print(&mut out, &mut stop, &player.step(step)).await? == Reads::Gone {
                return Ok(());
            }
        }
        print(&mut out, &mut stop, &player.end()).await?;
        if reader.damaged() > 0 {
            tell(&format!(
                "{} parts of the recording end in bytes that are no whole report: written just now, cut off or damaged",
                reader.damaged()
            ));
        }
        Ok(())
    })
}

struct Player<'a> {
    args: &'a ReplayArgs,
    /// The run that is being shown, its view, and its last report.
    run: Option<(Session, Box<dyn View>, Report)>,
}

impl Player<'_> {
    fn step(&mut self, step: Step) -> String {
        let mut text = String::new();
        if self.run.as_ref().is_none_or(|(session, ..)| session.id != step.session.id) {
            text += &self.end();
            let mut view = self.view(&step.session);
            text += &view.start(&step.session.info);
            self.run = Some((step.session.clone(), view, step.report.clone()));
        }
        if let Some((session, view, last)) = &mut self.run {
            if !step.closing {
                text += &view.report(&step.report, &step.session.info);
            }
            *session = step.session;
            *last = step.report;
        }
        text
    }

    /// What stands behind the last report of a run, one that was cut off too.
    fn end(&mut self) -> String {
        match self.run.take() {
            Some((session, mut view, last)) => view.end(&last, &session.info),
            None => String::new(),
        }
    }

    fn view(&self, session: &Session) -> Box<dyn View> {
        let machine = Machine { host: session.host.clone(), kernel: session.kernel.clone() };
        if self.args.format() == Format::Json {
            return Box::new(Json::new(machine));
        }
        Box::new(Lines::new(machine, jiff::tz::TimeZone::system(), color(!self.args.output.no_color)))
    }
}

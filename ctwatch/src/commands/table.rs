//! `ctwatch table`: what the table holds now, grouped and ranked.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::running::{run_to_end, stdout_is_closed, stop_on_signals, stopped};
use super::{color, machine, print, tell};
use crate::cli::{Format, TableOptions};
use crate::model::table::{Entry, GroupBy, Grouping, Holding, MOST_GROUPS, Space};
use crate::model::{Table, held};
use crate::privileges::{self, Work, advice_for_namespaces};
use crate::source::netlink::presence;
use crate::source::netlink::table::Spaces;
use crate::source::tables::Tables;
use crate::source::{SourceChoice, now};
use crate::view::Machine;
use crate::view::table_json;
use crate::view::table_lines::{self, TableLines};

/// From when on a reading is long, and how often its progress is shown.
const LONG: Duration = Duration::from_secs(1);
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// The clock is looked at once for so many entries.
const LOOK_EVERY: u64 = 4096;

/// Reads every namespace that is wanted, or stops on a signal.
pub fn run(options: &TableOptions) -> anyhow::Result<()> {
    if let Some(file) = &options.from {
        return super::table_saved::run(options, file);
    }
    if let SourceChoice::Fexit | SourceChoice::Kprobe = options.source {
        anyhow::bail!("only ctnetlink can list the table; leave --source out");
    }
    if let Err(missing) = presence::check() {
        anyhow::bail!("{}; {}", missing.text(), missing.way_out());
    }
    privileges::restrict(Work { namespaces: true, ..Work::NOTHING });
    run_to_end(async {
        let mut stop = stop_on_signals(false)?;
        let mut reading = Reading::start(options)?;
        let all = tokio::task::spawn_blocking(move || reading.all());
        tokio::select! {
            read = all => read.context("the reading broke down")?,
            () = stopped(&mut stop) => {
                Progress::clear();
                Ok(())
            }
        }
    })
}

enum View {
    Json(Machine),
    Lines(TableLines),
}

struct Reading {
    options: TableOptions,
    spaces: Spaces,
    tables: Vec<Table>,
    view: View,
}

impl Reading {
    fn start(options: &TableOptions) -> anyhow::Result<Self> {
        let machine = machine()?;
        let view = if options.format == Format::Json {
            View::Json(machine)
        } else {
            View::Lines(TableLines::new(Some(machine), jiff::tz::TimeZone::system(), color(options.color)))
        };
        let spaces = Spaces::find(&options.filter).context("cannot look for network namespaces")?;
        if let Some(netns) = options.filter.netns
            && spaces.inodes().next().is_none()
        {
            anyhow::bail!(
                "no process or mount leads into network namespace {netns}: it ended, or may not be seen"
            );
        }
        let tables = Tables::new(options.filter.netns)?.read([]);
        Ok(Self { options: options.clone(), spaces, tables, view })
    }

    fn all(&mut self) -> anyhow::Result<()> {
        let joint = self.options.by.contains(GroupBy::Netns);
        let inodes: Vec<u32> = self.spaces.inodes().collect();
        let mut failed = Vec::new();
        let mut grouping = self.grouping();
        let mut joined = Vec::new();
        if let View::Lines(lines) = &self.view {
            print(lines.start(now()?.0, self.left_out()).as_bytes())?;
        }
        for netns in &inodes {
            if stdout_is_closed() {
                return Ok(());
            }
            let Some(space) = self.read(*netns, &mut grouping) else { continue };
            if let Some(error) = &space.error {
                failed.push(format!("network namespace {}: {error}", space.table.name));
            }
            if joint {
                joined.push(space);
            } else {
                let full = std::mem::replace(&mut grouping, self.grouping());
                self.print(&full, vec![space])?;
            }
        }
        if joint {
            self.print(&grouping, joined)?;
        }
        match failed.first() {
            Some(why) if failed.len() == inodes.len() => anyhow::bail!("nothing could be read; {why}"),
            Some(why) => tell(&format!("{} of {} could not be read; {why}", failed.len(), inodes.len())),
            None => {}
        }
        Ok(())
    }

    fn left_out(&self) -> u64 {
        self.spaces.left_out() as u64
    }

    fn grouping(&self) -> Grouping {
        Grouping::new(self.options.by, MOST_GROUPS)
    }

    /// Reads one namespace; `None` where it has ended.
    fn read(&self, netns: u32, grouping: &mut Grouping) -> Option<Space> {
        grouping.make_room();
        let table = self.tables.iter().find(|table| table.netns == netns).cloned();
        let table = table.unwrap_or_else(|| Table { netns, name: netns.to_string(), count: None, max: None });
        let mut progress = Progress::of(&table);
        let began = Instant::now();
        let walked = self.spaces.walk(netns, &self.options.filter, |entry: &Entry| {
            progress.step();
            if self.options.entries.passes(entry) {
                grouping.add(entry);
            }
        });
        drop(progress);
        let census = grouping.take_census();
        let mut space = Space { table, census, interrupted: false, readings: Vec::new(), error: None };
        match walked {
            Ok(walked) => {
                if self.options.verbose {
                    let took = began.elapsed().as_secs_f64();
                    tell(&format!(
                        "{}: the kernel sent {} entries in {took:.2} s, {} passed the filter",
                        space.table.name, walked.sent, census.total
                    ));
                }
                space.interrupted = walked.interrupted;
                space.readings.extend(walked.reading);
                if walked.reading.is_some_and(|reading| reading.missing() > 0) {
                    space.readings.extend(self.count_again(netns));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => space.error = Some(explained(&error)),
        }
        Some(space)
    }

    /// Only how many there are.
    fn count_again(&self, netns: u32) -> Option<held::Reading> {
        self.spaces.walk(netns, &self.options.filter, |_| {}).ok()?.reading
    }

    fn print(&self, grouping: &Grouping, spaces: Vec<Space>) -> anyhow::Result<()> {
        let TableOptions { by, count, filter, entries, .. } = &self.options;
        let holding = Holding {
            wall_ns: now()?.0,
            by: *by,
            filtered: filter.selects_flows() || !entries.is_empty(),
            spaces,
            namespaces_left_out: self.left_out(),
            ranked: grouping.ranked(*count),
            saved: None,
        };
        let text = match &self.view {
            View::Json(machine) => table_json::holding(&holding, Some(machine)),
            View::Lines(lines) => lines.holding(&holding),
        };
        print(text.as_bytes())
    }
}

fn explained(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return format!("{error}: {}", advice_for_namespaces("ctwatch table"));
    }
    error.to_string()
}

/// Where somebody waits at a terminal: a line that tells how far a long reading has come.
pub(super) struct Progress<'a> {
    table: &'a Table,
    entries: u64,
    /// When it is shown next; `None` where nobody looks.
    due: Option<Instant>,
}

impl<'a> Progress<'a> {
    pub(super) fn of(table: &'a Table) -> Self {
        let due = io::stderr().is_terminal().then(|| Instant::now() + LONG);
        Self { table, entries: 0, due }
    }

    pub(super) fn step(&mut self) {
        self.entries += 1;
        if !self.entries.is_multiple_of(LOOK_EVERY) {
            return;
        }
        if let Some(due) = self.due.filter(|due| Instant::now() >= *due) {
            let text = table_lines::progress(self.table, self.entries);
            // Nobody is left to see it when that fails.
            let _ = write!(io::stderr().lock(), "\r{text}\x1b[K");
            self.due = Some(due.max(Instant::now()) + PROGRESS_EVERY);
        }
    }

    /// Takes the line away.
    pub(super) fn clear() {
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.entries >= LOOK_EVERY {
            Self::clear();
        }
    }
}

//! What the screen knows and how keys change it. No clock, no terminal.

use std::cmp::Reverse;
use std::time::Duration;

use ctwatch_ebpf::{FlowType, Group};
use jiff::tz::TimeZone;
use ratatui::crossterm::event::KeyEvent;

use super::keys::{Action, Meaning, Place, meaning};
use super::theme::Theme;
use super::watched::Watched;
use crate::model::live::Baseline;
use crate::model::ranking::Losses;
use crate::model::verdict::{Level, RECENT};
use crate::model::{Flow, Report, SourceInfo, family_name, protocol_name};
use crate::view::Machine;

/// The intervals that keys step through, in milliseconds; the ends are those of `--interval`.
const STEPS_MS: [u64; 12] =
    [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000, 600_000, 3_600_000];
/// Longer filters are no filters.
const LONGEST_FILTER: usize = 200;

/// What is fixed for the run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The machine that is watched.
    pub machine: Machine,
    /// The zone of all times shown.
    pub zone: TimeZone,
    /// What the terminal can show.
    pub theme: Theme,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Losses and evictions, then inserts.
    Trouble,
    /// One of the sums.
    By(Group),
    /// Namespace, family, protocol.
    Name,
}

impl Sort {
    pub(super) const ALL: [Self; 8] = [
        Self::Trouble,
        Self::By(Group::Insert),
        Self::By(Group::Delete),
        Self::By(Group::EarlyDrop),
        Self::By(Group::Drop),
        Self::By(Group::InsertFailed),
        Self::By(Group::Invalid),
        Self::Name,
    ];

    /// As the screen says it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Trouble => "worst first",
            Self::By(Group::Insert) => "by insert",
            Self::By(Group::Delete) => "by delete",
            Self::By(Group::EarlyDrop) => "by early_drop",
            Self::By(Group::Drop) => "by drop",
            Self::By(Group::InsertFailed) => "by insert_failed",
            Self::By(Group::Invalid) => "by invalid",
            Self::By(Group::InsertNetlink) => "by insert_netlink",
            Self::By(Group::ClashResolve) => "by clash_resolve",
            Self::Name => "by name",
        }
    }
}

/// The panels below the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Panel {
    /// Everything about the chosen flow type.
    Detail,
    /// Ports and addresses ranked.
    Top,
    /// The latest losses.
    Losses,
    /// Where the counts come from.
    Source,
}

/// What the caller has to do after a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but to draw.
    Draw,
    /// End.
    Quit,
    /// Report at this interval from now on.
    Interval(Duration),
    /// Draw every cell again.
    Redraw,
    /// Hand the terminal back and stop until continued.
    Suspend,
    /// Play a recording otherwise.
    Replay(Control),
    /// Show a recording at this time, as typed.
    GoTo(String),
}

/// What to do with a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Play, or hold.
    Play,
    /// Play faster.
    Faster,
    /// Play slower.
    Slower,
    /// One report on.
    StepOn,
    /// One report back.
    StepBack,
    /// To the next report with a loss.
    NextLoss,
    /// To the first report.
    Begin,
    /// To the last report.
    End,
}

/// How a recording is played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Playing {
    /// One or two words: playing how fast, or not.
    pub state: String,
    /// What there is to say of the last key.
    pub note: Option<String>,
}

/// What the line at the bottom is typed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TypedFor {
    Filter,
    Time,
}

/// The state of the screen.
#[derive(Debug)]
pub struct App {
    pub(super) settings: Settings,
    pub(super) live: Watched,
    held: Option<Box<Watched>>,
    pub(super) interval: Duration,
    pub(super) sort: Sort,
    /// The panel asked for; else the one that tells most.
    panel: Option<Panel>,
    chosen: Option<FlowType>,
    pub(super) filter: String,
    pub(super) typing: Option<String>,
    pub(super) typed_for: TypedFor,
    /// Where a recording is shown.
    pub(super) playing: Option<Playing>,
    pub(super) help: bool,
    pub(super) scroll: usize,
}

impl App {
    /// A screen that has seen nothing yet.
    pub fn new(settings: Settings, info: SourceInfo, interval: Duration) -> Self {
        Self {
            settings,
            live: Watched::new(info),
            held: None,
            interval,
            sort: Sort::Trouble,
            panel: None,
            chosen: None,
            filter: String::new(),
            typing: None,
            typed_for: TypedFor::Filter,
            playing: None,
            help: false,
            scroll: 0,
        }
    }

    /// The screen of a recording.
    pub fn of_recording(settings: Settings, info: SourceInfo) -> Self {
        let playing = Some(Playing { state: String::new(), note: None });
        Self { playing, ..Self::new(settings, info, Duration::from_secs(1)) }
    }

    /// How the recording is played now.
    pub fn plays(&mut self, playing: Playing) {
        self.playing = Some(playing);
    }

    /// Begins anew with the reports of another machine, run or time.
    pub fn begin(&mut self, machine: Machine, info: SourceInfo) {
        self.settings.machine = machine;
        self.live = Watched::new(info);
    }

    /// Takes in a report.
    pub fn report(&mut self, report: Report, info: &SourceInfo) {
        self.live.report(report, info);
    }

    /// From now on it is known how many entries each flow type has.
    pub fn baseline(&mut self, baseline: Baseline) {
        self.live.baseline = Some(baseline);
    }

    /// Takes in losses that came up to this time.
    pub fn losses(&mut self, losses: Option<&Losses>, wall_ns: i128) {
        self.live.losses(losses, wall_ns);
    }

    /// There is nothing to watch: why. Or there is again.
    pub fn waiting(&mut self, why: Option<String>) {
        self.live.waiting(why);
    }

    /// The interval in force.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// What a key does.
    pub fn key(&mut self, event: KeyEvent) -> Outcome {
        let place = if self.typing.is_some() { Place::Filter } else { self.place() };
        match meaning(place, event) {
            Some(Meaning::Act(action)) => self.act(action),
            Some(Meaning::Text(c)) => {
                if let Some(line) = self.typing.as_mut().filter(|line| line.len() < LONGEST_FILTER) {
                    line.push(c);
                }
                Outcome::Draw
            }
            None => Outcome::Draw,
        }
    }

    /// Which keys are in force while nothing is typed.
    pub(super) const fn place(&self) -> Place {
        if self.playing.is_some() { Place::Replay } else { Place::Screen }
    }

    fn act(&mut self, action: Action) -> Outcome {
        match action {
            Action::Quit => return Outcome::Quit,
            Action::Suspend => return Outcome::Suspend,
            Action::Redraw => return Outcome::Redraw,
            Action::Shorter => return self.step_interval(false),
            Action::Longer => return self.step_interval(true),
            Action::Pause => {
                self.held = match self.held {
                    Some(_) => None,
                    None => Some(Box::new(self.live.clone())),
                }
            }
            Action::SortNext => self.sort = neighbour(&Sort::ALL, self.sort, true),
            Action::SortBack => self.sort = neighbour(&Sort::ALL, self.sort, false),
            Action::PanelNext => self.show(neighbour(&self.panels(), self.panel(), true)),
            Action::PanelBack => self.show(neighbour(&self.panels(), self.panel(), false)),
            Action::Up => self.choose(false),
            Action::Down => self.choose(true),
            Action::PageUp => self.scroll = self.scroll.saturating_sub(5),
            Action::PageDown => self.scroll = self.scroll.saturating_add(5),
            Action::Filter => {
                self.typed_for = TypedFor::Filter;
                self.typing = Some(self.filter.clone());
            }
            Action::JumpTo => {
                self.typed_for = TypedFor::Time;
                self.typing = Some(String::new());
            }
            Action::Replay(control) => return Outcome::Replay(control),
            Action::Back if self.help => self.help = false,
            Action::Back => self.filter.clear(),
            Action::Reset => self.reset(),
            Action::Help => self.help = !self.help,
            Action::Accept if self.typed_for == TypedFor::Time => {
                let typed = self.typing.take().unwrap_or_default();
                return Outcome::GoTo(typed.trim().to_owned());
            }
            Action::Accept => self.typing.take().unwrap_or_default().trim().clone_into(&mut self.filter),
            Action::Cancel => self.typing = None,
            Action::Erase => {
                if let Some(line) = &mut self.typing {
                    line.pop();
                }
            }
            Action::EraseAll => {
                if let Some(line) = &mut self.typing {
                    line.clear();
                }
            }
        }
        Outcome::Draw
    }

    fn show(&mut self, panel: Panel) {
        self.panel = Some(panel);
        self.scroll = 0;
    }

    fn reset(&mut self) {
        self.held = None;
        self.live.reset();
    }

    fn step_interval(&mut self, longer: bool) -> Outcome {
        let mut steps = STEPS_MS.into_iter().map(Duration::from_millis);
        let next = if longer {
            steps.find(|step| *step > self.interval)
        } else {
            steps.rfind(|step| *step < self.interval)
        };
        let Some(next) = next else { return Outcome::Draw };
        self.interval = next;
        self.live.history.interval_changed();
        Outcome::Interval(next)
    }

    fn choose(&mut self, down: bool) {
        let rows: Vec<FlowType> = self.rows().iter().map(|flow| flow.key).collect();
        let at = self.chosen().and_then(|chosen| rows.iter().position(|row| *row == chosen));
        let next = match at {
            Some(at) if down => at.saturating_add(1).min(rows.len().saturating_sub(1)),
            Some(at) => at.saturating_sub(1),
            None => 0,
        };
        self.chosen = rows.get(next).copied();
        self.scroll = 0;
    }

    /// What is shown: the present, or the moment of the pause.
    pub(super) fn shown(&self) -> &Watched {
        self.held.as_deref().unwrap_or(&self.live)
    }

    /// Whether the screen is held.
    pub(super) const fn paused(&self) -> bool {
        self.held.is_some()
    }

    /// The filter in force; one being typed already is.
    pub(super) fn filter(&self) -> &str {
        let typed = self.typing.as_deref().filter(|_| self.typed_for == TypedFor::Filter);
        typed.unwrap_or(&self.filter)
    }

    /// The panels there is something to show on.
    pub(super) fn panels(&self) -> Vec<Panel> {
        let report = self.shown().report.as_ref();
        let mut panels = vec![Panel::Detail];
        if report.is_some_and(|report| report.top.is_some()) {
            panels.push(Panel::Top);
        }
        if report.is_some_and(|report| report.losses.is_some()) {
            panels.push(Panel::Losses);
        }
        panels.push(Panel::Source);
        panels
    }

    /// The panel shown: where entries are lost and nothing was asked for, the one that says to whom.
    pub(super) fn panel(&self) -> Panel {
        let losing = self.shown().troubles.iter().any(|trouble| trouble.level() == Level::Critical);
        let panels = self.panels();
        let telling: &[Panel] = if losing { &[Panel::Top, Panel::Losses] } else { &[] };
        let wanted = self.panel.iter().chain(telling).find(|panel| panels.contains(panel));
        wanted.copied().unwrap_or(Panel::Detail)
    }

    /// Whether something of this namespace, family and protocol is to be shown.
    pub(super) fn wants(&self, flow: FlowType) -> bool {
        if self.filter().is_empty() {
            return true;
        }
        let name = self.netns_name(flow.netns).to_lowercase();
        let family = family_name(flow.family);
        let proto = protocol_name(flow);
        let number = flow.proto.to_string();
        self.filter().to_lowercase().split_whitespace().all(|word| {
            name.contains(word) || family.starts_with(word) || proto.starts_with(word) || number == word
        })
    }

    /// Whether anything of this namespace could be shown.
    pub(super) fn wants_netns(&self, netns: u32) -> bool {
        self.filter().is_empty()
            || self.rows().iter().any(|flow| flow.key.netns == netns)
            || self
                .filter()
                .to_lowercase()
                .split_whitespace()
                .all(|word| self.netns_name(netns).to_lowercase().contains(word))
    }

    /// What a namespace is called.
    pub(super) fn netns_name(&self, netns: u32) -> String {
        let names = self.shown().report.as_ref().map(|report| &report.names);
        names
            .and_then(|names| names.get(&netns))
            .map_or_else(|| netns.to_string(), |name| super::text::clean(name))
    }

    /// The rows to show, sorted.
    pub(super) fn rows(&self) -> Vec<&Flow> {
        let Watched { report, history, .. } = self.shown();
        let mut rows: Vec<&Flow> =
            report.iter().flat_map(|report| &report.flows).filter(|flow| self.wants(flow.key)).collect();
        let rate = |flow: &Flow, sum: Group| {
            history.flow(flow.key).map_or(0.0, |past| past.rate(sum.parts(), RECENT))
        };
        let weight = |flow: &Flow| match self.sort {
            Sort::Trouble => {
                let losses = [Group::Drop, Group::EarlyDrop, Group::InsertFailed].map(|sum| rate(flow, sum));
                (losses.iter().sum(), rate(flow, Group::Insert))
            }
            Sort::By(sum) => (rate(flow, sum), 0.0),
            Sort::Name => (0.0, 0.0),
        };
        // Rates are finite and not negative: their bits are in their order. Reports come sorted by name.
        rows.sort_by_cached_key(|flow| {
            let (first, second): (f64, f64) = weight(flow);
            Reverse((first.to_bits(), second.to_bits()))
        });
        rows
    }

    /// The row that the detail is about: the one chosen, else the first.
    pub(super) fn chosen(&self) -> Option<FlowType> {
        let rows = self.rows();
        let kept = self.chosen.filter(|chosen| rows.iter().any(|flow| flow.key == *chosen));
        kept.or_else(|| rows.first().map(|flow| flow.key))
    }
}

fn neighbour<T: Copy + PartialEq>(all: &[T], current: T, forth: bool) -> T {
    let at = all.iter().position(|one| *one == current).unwrap_or_default();
    let step = if forth { 1 } else { all.len() - 1 };
    all[(at + step) % all.len()]
}

//! Where everything stands on the screen, at any size.

use ctwatch_ebpf::{Event, Group};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span, Text};

use super::app::{App, Panel, TypedFor};
use super::keys::in_force;
use super::panels::Lines;
use super::{columns, detail, gauge, panels, text};
use crate::model::verdict::{Level, Trouble};

/// From this size on all panels are shown at once.
const WIDE: (u16, u16) = (140, 30);

/// Draws the whole screen.
pub fn draw(frame: &mut Frame<'_>, app: &App) {
    let area = frame.area();
    if area.is_empty() {
        return;
    }
    let level = level(app);
    let tall = area.height >= 8;
    let banner = if level == Level::Critical && area.height >= 20 { 3 } else { 1 };
    let [header, banner, body, source, footer] = Layout::vertical([
        Constraint::Length(u16::from(tall)),
        Constraint::Length(banner),
        Constraint::Fill(1),
        Constraint::Length(u16::from(tall)),
        Constraint::Length(u16::from(area.height >= 6 || app.typing.is_some() && area.height > 1)),
    ])
    .areas(area);
    put(frame, header, vec![header_line(app, wide(header))]);
    draw_banner(frame, banner, app, level);
    if app.help {
        scrolled(frame, body, &panels::help(app, wide(body)).into(), app.scroll);
    } else if let Some(why) = app.live.waiting.as_ref().filter(|_| app.shown().report.is_none()) {
        put(frame, body, waiting(why, wide(body)));
    } else {
        draw_body(frame, body, app);
    }
    put(frame, source, vec![panels::source_line(app, wide(source))]);
    put(frame, footer, vec![footer_line(app, wide(footer))]);
}

fn wide(area: Rect) -> usize {
    usize::from(area.width)
}

fn high(area: Rect) -> usize {
    usize::from(area.height)
}

fn put(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'static>>) {
    if !area.is_empty() {
        frame.render_widget(Text::from(lines), area);
    }
}

/// Scrolls no further than to the last line.
fn scrolled(frame: &mut Frame<'_>, area: Rect, lines: &Lines<'_>, scroll: usize) {
    let first = scroll.min(lines.count().saturating_sub(high(area)));
    put(frame, area, lines.window(first, high(area)));
}

fn header_line(app: &App, width: usize) -> Line<'static> {
    let theme = app.settings.theme;
    let machine = &app.settings.machine;
    let left = format!(" ctwatch  {}  Linux {}", text::clean(&machine.host), text::clean(&machine.kernel));
    let time = app.shown().report.as_ref().map_or_else(String::new, |report| match &app.playing {
        Some(_) => text::date_and_time(report.wall_ns, &app.settings.zone),
        None => text::time(report.wall_ns, &app.settings.zone),
    });
    let (state, right) = if let Some(playing) = &app.playing {
        (format!(" {} ", playing.state), format!("  {time} "))
    } else {
        let state = if app.paused() { " PAUSED " } else { "" };
        (state.to_owned(), format!("  every {}  {time} ", text::interval(app.interval)))
    };
    let gap = width.saturating_sub(text::width(&right) + state.len());
    Line::from(vec![
        Span::styled(text::left(&left, gap), theme.heading()),
        Span::styled(state, theme.mode()),
        Span::raw(right),
    ])
}

/// The banner tells the present even while the screen is held.
fn level(app: &App) -> Level {
    match app.live.waiting {
        Some(_) => Level::Warning,
        None => app.live.troubles.iter().map(Trouble::level).max().unwrap_or(Level::Calm),
    }
}

fn draw_banner(frame: &mut Frame<'_>, area: Rect, app: &App, level: Level) {
    let style = app.settings.theme.banner(level);
    let lines = banner_lines(app, level, wide(area), high(area));
    // What stands alone stands in the middle.
    let above = if lines.len() == 1 { area.height / 2 } else { 0 };
    frame.buffer_mut().set_style(area, style);
    let room = Rect { y: area.y + above, height: area.height - above, ..area };
    let lines = lines.into_iter().map(|line| Line::styled(text::left(&line, wide(area)), style));
    put(frame, room, lines.collect());
}

/// At most so many lines; the worst comes first.
fn banner_lines(app: &App, level: Level, width: usize, room: usize) -> Vec<String> {
    match &app.live.waiting {
        // What was seen before fills the rest of the screen.
        Some(why) if app.shown().report.is_some() => return vec![format!(" WAITING  {}", text::clean(why))],
        Some(_) => return vec![" WAITING  connection tracking is not watched now".into()],
        None => {}
    }
    let Some(report) = &app.live.report else { return vec![" starting".into()] };
    if app.live.troubles.is_empty() {
        return vec![calm(app, report.lost)];
    }
    let mark = if level == Level::Critical { "!!" } else { "!" };
    let mut lines: Vec<String> = Vec::new();
    for trouble in &app.live.troubles {
        let next = format!(" {mark} {} ", told(trouble, width));
        match lines.last_mut() {
            Some(line) if text::width(line) + text::width(&next) <= width => line.push_str(&next),
            _ => lines.push(next),
        }
    }
    lines.truncate(room);
    lines
}

fn told(trouble: &Trouble, width: usize) -> String {
    let few = width < 40;
    let rate = |rate: f64| text::rate(rate);
    match trouble {
        Trouble::Drop(n) if few => format!("DROPPING {}/s", rate(*n)),
        Trouble::EarlyDrop(n) if few => format!("EVICTING {}/s", rate(*n)),
        Trouble::Filling(_, eta) if few => format!("FULL IN {}", text::span(*eta)),
        Trouble::Drop(n) => format!("DROPPING {} new flows/s", rate(*n)),
        Trouble::EarlyDrop(n) => format!("EVICTING {} live entries/s", rate(*n)),
        Trouble::Pressure(n) => format!("COLLECTOR EVICTS {}/s", rate(*n)),
        Trouble::InsertFailed(n) => format!("INSERT FAILS {}/s", rate(*n)),
        Trouble::Invalid(n) => format!("INVALID {}/s", rate(*n)),
        Trouble::Full(name) => format!("TABLE FULL: {}", text::clean(name)),
        Trouble::Filling(name, eta) => format!("FILLING: {} full in {}", text::clean(name), text::span(*eta)),
        Trouble::NearlyFull(name, pct) => format!("NEARLY FULL: {} {pct:.0} %", text::clean(name)),
    }
}

/// What can truly be said where nothing is wrong now.
fn calm(app: &App, lost: u64) -> String {
    let blind = [Event::DropTableFull, Event::DropNoMemory, Event::DeleteEarlyDrop]
        .iter()
        .any(|event| app.live.info.unknown.contains_key(event));
    let now = if blind {
        " ok, as far as this source can see"
    } else if lost > 0 {
        " ok, as far as was seen"
    } else {
        " ok  nothing refused, nothing evicted"
    };
    let total = app.live.history.total();
    let before: Vec<String> = [
        (Group::Drop.of(&total), "dropped"),
        (Group::EarlyDrop.of(&total), "evicted"),
        (Group::InsertFailed.of(&total), "failed to insert"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    match app.live.last_loss {
        Some(when) if !before.is_empty() => {
            format!(
                " ok now; earlier {}, last at {}",
                before.join(", "),
                text::time(when, &app.settings.zone)
            )
        }
        _ => now.into(),
    }
}

fn waiting(why: &str, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![Line::default()];
    lines.extend(panels::wrap(&text::clean(why), width).into_iter().map(Line::raw));
    lines.push(Line::default());
    let going_on =
        "Watching begins by itself as soon as there is something to watch; nothing is loaded by looking.";
    lines.extend(panels::wrap(going_on, width).into_iter().map(Line::raw));
    lines
}

fn draw_body(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let room = (high(area) / 4).max(1);
    let gauges = gauge::lines(app, wide(area), room);
    let gauge_height = u16::try_from(gauges.len()).unwrap_or(u16::MAX).min(area.height);
    let left = area.height - gauge_height;
    // Rows need a heading and one line; a panel its title and three.
    let with_title = left >= 8;
    let rows = u16::try_from(app.rows().len()).unwrap_or(u16::MAX).max(1);
    let table_wants = rows.saturating_add(1 + u16::from(with_title));
    let table_height = if left >= 12 { table_wants.min((left / 2).max(6)) } else { left };
    let [gauge_area, table, rest] = Layout::vertical([
        Constraint::Length(gauge_height),
        Constraint::Length(table_height),
        Constraint::Fill(1),
    ])
    .areas(area);
    put(frame, gauge_area, gauges);
    let table = if with_title { titled(frame, table, app, &table_title(app)) } else { table };
    put(frame, table, columns::lines(app, wide(table), high(table)));
    draw_panels(frame, rest, app);
}

fn table_title(app: &App) -> String {
    let all = app.shown().report.as_ref().map_or(0, |report| report.flows.len());
    let filter = match app.filter() {
        "" => String::new(),
        filter => format!(", filter \"{}\" shows {} of {all}", text::clean(filter), app.rows().len()),
    };
    format!("flow types, events per second, {}{filter}", app.sort.name())
}

fn draw_panels(frame: &mut Frame<'_>, area: Rect, app: &App) {
    if area.height < 2 {
        return;
    }
    let screen = frame.area();
    if screen.width < WIDE.0 || screen.height < WIDE.1 {
        draw_stacked(frame, area, app);
    } else {
        draw_side_by_side(frame, area, app);
    }
}

/// Numbers side by side, and below them losses in full width: victim and newcomer of one eviction take 120 columns.
fn draw_side_by_side(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let all = app.panels();
    let has = |panel| all.contains(&panel);
    let half = if has(Panel::Top) { area.width.saturating_sub(2) / 2 } else { area.width };
    let lines_of = |panel| {
        let (_, lines) = panel_text(app, panel, usize::from(half));
        u16::try_from(lines.count() + 1).unwrap_or(u16::MAX)
    };
    let (detail, source) = (lines_of(Panel::Detail), lines_of(Panel::Source));
    let upper = if has(Panel::Losses) {
        detail.saturating_add(source).saturating_add(1).min(area.height - area.height / 3)
    } else {
        area.height
    };
    let [upper, losses] = Layout::vertical([Constraint::Length(upper), Constraint::Fill(1)]).areas(area);
    let [left, right] =
        Layout::horizontal([Constraint::Length(half), Constraint::Fill(1)]).spacing(2).areas(upper);
    let one = |frame: &mut Frame<'_>, panel, area| draw_panel(frame, area, app, panel, app.panel() == panel);
    if upper.height >= detail.saturating_add(source) {
        let [above, below] = Layout::vertical([Constraint::Fill(1), Constraint::Length(source)]).areas(left);
        one(frame, Panel::Detail, above);
        one(frame, Panel::Source, below);
    } else {
        one(frame, if app.panel() == Panel::Source { Panel::Source } else { Panel::Detail }, left);
    }
    for (panel, area) in [(Panel::Top, right), (Panel::Losses, losses)] {
        if has(panel) {
            one(frame, panel, area);
        }
    }
}

/// The current panel, and below it the ones after it as far as there is room.
fn draw_stacked(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let mut panels = app.panels();
    let current = app.panel();
    let at = panels.iter().position(|panel| *panel == current).unwrap_or_default();
    panels.rotate_left(at);
    // A title and three lines are the least that a panel below is worth.
    let mut left = area;
    for panel in panels {
        let (title, lines) = panel_text(app, panel, wide(left));
        if panel != current && (left.height < 4 || panel == Panel::Source) {
            break;
        }
        let height = u16::try_from(lines.count() + 1).unwrap_or(u16::MAX).min(left.height);
        let inner = titled(frame, Rect { height, ..left }, app, &title);
        scrolled(frame, inner, &lines, if panel == current { app.scroll } else { 0 });
        left = Rect { y: left.y + height, height: left.height - height, ..left };
    }
}

fn draw_panel(frame: &mut Frame<'_>, area: Rect, app: &App, panel: Panel, current: bool) {
    let (title, lines) = panel_text(app, panel, wide(area));
    let inner = titled(frame, area, app, &title);
    scrolled(frame, inner, &lines, if current { app.scroll } else { 0 });
}

fn panel_text(app: &App, panel: Panel, width: usize) -> (String, Lines<'_>) {
    match panel {
        Panel::Detail => (detail::title(app), detail::lines(app, width).into()),
        Panel::Top => (panels::top_title(app), panels::top(app, width)),
        Panel::Losses => ("latest losses".into(), panels::losses(app, width).into()),
        Panel::Source => ("source".into(), panels::source(app, width).into()),
    }
}

/// Draws a title with a rule and gives back what lies below it.
fn titled(frame: &mut Frame<'_>, area: Rect, app: &App, title: &str) -> Rect {
    let theme = app.settings.theme;
    let [line, below] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let rule = theme.rule().to_string();
    let title = text::cut(title, wide(line).saturating_sub(4));
    let rest = wide(line).saturating_sub(text::width(&title) + 4);
    put(
        frame,
        line,
        vec![Line::from(vec![
            Span::styled(format!("{rule} "), theme.quiet()),
            Span::styled(title, theme.heading()),
            Span::styled(format!(" {}", rule.repeat(rest + 1)), theme.quiet()),
        ])],
    );
    below
}

fn footer_line(app: &App, width: usize) -> Line<'static> {
    let theme = app.settings.theme;
    if let Some(typed) = &app.typing {
        let (what, hint) = match app.typed_for {
            TypedFor::Filter => (" filter: ", "  Enter takes it, Esc leaves it"),
            TypedFor::Time => (" go to: ", "  a time (19:00:05), with its date (2026-11-23T19:00:05) or not"),
        };
        return Line::from(vec![
            Span::styled(what, theme.mode()),
            Span::raw(format!(" {}", text::clean(typed))),
            Span::styled(" ", theme.mode()),
            Span::styled(text::cut(hint, width.saturating_sub(text::width(typed) + 12)), theme.quiet()),
        ]);
    }
    if let Some(note) = app.playing.as_ref().and_then(|playing| playing.note.as_ref()) {
        return Line::styled(text::cut(&format!(" {}", text::clean(note)), width), theme.mode());
    }
    let mut spans = Vec::new();
    let mut used = 0;
    for binding in in_force(app.place()) {
        let (Some(short), Some(key)) = (binding.short, binding.keys.first()) else { continue };
        let key = format!(" {key}");
        let word = format!(" {short} ");
        used += text::width(&key) + text::width(&word);
        if used > width {
            break;
        }
        spans.push(Span::styled(key, theme.heading()));
        spans.push(Span::styled(word, theme.quiet()));
    }
    Line::from(spans)
}

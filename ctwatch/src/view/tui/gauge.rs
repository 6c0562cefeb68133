//! How full each namespace's table is, how fast it fills and when it will be full.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::app::App;
use super::columns::BROAD;
use super::text;
use super::theme::Theme;
use crate::model::Table;
use crate::model::forecast::Occupancy;
use crate::model::verdict::{Level, NEARLY_FULL_PCT, filled_pct};

/// A longer name is cut, unless the screen is broad.
const LONGEST_NAME: usize = 14;
const LONGEST_ON_BROAD: usize = 28;
/// A shorter bar tells nothing.
const SHORTEST_BAR: usize = 8;
const LONGEST_BAR: usize = 80;

/// One line for each table, fullest first, within `room` lines; what finds no room is counted.
pub(super) fn lines(app: &App, width: usize, room: usize) -> Vec<Line<'static>> {
    let shown = app.shown();
    let mut tables: Vec<&Table> = shown
        .report
        .iter()
        .flat_map(|report| &report.tables)
        .filter(|table| app.wants_netns(table.netns))
        .collect();
    tables.sort_by(|a, b| filled_pct(b).unwrap_or(-1.0).total_cmp(&filled_pct(a).unwrap_or(-1.0)));
    let fitting = if tables.len() > room { room.saturating_sub(1) } else { room };
    let parts: Vec<(&Table, Said)> = tables
        .iter()
        .take(fitting.max(1))
        .map(|table| (*table, Said::new(table, shown.history.table(table.netns))))
        .collect();
    let widest = Said::widest(&parts, width);
    let mut lines: Vec<Line<'static>> =
        parts.iter().map(|(table, said)| line(table, said, &widest, width, app.settings.theme)).collect();
    let hidden = tables.len() - parts.len();
    if hidden > 0 && room > 1 {
        let more = format!(" and {hidden} more, none of them fuller");
        lines.push(Line::styled(more, app.settings.theme.quiet()));
    }
    lines
}

/// What is said beside the bar.
struct Said {
    level: Level,
    pct: String,
    count: String,
    growth: String,
    forecast: String,
}

impl Said {
    fn new(table: &Table, past: Option<&Occupancy>) -> Self {
        let pct = filled_pct(table);
        let full = pct.is_some_and(|pct| pct >= 100.0);
        let eta = past.and_then(Occupancy::full_in);
        let growth = past.and_then(Occupancy::growth).filter(|growth| growth.abs() >= 0.5);
        let level = match pct {
            Some(_) if full => Level::Critical,
            Some(pct) if pct >= NEARLY_FULL_PCT || eta.is_some_and(|eta| eta.as_secs() <= 600) => {
                Level::Warning
            }
            _ => Level::Calm,
        };
        Self {
            level,
            // Rounding may not make a full table of one that has room.
            pct: pct.map_or_else(
                || "?".into(),
                |pct| format!("{:.1} %", if full { pct } else { (pct * 10.0).floor() / 10.0 }),
            ),
            count: match (table.count, table.max) {
                (Some(count), Some(0)) => format!("{count} entries, no limit"),
                (Some(count), Some(max)) => format!("{count} of {max}"),
                (Some(count), None) => format!("{count} entries, limit unknown"),
                (None, _) => "cannot be read".into(),
            },
            growth: growth.filter(|_| !full).map_or_else(String::new, |growth| format!("{growth:+.0}/s")),
            forecast: match eta {
                _ if full => "FULL".into(),
                Some(eta) => format!("full in {}", text::span(eta)),
                None => String::new(),
            },
        }
    }

    fn widest(parts: &[(&Table, Self)], width: usize) -> [usize; 5] {
        let longest = if width >= BROAD { LONGEST_ON_BROAD } else { LONGEST_NAME };
        let most = |of: fn(&Self) -> &String| parts.iter().map(|(_, said)| text::width(of(said))).max();
        let name = parts.iter().map(|(table, _)| text::width(&text::clean(&table.name))).max();
        [
            name.unwrap_or_default().min(longest),
            most(|said| &said.pct).unwrap_or_default().max(7),
            most(|said| &said.count).unwrap_or_default(),
            most(|said| &said.growth).unwrap_or_default().max(7),
            most(|said| &said.forecast).unwrap_or_default().max(13),
        ]
    }
}

fn line(table: &Table, said: &Said, widest: &[usize; 5], width: usize, theme: Theme) -> Line<'static> {
    let name = text::clean(&table.name);
    let [name_width, pct, count, growth, forecast] = *widest;
    // name, per cent, growth and forecast, each with its gap
    let fixed = 1 + name_width + 1 + pct + 1 + growth + 2 + forecast;
    let bad = if said.level == Level::Calm { Style::new() } else { theme.bad(said.level) };
    if width < fixed + SHORTEST_BAR {
        return narrow(&name, said, bad);
    }
    let with_count = width >= fixed + SHORTEST_BAR + 2 + count;
    let bar = (width - fixed - 1 - if with_count { count + 2 } else { 0 }).min(LONGEST_BAR);
    let (filled, empty) = theme.bar(filled_eighths(table, bar), bar);
    let mut spans = vec![
        Span::raw(format!(" {} ", text::left(&name, name_width))),
        Span::styled(filled, theme.gauge(said.level)),
        Span::styled(empty, theme.quiet()),
        Span::raw(" "),
        Span::styled(text::right(&said.pct, pct), bad),
    ];
    if with_count {
        spans.push(Span::raw(format!("  {}", text::left(&said.count, count))));
    }
    spans.push(Span::raw(format!(" {}  ", text::right(&said.growth, growth))));
    spans.push(Span::styled(said.forecast.clone(), bad));
    Line::from(spans)
}

fn narrow(name: &str, said: &Said, bad: Style) -> Line<'static> {
    let mut words = vec![Span::raw(format!("{} ", text::cut(name, 8)))];
    let news = if said.forecast.is_empty() {
        said.pct.clone()
    } else {
        format!("{} {}", said.pct.replace(' ', ""), said.forecast)
    };
    words.push(Span::styled(news, bad));
    Line::from(words)
}

/// In eighths of a cell, rounded down: a full bar is for a full table.
fn filled_eighths(table: &Table, bar: usize) -> usize {
    let (Some(count), Some(max @ 1..)) = (table.count, table.max) else { return 0 };
    let eighths = u128::from(count.min(max)) * bar as u128 * 8 / u128::from(max);
    usize::try_from(eighths).unwrap_or_default()
}

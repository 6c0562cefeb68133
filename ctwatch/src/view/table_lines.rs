//! `table` for people: each namespace's census, then its groups, largest first.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

use super::Machine;
use super::plain::{BOLD, DIM, RED, YELLOW, clean, left_out, paint, table_style, time};
use crate::model::Table;
use crate::model::table::{Census, Group, GroupBy, Holding, Saved, Space, Traffic};
use crate::model::{family_name, protocol};

/// Text with times in one zone, coloured or not.
#[derive(Debug)]
pub struct TableLines {
    machine: Option<Machine>,
    zone: TimeZone,
    color: bool,
}

impl TableLines {
    /// Text that names this machine, where it is one, and shows times in this zone.
    pub const fn new(machine: Option<Machine>, zone: TimeZone, color: bool) -> Self {
        Self { machine, zone, color }
    }

    /// What stands before the first namespace.
    pub fn start(&self, wall_ns: i128, namespaces_left_out: u64) -> String {
        let machine = self.machine.as_ref().map_or_else(String::new, |machine| {
            format!(" on {}, Linux {}", clean(&machine.host), clean(&machine.kernel))
        });
        let mut out = format!("ctwatch{machine}, the table at {}\n", time(wall_ns, &self.zone));
        if namespaces_left_out > 0 {
            let line = self.paint(RED, &format!("!{}", left_out(namespaces_left_out)));
            let _ = writeln!(out, "{line}");
        }
        out
    }

    /// What stands before a saved list.
    pub fn start_saved(&self, from: &str) -> String {
        format!("ctwatch, the list saved in {}\n", clean(from))
    }

    /// What was found.
    pub fn holding(&self, holding: &Holding) -> String {
        let mut out = String::from("\n");
        for space in &holding.spaces {
            let _ = writeln!(out, "{}", self.census(space, holding.filtered));
        }
        if let Some(saved) = &holding.saved {
            self.faults(&mut out, saved);
        }
        self.groups(&mut out, holding);
        out
    }

    fn census(&self, space: &Space, filtered: bool) -> String {
        let name = clean(&space.table.name);
        if let Some(error) = &space.error {
            return self.paint(RED, &format!("{name}: not read: {error}"));
        }
        let Census { total, evictable, unreplied } = space.census;
        let mut text = match (total, filtered) {
            (0, false) => format!("{name}: no entries"),
            (0, true) => format!("{name}: no entry passes the filter"),
            (1, false) => format!("{name}: 1 entry"),
            (_, false) => format!("{name}: {total} entries"),
            (1, true) => format!("{name}: 1 entry passes the filter"),
            (_, true) => format!("{name}: {total} entries pass the filter"),
        };
        if total > 0 {
            let _ = write!(
                text,
                ", {evictable} evictable ({} %), {unreplied} never answered ({} %)",
                percent(evictable, total),
                percent(unreplied, total)
            );
        }
        if let (Some(count), Some(max)) = (space.table.count, space.table.max.filter(|max| *max > 0)) {
            let mark = if count >= max { "  !FULL" } else { "" };
            let line = format!("  nf_conntrack_count {count} of {max} ({} %){mark}", percent(count, max));
            let _ = write!(text, "\n{}", self.paint(table_style(&space.table), &line));
        }
        if let Some(held) = space.held().filter(|held| *held > 0) {
            let line = format!(
                "  !{held} of {} counted entries are in no list: removed or not yet in the table, and held by waiting packets \
                 or a module",
                space.counted().unwrap_or(held)
            );
            let _ = write!(text, "\n{}", self.paint(YELLOW, &line));
        }
        if space.interrupted {
            text += "\n";
            text += &self.paint(
                YELLOW,
                "  !the table changed so much while it was read that entries may be missing or twice",
            );
        }
        text
    }

    fn faults(&self, out: &mut String, saved: &Saved) {
        if let Some((line, why)) = &saved.first {
            let lines = if saved.unread == 1 { "line is" } else { "lines are" };
            let text = format!("  !{} {lines} no entry; the first is line {line}: {why}", saved.unread);
            let _ = writeln!(out, "{}", self.paint(YELLOW, &text));
        }
        if let Some(line) = saved.cut {
            let text = format!("  !the last line, {line}, ends in the middle and is not counted");
            let _ = writeln!(out, "{}", self.paint(YELLOW, &text));
        }
    }

    fn groups(&self, out: &mut String, holding: &Holding) {
        let (ranked, total) = (&holding.ranked, holding.census().total);
        if ranked.groups.is_empty() {
            return;
        }
        let columns: Vec<GroupBy> = GroupBy::ALL.into_iter().filter(|by| holding.by.contains(*by)).collect();
        let accounted = ranked.groups.iter().any(|group| group.traffic.is_some());
        let numbers = if accounted { 4 } else { 2 };
        let mut rows = vec![heads(&columns, accounted)];
        for group in &ranked.groups {
            let mut row = vec![group.count.to_string(), format!("{} %", percent(group.count, total))];
            if accounted {
                let traffic = |of: fn(Traffic) -> u64| {
                    group.traffic.map_or_else(|| "-".to_owned(), |traffic| of(traffic).to_string())
                };
                row.extend([traffic(|traffic| traffic.packets), traffic(|traffic| traffic.bytes)]);
            }
            row.extend(columns.iter().map(|by| cell(group, *by, holding)));
            rows.push(row);
        }
        let widths: Vec<usize> = (0..columns.len() + numbers)
            .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
            .collect();
        for (number, row) in rows.iter().enumerate() {
            let mut line = String::new();
            for (at, (text, width)) in row.iter().zip(&widths).enumerate() {
                let right = at < numbers || is_number(columns[at - numbers]);
                let _ =
                    if right { write!(line, "  {text:>width$}") } else { write!(line, "  {text:<width$}") };
            }
            let line = line.trim_end();
            let _ = writeln!(out, "{}", self.paint(if number == 0 { BOLD } else { "" }, line));
        }
        if ranked.more_groups > 0 {
            let text = format!(
                "  and {} more group{} with {} entr{}",
                ranked.more_groups,
                if ranked.more_groups == 1 { "" } else { "s" },
                ranked.more_entries,
                if ranked.more_entries == 1 { "y" } else { "ies" },
            );
            let _ = writeln!(out, "{}", self.paint(DIM, &text));
        }
        if ranked.ungrouped > 0 {
            let text = format!(
                "  !{} entries are in no group: there are more groups than are kept; group by less with --by",
                ranked.ungrouped
            );
            let _ = writeln!(out, "{}", self.paint(YELLOW, &text));
        }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        paint(self.color, style, text)
    }
}

/// How far the reading of a table has come.
pub fn progress(table: &Table, entries: u64) -> String {
    let name = clean(&table.name);
    match table.count {
        Some(count) => format!("{name}: {entries} of about {count} entries"),
        None => format!("{name}: {entries} entries"),
    }
}

const fn is_number(by: GroupBy) -> bool {
    use GroupBy::{Dport, Mark, Rdport, Rsport, Sport, Zone};
    matches!(by, Sport | Dport | Rsport | Rdport | Zone | Mark)
}

fn heads(columns: &[GroupBy], accounted: bool) -> Vec<String> {
    let titles = columns.iter().map(|by| match by {
        GroupBy::Proto => "flow",
        other => other.name(),
    });
    let traffic: &[&str] = if accounted { &["packets", "bytes"] } else { &[] };
    let numbers = ["entries", "share"].into_iter().chain(traffic.iter().copied());
    numbers.chain(titles).map(str::to_owned).collect()
}

/// What a flow or protocol does not have is a dash.
fn cell(group: &Group, by: GroupBy, holding: &Holding) -> String {
    let shown = match by {
        GroupBy::Netns => {
            group.netns.map(|netns| holding.name(netns).map_or_else(|| netns.to_string(), clean))
        }
        GroupBy::Proto => group
            .proto
            .zip(group.family)
            .map(|(proto, family)| format!("{} {}", family_name(family), protocol::name(proto))),
        GroupBy::State => group.state.map(|state| state.name().to_owned()),
        GroupBy::Assured => group.assured.map(|assured| if assured { "yes" } else { "no" }.to_owned()),
        // Rules write marks like this.
        GroupBy::Mark => group.mark.map(|mark| format!("{mark:#x}")),
        _ => group.key(by),
    };
    shown.unwrap_or_else(|| "-".into())
}

/// What is not 0 is never shown as 0, and a part never as the whole.
fn percent(part: u64, whole: u64) -> String {
    let exact = part as f64 * 100.0 / whole.max(1) as f64;
    match exact {
        0.0 => "0".into(),
        ..0.05 => "<0.1".into(),
        100.0.. => "100".into(),
        _ => format!("{:.1}", exact.min(99.9)),
    }
}

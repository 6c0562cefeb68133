//! What all plain text has in common: colours, times of day, rates.

use jiff::tz::TimeZone;

pub(super) use super::clean::clean;

use crate::model::Table;
use crate::model::verdict::{Level, NEARLY_FULL_PCT, filled_pct};

pub(super) const BOLD: &str = "\x1b[1m";
pub(super) const DIM: &str = "\x1b[2m";
pub(super) const RED: &str = "\x1b[1;31m";
pub(super) const YELLOW: &str = "\x1b[1;33m";
const PLAIN: &str = "\x1b[0m";

/// Text in a style, which is empty for none, where colours are shown at all.
pub(super) fn paint(color: bool, style: &str, text: &str) -> String {
    if color && !style.is_empty() { format!("{style}{text}{PLAIN}") } else { text.to_owned() }
}

/// The style of news as bad as this.
pub(super) const fn level_style(level: Level) -> &'static str {
    match level {
        Level::Calm => "",
        Level::Warning => YELLOW,
        Level::Critical => RED,
    }
}

/// The style of a line about a table.
pub(super) fn table_style(table: &Table) -> &'static str {
    match filled_pct(table) {
        Some(100.0..) => RED,
        Some(NEARLY_FULL_PCT..) => YELLOW,
        _ => "",
    }
}

/// That some namespaces were not looked at.
pub(super) fn left_out(namespaces: u64) -> String {
    match namespaces {
        0 => "all network namespaces are looked at again".into(),
        1 => "1 network namespace is not looked at: its table is not read".into(),
        many => format!("{many} network namespaces are not looked at: their tables are not read"),
    }
}

/// The time of day, to the second.
pub(super) fn time(wall_ns: i128, zone: &TimeZone) -> String {
    zoned(wall_ns, zone).strftime("%H:%M:%S").to_string()
}

/// The day and the time, to the second.
pub(super) fn date_and_time(wall_ns: i128, zone: &TimeZone) -> String {
    zoned(wall_ns, zone).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The time of day, to the millisecond.
pub(super) fn time_ms(wall_ns: i128, zone: &TimeZone) -> String {
    zoned(wall_ns, zone).strftime("%H:%M:%S.%3f").to_string()
}

fn zoned(wall_ns: i128, zone: &TimeZone) -> jiff::Zoned {
    jiff::Timestamp::from_nanosecond(wall_ns).unwrap_or(jiff::Timestamp::MAX).to_zoned(zone.clone())
}

/// A rate in at most six characters; what happened at all is never shown as 0.
pub(super) fn rate(rate: f64) -> String {
    match rate {
        0.0 => "0".into(),
        ..0.05 => "<0.1".into(),
        ..9.95 => format!("{rate:.1}"),
        ..999_999.5 => format!("{rate:.0}"),
        ..999.95e6 => format!("{:.1}M", rate / 1e6),
        _ => format!("{rate:.1e}"),
    }
}

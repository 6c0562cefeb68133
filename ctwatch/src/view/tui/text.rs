//! Numbers, times and names as text of a known width.

use std::time::Duration;

use ratatui::text::Span;

use super::theme::Theme;
use crate::view::plain;
pub(super) use crate::view::plain::{clean, date_and_time, time};

/// A rate in at most six characters; a dot for none.
pub(super) fn rate(rate: f64) -> String {
    match rate {
        0.0 => ".".into(),
        _ => plain::rate(rate),
    }
}

/// A count in at most seven characters.
pub(super) fn count(count: u64) -> String {
    match count {
        0 => ".".into(),
        1..=9_999_999 => count.to_string(),
        10_000_000..=999_949_999 => format!("{:.1}M", count as f64 / 1e6),
        999_950_000..=999_949_999_999 => format!("{:.1}G", count as f64 / 1e9),
        _ => format!("{:.1e}", count as f64),
    }
}

/// A time to come or gone by, as precise as it can be meant.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..1.0 => "1 s".into(),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}

/// An interval as the user gave it.
pub(super) fn interval(time: Duration) -> String {
    format!("{} s", (time.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// How many columns a text takes.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// At most `most` columns wide, the cut marked.
pub(super) fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        short.push(c);
        if width(&short) >= most {
            short.pop();
            break;
        }
    }
    if most > 0 {
        short.push('~');
    }
    short
}

/// Exactly `wide` columns, the text on the left.
pub(super) fn left(text: &str, wide: usize) -> String {
    let mut text = cut(text, wide);
    text.extend(std::iter::repeat_n(' ', wide.saturating_sub(width(&text))));
    text
}

/// Exactly `wide` columns, the text on the right.
pub(super) fn right(text: &str, wide: usize) -> String {
    let text = cut(text, wide);
    let mut padded = " ".repeat(wide.saturating_sub(width(&text)));
    padded += &text;
    padded
}

/// The newest `wide` values as heights below the highest of them; anything above 0 shows.
pub(super) fn run<'a>(
    values: impl IntoIterator<Item = &'a f64, IntoIter: DoubleEndedIterator>,
    wide: usize,
    theme: Theme,
) -> String {
    let newest: Vec<f64> = values.into_iter().rev().take(wide).copied().collect();
    let highest = newest.iter().copied().fold(0.0, f64::max);
    let steps = theme.steps();
    let mut text = " ".repeat(wide - newest.len());
    text.extend(newest.iter().rev().map(|value| {
        // 1 to 8: the step's number is small and not negative.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 8")]
        let step = (value / highest * 8.0).ceil() as usize;
        if *value > 0.0 { steps[step.clamp(1, 8)] } else { steps[0] }
    }));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_show_whatever_happened() {
        let theme = Theme { color: false, blocks: true };
        assert_eq!(run([0.0, 0.1, 50.0, 100.0].iter(), 6, theme), "   ▁▄█");
        assert_eq!(run([].iter(), 3, theme), "   ");
        assert_eq!(run([7.0, 0.0].iter(), 1, theme), " ");
    }

    #[test]
    fn spans_are_as_precise_as_meant() {
        let shown = |seconds: f64| span(Duration::from_secs_f64(seconds));
        assert_eq!(shown(0.2), "1 s");
        assert_eq!(shown(36.4), "36 s");
        assert_eq!(shown(200.0), "3 min");
        assert_eq!(shown(86_400.0), "24 h");
    }

    proptest! {
        #[test]
        fn padded_text_has_its_width(text in "\\PC{0,20}", wide in 0_usize..30) {
            prop_assert!(width(&left(&text, wide)) <= wide);
            prop_assert_eq!(width(&left("a~", wide)), wide);
            prop_assert!(width(&right(&text, wide)) <= wide);
        }

        #[test]
        fn numbers_keep_to_their_width(number: u64, value in 0.0..1e300) {
            prop_assert!(count(number).len() <= 7, "{}", count(number));
            prop_assert!(rate(value).len() <= 7, "{}", rate(value));
            prop_assert!(number == 0 || count(number) != ".");
            prop_assert!(value == 0.0 || rate(value) != ".");
        }
    }
}

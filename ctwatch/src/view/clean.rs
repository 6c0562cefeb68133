//! The one cleaner for text that reaches a terminal, a log or a file.
//!
//! Namespaces, rules, processes and the rest are named by anybody on the machine. A name may hold escape sequences, which
//! a terminal obeys, or characters that change the order of what is shown around them.

use std::fmt::Write as _;

/// What stands for a character that is not shown.
const HIDDEN: char = '?';

/// A name or a sentence in one line, without characters that a terminal obeys or a reader cannot see.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if is_unsafe(c) { HIDDEN } else { c }).collect()
}

/// The same for text of several lines, whose line ends stay.
pub fn clean_lines(text: &str) -> String {
    text.chars().map(|c| if c != '\n' && is_unsafe(c) { HIDDEN } else { c }).collect()
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and characters of Unicode's `Default_Ignorable` and
/// `Bidi_Control` properties that have no place in a name (Unicode 16).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes DEL and C1 in a line of JSON, which allows them unescaped. They can only stand inside its strings.
pub fn json_line(line: String) -> String {
    const fn is_raw_control(c: char) -> bool {
        matches!(c, '\u{7f}'..='\u{9f}')
    }
    if !line.contains(is_raw_control) {
        return line;
    }
    let mut escaped = String::with_capacity(line.len());
    for c in line.chars() {
        if is_raw_control(c) {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All control characters, and what else a stranger may put into a name.
    fn hostile() -> String {
        let controls = (0..0x20).chain(0x7f..0xa0).filter_map(char::from_u32);
        controls.chain("\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{ad}\u{e0041}".chars()).collect()
    }

    #[test]
    fn nothing_that_a_terminal_obeys_or_hides_is_left() {
        let text = hostile();
        assert_eq!(clean(&text), "?".repeat(text.chars().count()));
        assert_eq!(clean("web-7 é 漢 🦀"), "web-7 é 漢 🦀");
        assert_eq!(clean(&String::from_utf8_lossy(b"a\xff\x9b31m")), "a\u{fffd}\u{fffd}31m");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(clean_lines("one\ntwo\r\tthree\x1b[2J"), "one\ntwo??three?[2J");
    }

    #[test]
    fn json_has_no_raw_control_character_and_keeps_its_value() {
        let text = hostile();
        let line = json_line(serde_json::to_string(&text).unwrap());
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        assert_eq!(json_line("{}\n".into()), "{}\n");
    }
}

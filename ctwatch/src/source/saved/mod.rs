//! A list of entries that somebody saved: what `conntrack -L` printed in any of its forms, or `/proc/net/nf_conntrack`.
//!
//! It is read line by line in constant memory. Lines that are no entries are counted, with the number of the first.

mod line;
mod parts;
mod xml;

use std::io::{self, BufRead};
use std::ops::ControlFlow;

pub use parts::Broken;

use crate::model::table::Entry;

/// No entry is longer: labels may take some thousand bytes, the rest a few hundred.
const LONGEST: usize = 16 * 1024;

/// What was read of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Entries.
    pub entries: u64,
    /// Lines that are no entries and belong to no list.
    pub unread: u64,
    /// The number of the first of these, counted from 1, and its fault.
    pub first: Option<(u64, Broken)>,
    /// The number of the last line, where it ends in the middle.
    pub cut: Option<u64>,
}

/// Hands over each entry. One of any network namespace has 0 as the namespace: no list says it.
pub fn read(mut from: impl BufRead, mut each: impl FnMut(&Entry) -> ControlFlow<()>) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        let end = next(&mut from, &mut line)?;
        number += 1;
        let parsed = match end {
            End::Input if line.is_empty() => return Ok(outcome),
            End::TooLong => Err(Broken::Long),
            End::Line => parse(&line),
            End::Input => parse_last(&line),
        };
        match parsed {
            Ok(None) => {}
            Ok(Some(entry)) => {
                outcome.entries += 1;
                if each(&entry).is_break() {
                    return Ok(outcome);
                }
            }
            Err(_) if end == End::Input => outcome.cut = Some(number),
            Err(broken) => {
                outcome.unread += 1;
                outcome.first.get_or_insert((number, broken));
            }
        }
        if end == End::Input {
            return Ok(outcome);
        }
    }
}

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Line,
    /// Without a line feed.
    Input,
    /// It was passed over.
    TooLong,
}

/// Reads the next line without its end.
fn next(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<End> {
    line.clear();
    let mut long = false;
    loop {
        let buffer = match from.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        long |= line.len() + part.len() > LONGEST;
        if !long {
            line.extend_from_slice(part);
        }
        let (empty, taken) = (buffer.is_empty(), part.len() + usize::from(end.is_some()));
        from.consume(taken);
        match (end, long) {
            (Some(_), true) => return Ok(End::TooLong),
            (Some(_), false) => return Ok(End::Line),
            (None, true) if empty => return Ok(End::TooLong),
            (None, false) if empty => return Ok(End::Input),
            (None, _) => {}
        }
    }
}

/// The entry of a line; `None` where a list has lines without one.
fn parse(line: &[u8]) -> Result<Option<Entry>, Broken> {
    let text = std::str::from_utf8(line).map_err(|_| Broken::Text)?.trim();
    // What conntrack prints behind its list, where both of its outputs were saved.
    let is_note = text.starts_with("conntrack v") && text.ends_with("have been shown.");
    if text.is_empty() || is_note || xml::is_frame(text) {
        return Ok(None);
    }
    if text.starts_with('<') { xml::parse(text) } else { line::parse(text) }.map(Some)
}

/// The same of the last line, where the line feed is missing: it may lack more.
fn parse_last(line: &[u8]) -> Result<Option<Entry>, Broken> {
    let entry = parse(line)?;
    let text = String::from_utf8_lossy(line);
    let whole = entry.is_none() || text.trim_start().starts_with('<') || line::is_whole(&text);
    if whole { Ok(entry) } else { Err(Broken::Cut) }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    const ENTRY: &str = "udp      17 29 src=1.1.1.1 dst=2.2.2.2 sport=5 dport=6881 [UNREPLIED] src=2.2.2.2 dst=1.1.1.1 sport=6881 dport=5 mark=0 use=1";

    /// The outcome and the entries, with a buffer that ends inside of lines.
    fn all(text: &[u8]) -> (Outcome, Vec<Entry>) {
        let mut entries = Vec::new();
        let outcome = read(BufReader::with_capacity(37, text), |entry| {
            entries.push(*entry);
            ControlFlow::Continue(())
        });
        (outcome.unwrap(), entries)
    }

    #[test]
    fn lines_around_a_list_are_no_faults() {
        let text = format!(
            "{ENTRY}\n\n{ENTRY}\r\nconntrack v1.4.8 (conntrack-tools): 2 flow entries have been shown.\n"
        );
        let (outcome, entries) = all(text.as_bytes());
        assert_eq!(outcome, Outcome { entries: 2, ..Outcome::default() });
        assert_eq!(entries[0], entries[1]);
    }

    #[test]
    fn what_cannot_be_read_is_counted_with_the_first_line() {
        let text = format!("{ENTRY}\n$ conntrack -L\n\u{1b}[0m\n{ENTRY}\n");
        let (outcome, entries) = all(text.as_bytes());
        assert_eq!((entries.len(), outcome.unread), (2, 2));
        assert_eq!((outcome.first, outcome.cut), (Some((2, Broken::Protocol)), None));
        let (outcome, _) = all(&[b"\xff\xfe\n", ENTRY.as_bytes(), b"\n"].concat());
        assert_eq!((outcome.entries, outcome.first), (1, Some((1, Broken::Text))));
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let text = [&vec![b'x'; 10 * LONGEST][..], b"\n", ENTRY.as_bytes(), b"\n"].concat();
        let (outcome, entries) = all(&text);
        assert_eq!((entries.len(), outcome.first), (1, Some((1, Broken::Long))));
        let (outcome, _) = all(&vec![b'x'; 10 * LONGEST]);
        assert_eq!((outcome.entries, outcome.unread), (0, 1));
        let mut line = Vec::new();
        let mut from = BufReader::new(&text[..]);
        assert_eq!(next(&mut from, &mut line).unwrap(), End::TooLong);
        assert!(line.capacity() <= 2 * LONGEST);
    }

    /// A cut number would read as another one.
    #[test]
    fn a_list_that_was_cut_off_counts_only_whole_entries() {
        for at in 0..ENTRY.len() {
            let (outcome, entries) = all(format!("{ENTRY}\n{}", &ENTRY[..at]).as_bytes());
            let cut = if at > 0 && entries.len() < 2 { Some(2) } else { None };
            assert_eq!((outcome.unread, outcome.cut), (0, cut), "{at}");
            assert!(entries.iter().all(|entry| *entry == entries[0]), "{at}");
        }
        assert_eq!(all(ENTRY.as_bytes()).0, Outcome { entries: 1, ..Outcome::default() });
    }

    #[test]
    fn reading_ends_where_nobody_wants_more() {
        let text = format!("{ENTRY}\n").repeat(9);
        let mut left = 4;
        let outcome = read(text.as_bytes(), |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(outcome.unwrap().entries, 4);
    }

    proptest! {
        #[test]
        fn damaged_lists_never_panic(flips in prop::collection::vec((0_usize..400, any::<u8>()), 1..20)) {
            let mut bytes = format!("{ENTRY}\n<flow><meta direction=\"original\">").into_bytes();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let (outcome, entries) = all(&bytes);
            prop_assert_eq!(outcome.entries, entries.len() as u64);
        }
    }
}

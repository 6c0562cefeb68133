//! The flags of `ctwatch record`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ABOUT_OUTPUT, Format, LiveArgs, Options};
use crate::record::Limits;

/// Flags of `record`, as typed.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// The recording; one that is there already is continued
    file: PathBuf,
    /// Keep the last DURATION only: a number with s, m, h or d, as 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = ABOUT_OUTPUT)]
    keep: Option<Duration>,
    /// Never let the file grow past BYTES, at least 1M; K, M and G count in 1024s. The oldest reports are given up
    #[arg(long, value_name = "BYTES", value_parser = parse_size, help_heading = ABOUT_OUTPUT)]
    max_size: Option<u64>,
    #[command(flatten)]
    live: LiveArgs,
}

/// The flags of `record`, checked and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordOptions {
    /// Where to.
    pub file: PathBuf,
    /// How far it may grow.
    pub limits: Limits,
    /// What `live` would do. With [`Format::Auto`] nothing is printed.
    pub live: Options,
}

impl From<RecordArgs> for RecordOptions {
    fn from(args: RecordArgs) -> Self {
        let live = Options::from(args.live);
        let RecordArgs { file, keep, max_size, .. } = args;
        Self {
            file,
            limits: Limits { keep, max_size },
            live: Options { format: printed(live.format), ..live },
        }
    }
}

const fn printed(format: Format) -> Format {
    match format {
        Format::Screen => Format::Auto,
        format => format,
    }
}

/// A number of seconds, minutes, hours or days.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a number with s, m, h or d, for example 90s, 30m, 12h or 7d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds) {
        Some(seconds @ 1..=315_360_000) => Ok(Duration::from_secs(seconds)),
        _ => Err("between 1s and 3650d".into()),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, ""),
    };
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => 0,
    };
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match size {
        None => Err("a number of bytes, for example 64M".into()),
        Some(size) if size < Limits::LEAST_SIZE => Err("at least 1M".into()),
        Some(size) => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_and_bounded() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_hours(7 * 24)));
        for wrong in ["", "s", "5", "0s", "-1h", "1w", "5é", "99999999999999999999d", "3651d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2097152"), Ok(2 << 20));
        for wrong in ["", "M", "1K", "-5", "99999999999999999999G", "17179869184G"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}

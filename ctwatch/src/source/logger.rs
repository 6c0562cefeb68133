//! Where the programs' own log goes under `-v`.

use std::io::Write as _;

use log::{Log, Metadata, Record};

/// Writes each record to stderr as one line.
#[derive(Clone, Copy, Debug)]
pub struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // Nobody could be told that stderr is gone.
        let _ = writeln!(
            std::io::stderr(),
            "ctwatch: kernel: {}: {}",
            record.level().as_str().to_lowercase(),
            record.args()
        );
    }

    fn flush(&self) {}
}

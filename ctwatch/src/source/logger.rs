//! Where the programs' own log goes under `-v`.

use std::io::Write as _;

use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use super::attached::Attached;

/// The programs' own log, where one of those attached writes it. Opening it takes CAP_SYS_ADMIN,
/// as everything does that the kernel finds by number: who has less watches without.
pub(super) fn of(attached: &Attached) -> Option<EbpfLogger<Stderr>> {
    let program = attached.user_of("AYA_LOGS").ok()??;
    match EbpfLogger::init_from_id_with_logger(program, Stderr) {
        Ok(logger) => Some(logger),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ctwatch: the programs' own log cannot be read: {error}");
            None
        }
    }
}

/// Writes each record to stderr as one line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stderr;

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

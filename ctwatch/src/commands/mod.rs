//! One file per subcommand: each wires a source to the model to a view.

mod capture;
pub mod doctor;
pub mod export;
pub mod live;
pub mod live_screen;
pub mod record;
pub mod replay;
pub mod report;
mod running;
#[cfg(test)]
mod scripted;
pub mod table;
mod table_saved;
mod terminal;
pub mod trace;
mod trace_recorded;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::{self, Command};
use crate::kernel::facts::Facts;
use crate::privileges::{self, Work};
use crate::view::Machine;
use crate::view::clean::clean_lines;

/// Runs a command to its end.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Doctor(args) => return Ok(doctor::run(&args)),
        Command::Live(args) => live::run(&args.into()),
        Command::Trace(args) => trace::run(&args.into()),
        Command::Table(args) => table::run(&args.into()),
        Command::Export(args) => export::run(&(*args).into()),
        Command::Record(args) => record::run(&(*args).into()),
        Command::Replay(args) => replay::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Facts => facts(),
        Command::Completions { shell } => {
            privileges::restrict(Work::NOTHING);
            print(&cli::completions(shell))
        }
        Command::Man => {
            privileges::restrict(Work::NOTHING);
            print(&cli::man().context("cannot render the man page")?)
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

/// What `facts` prints.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    facts: Facts,
    privileges: privileges::Report,
}

fn facts() -> anyhow::Result<()> {
    let restricted = privileges::restrict(Work { facts: true, ..Work::NOTHING });
    let shown =
        Shown { facts: without_addresses(Facts::read()?), privileges: privileges::report(restricted) };
    let mut text = serde_json::to_vec_pretty(&shown)?;
    text.push(b'\n');
    print(&text)
}

/// Facts are meant for bug reports: where the kernel lies in memory (KASLR) must not stand in them. Sizes stay, and
/// whether an address is known.
fn without_addresses(mut facts: Facts) -> Facts {
    let symbols = &mut facts.symbols;
    for text in &mut symbols.callers {
        text.end = text.end.saturating_sub(text.start) + 1;
        text.start = 1;
    }
    symbols.removal = symbols.removal.min(1);
    symbols.ratelimit = symbols.ratelimit.min(1);
    facts
}

/// Writes all of it to stdout. A reader that went away had enough: no error.
pub fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if !nobody_reads(&error) => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// A pipe whose reader went away, or a terminal that hung up.
pub fn nobody_reads(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(nix::errno::Errno::EIO as i32)
}

/// Shows a message on stderr. It may quote names that strangers chose. A failure is ignored: there is no other way to
/// report it.
pub fn tell(message: &str) {
    let _ = writeln!(io::stderr().lock(), "ctwatch: {}", clean_lines(message));
}

/// Whether to colour what is written to stdout, where the user did not ask for no colour.
fn color(asked: bool) -> bool {
    // NO_COLOR counts when it is set to anything but nothing (no-color.org).
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    asked && !refused && io::stdout().is_terminal()
}

fn machine() -> anyhow::Result<Machine> {
    let host = nix::unistd::gethostname().context("cannot read the host name")?;
    let system = nix::sys::utsname::uname().context("cannot read the kernel release")?;
    Ok(Machine {
        host: host.to_string_lossy().into_owned(),
        kernel: system.release().to_string_lossy().into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_hold_sizes_and_no_addresses() {
        let captured = include_str!("../../tests/facts/debian-6.12.json");
        let facts: Facts = serde_json::from_str(captured).unwrap();
        let sizes = |facts: &Facts| -> Vec<u64> {
            facts.symbols.callers.iter().map(|text| text.end - text.start).collect()
        };
        let shown = without_addresses(facts.clone());
        assert_eq!(sizes(&shown), sizes(&facts));
        assert!(!sizes(&shown).is_empty());
        assert_eq!(shown.symbols.removal != 0, facts.symbols.removal != 0);
        assert!(shown.symbols.callers.iter().all(|text| text.start == 1));
    }
}

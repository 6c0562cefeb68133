//! One file per subcommand: each wires a source to the model to a view.

pub mod doctor;
pub mod live;
pub mod live_screen;
pub mod table;
pub mod trace;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::{self, Command};
use crate::kernel::facts::Facts;

/// Runs a command to its end.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Doctor(args) => return Ok(doctor::run(&args)),
        Command::Live(args) => live::run(&args.into()),
        Command::Trace(args) => trace::run(&args.into()),
        Command::Table(args) => table::run(&args.into()),
        Command::Facts => facts(),
        Command::Completions { shell } => print(&cli::completions(shell)),
        Command::Man => print(&cli::man().context("cannot render the man page")?),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn facts() -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(&Facts::read()?)?;
    text.push(b'\n');
    print(&text)
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

/// Shows a line on stderr; nobody is left to tell when that fails.
pub fn tell(message: &str) {
    let _ = writeln!(io::stderr().lock(), "ctwatch: {message}");
}

//! One file per subcommand: each wires a source to the model to a view.

pub mod live;

use std::io::{self, Write as _};

use anyhow::Context as _;

use crate::cli::{self, Command};
use crate::kernel::facts::Facts;

/// Runs a command to its end.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Live(args) => live::run(&args.into()),
        Command::Facts => facts(),
        Command::Completions { shell } => print(&cli::completions(shell)),
        Command::Man => print(&cli::man().context("cannot render the man page")?),
    }
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
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}

/// Shows a line on stderr; nobody is left to tell when that fails.
pub fn tell(message: &str) {
    let _ = writeln!(io::stderr().lock(), "ctwatch: {message}");
}

//! Parses, runs, and turns the outcome into an exit code: 0 done, 1 failed, 2 wrong usage; `doctor` has its own.

use std::process::ExitCode;

use clap::Parser as _;
use ctwatch::{cli::Cli, commands};

fn main() -> ExitCode {
    let cli = match Cli::try_parse().and_then(Cli::checked) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match commands::run(cli.into_command()) {
        Ok(code) => code,
        Err(error) => {
            commands::tell(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Help on stdout with 0, wrong usage on stderr with 2. A monitoring system takes 2 for critical, so where it called
/// `doctor` it gets 3.
fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell when that fails.
    let _ = error.print();
    let doctor = std::env::args_os().nth(1).is_some_and(|command| command == "doctor");
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if doctor => ExitCode::from(commands::doctor::COULD_NOT_TELL),
        code => ExitCode::from(u8::try_from(code).unwrap_or(2)),
    }
}

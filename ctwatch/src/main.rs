//! Parses, runs, and turns the outcome into an exit code: 0 done, 1 failed, 2 wrong usage (by clap).

use std::process::ExitCode;

use clap::Parser as _;
use ctwatch::{cli::Cli, commands};

fn main() -> ExitCode {
    match commands::run(Cli::parse().into_command()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            commands::tell(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

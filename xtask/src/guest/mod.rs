//! What runs inside a guest: its init, the traffic it makes, the witnesses it asks, the scenarios.
//!
//! Nothing in here may believe ctwatch: expectations come from the generators' own counts and from the kernel
//! through `conntrack`, `nft` and `/proc`.

mod attacker;
mod bench;
mod budget;
mod ctwatch;
mod demo;
mod exporter;
mod generic_netlink;
mod init;
mod ipvs;
mod kernel_log;
mod modules;
mod openvswitch;
mod processes;
mod prototypes;
mod report;
mod scenarios;
mod space;
mod state;
mod traffic;
mod trial;
mod wait;
mod witness;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "guest", about = "Runs inside a guest; not meant for the machine you work on")]
struct Args {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// An interactive shell with tracking on.
    Shell,
    /// One shell command with tracking on; its exit code is reported.
    Command {
        /// Leave conntrack unloaded.
        #[arg(long)]
        no_conntrack: bool,
        /// Where the result lines go.
        #[arg(long, default_value = report::CHANNEL)]
        results: PathBuf,
        /// Words of the command, joined by blanks.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// The scenarios whose name contains one of the filters; all without a filter.
    Test {
        /// Where the result lines go.
        #[arg(long, default_value = report::CHANNEL)]
        results: PathBuf,
        /// The source that ctwatch is told to use where a scenario names none.
        #[arg(long, default_value = "auto")]
        source: String,
        /// End after the first scenario that fails.
        #[arg(long)]
        first_failure: bool,
        /// Parts of scenario names; whole ones behind `=`.
        filters: Vec<String>,
    },
    /// What watching costs, on a guest whose clock counts instructions.
    Bench {
        /// Where the result lines go.
        #[arg(long, default_value = report::CHANNEL)]
        results: PathBuf,
        /// Parts of observers' names; all without one.
        only: Vec<String>,
    },
    /// One million flows with the table full, once for each of these sources.
    Million {
        /// Where the result lines go.
        #[arg(long, default_value = report::CHANNEL)]
        results: PathBuf,
        /// `--source` of ctwatch.
        sources: Vec<String>,
    },
    /// A burst of flows that is listened to.
    Burst {
        /// On the machine itself, which is left as it is.
        #[arg(long)]
        native: bool,
        /// Where the result lines go.
        #[arg(long, default_value = report::CHANNEL)]
        results: PathBuf,
    },
    /// What this kernel says of these functions.
    Prototypes {
        /// Where the result lines go.
        #[arg(long, default_value = report::CHANNEL)]
        results: PathBuf,
        /// Their names.
        functions: Vec<String>,
    },
    /// A user without privileges who sends forged messages, started by a scenario.
    Attack,
    /// The names of all scenarios.
    List,
    /// A bounded flood against a small table, with `ctwatch live` in front.
    Demo {
        /// How long the flood lasts.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Arguments for `ctwatch live`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        live: Vec<String>,
    },
}

/// The names of all scenarios, in the order they run.
pub(crate) fn scenario_names() -> impl Iterator<Item = &'static str> {
    scenarios::all().into_iter().map(|scenario| scenario.name)
}

/// Runs one mode; as PID 1 it is the guest's init around it, and never comes back.
pub(crate) fn main(args: Vec<String>) -> ExitCode {
    if std::process::id() == 1 {
        init::run(&args);
    }
    let parsed = match Args::try_parse_from(std::iter::once("guest".to_owned()).chain(args)) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    match run(parsed.mode) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mode: Mode) -> anyhow::Result<ExitCode> {
    match mode {
        Mode::Shell => init::shell(),
        Mode::Command { no_conntrack, results, words } => {
            init::command(&words.join(" "), !no_conntrack, &results)
        }
        Mode::Test { results, source, first_failure, filters } => {
            ctwatch::use_source(source);
            scenarios::run(&filters, first_failure, &results)
        }
        Mode::Bench { results, only } => bench::run(&only, &results),
        Mode::Million { results, sources } => bench::million(&sources, &results),
        Mode::Burst { native, results } => bench::burst(native, &results),
        Mode::Prototypes { results, functions } => prototypes::run(&functions, &results),
        Mode::Attack => attacker::run(),
        Mode::List => {
            scenario_names().for_each(|name| println!("{name}"));
            Ok(ExitCode::SUCCESS)
        }
        Mode::Demo { seconds, live } => demo::run(seconds, &live),
    }
}

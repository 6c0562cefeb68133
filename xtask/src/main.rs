//! Builds, runs, tests and shows ctwatch. The same binary, linked statically, is the init of every guest.

mod bench;
mod build;
mod ci;
mod complaints;
mod fuzz;
mod guest;
mod guest_protocol;
#[cfg(test)]
mod manifests;
mod monitoring;
mod mutants;
mod package;
mod packages;
mod page;
mod paths;
mod prototypes;
#[cfg(test)]
mod quoted;
mod step;
mod test;
mod toolchain;
mod vm;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use step::say;
use vm::boot::Guest;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Builds, runs, tests and shows ctwatch")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find, or install, what builds the eBPF half
    Toolchain,
    /// Build both halves
    Build {
        /// With optimisations
        #[arg(long)]
        release: bool,
    },
    /// Build, then run ctwatch on this machine
    Run {
        /// Arguments of ctwatch, after `--`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Leave one static binary in target/dist
    Dist,
    /// Run a command, or a shell, in a guest with ctwatch in it
    Vm {
        /// The beginning of a kernel's release, as 5.10, 6.1, 6.12, 7.3, or a whole one
        #[arg(required_unless_present = "list")]
        kernel: Option<String>,
        /// Show every kernel that can be fetched
        #[arg(long)]
        list: bool,
        /// Leave conntrack unloaded at first
        #[arg(long)]
        no_conntrack: bool,
        /// The command, after `--`; without one, a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Show ctwatch on a live flood inside a guest; ends by itself
    Demo {
        /// The kernel of the guest
        #[arg(long, default_value = "6.12")]
        kernel: String,
    },
    /// Run unit tests, then the scenarios that find most, on every kernel of the matrix
    Test {
        /// Only tests whose names contain this (or, behind `=`, are this), with all such scenarios
        filter: Option<String>,
        /// Run each scenario, and on each kernel what the kernel can change
        #[arg(long)]
        full: bool,
        /// Run each scenario on each kernel; takes hours
        #[arg(long, conflicts_with = "full")]
        everywhere: bool,
        /// Only on this kernel (may be repeated)
        #[arg(long = "kernel")]
        kernels: Vec<String>,
        /// Only scenarios in guests
        #[arg(long)]
        guests: bool,
        /// Only the runs by this source
        #[arg(long, value_parser = ["auto", "kprobe", "netlink"])]
        source: Option<String>,
        /// Guests at once
        #[arg(short, long)]
        jobs: Option<usize>,
    },
    /// Compare what each hook relies on with the types of every kernel of the matrix
    Prototypes,
    /// Measure what watching costs, in instructions of a guest per new flow
    Bench(bench::Options),
    /// Check what `contrib/` has for monitoring: with promtool, systemd-analyze and a real Prometheus, on this machine
    Monitoring,
    /// Open the page of `report` in a headless Chromium at two widths, light and dark, and check it
    Page,
    /// Break the counting programs in one place at a time, and run what should notice
    Mutants(mutants::Options),
    /// Fuzz every parser of foreign bytes, or one of them
    Fuzz(fuzz::Options),
    /// Make a .deb and an .rpm in target/package
    Package {
        /// Install the .deb in a clean Debian instead, check it, run its service in a guest, and remove it (as root)
        #[arg(long)]
        check: bool,
    },
    /// Everything that must hold before a change lands
    Ci,
}

fn main() -> ExitCode {
    if std::process::id() == 1 && Path::new(guest_protocol::ARGS_FILE).exists() {
        return guest::main(guest_args());
    }
    // Init starts its work as a child of this form.
    let mut args = std::env::args().skip(1);
    if args.next().is_some_and(|first| first == "guest") {
        return guest_worker(args.collect());
    }
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Init has nobody to report to: arguments that cannot be read are none, and the console says why.
fn guest_args() -> Vec<String> {
    let read = || -> Result<Vec<String>> {
        Ok(serde_json::from_str(&std::fs::read_to_string(guest_protocol::ARGS_FILE)?)?)
    };
    let args = read().unwrap_or_else(|error| {
        eprintln!("{}: {error:#}", guest_protocol::ARGS_FILE);
        Vec::new()
    });
    if let Err(error) = guest_protocol::attach_terminal(&args) {
        eprintln!("no terminal: {error:#}");
    }
    args
}

fn guest_worker(args: Vec<String>) -> ExitCode {
    let relay = guest_protocol::outlive_interrupt().and_then(|()| guest_protocol::Relay::start());
    let relay = relay.unwrap_or_else(|error| {
        eprintln!("guest: {error:#}");
        None
    });
    let code = guest::main(args);
    if let Some(relay) = relay {
        relay.end();
    }
    code
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Toolchain => say(format!("the eBPF half is built by {}", toolchain::ensure()?.describe())),
        Task::Build { release } => build::all(release)?,
        Task::Run { args } => return run_ctwatch(&args),
        Task::Dist => {
            println!("{}", build::dist()?.display());
        }
        Task::Vm { list: true, .. } => vm::kernels::list()?,
        Task::Vm { kernel, command, no_conntrack, .. } => {
            return vm::run(&kernel.context("no kernel given")?, &command, no_conntrack);
        }
        Task::Demo { kernel } => return demo(&kernel),
        Task::Test { filter, full, everywhere, kernels, guests, source, jobs } => {
            let extent = match (full, everywhere) {
                (_, true) => test::Extent::Everywhere,
                (true, false) => test::Extent::Full,
                (false, false) => test::Extent::Quick,
            };
            let selection = test::Selection { filter, kernels, source, jobs, extent };
            if guests { test::guests(&selection)? } else { test::run(&selection)? }
        }
        Task::Prototypes => prototypes::run()?,
        Task::Bench(options) => bench::run(&options)?,
        Task::Monitoring => monitoring::run()?,
        Task::Page => page::run()?,
        Task::Mutants(options) => mutants::run(&options)?,
        Task::Fuzz(options) => fuzz::run(&options)?,
        Task::Package { check: true } => package::install::run()?,
        Task::Package { check: false } => package::run()?,
        Task::Ci => ci::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes ctwatch: as it is for root, through sudo where there is one, else unprivileged, which ctwatch explains.
fn run_ctwatch(args: &[String]) -> Result<ExitCode> {
    build::all(true)?;
    let binary = build::release_binary()?;
    let mut command = if nix::unistd::geteuid().is_root() || paths::program("sudo").is_none() {
        Command::new(&binary)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(&binary);
        sudo
    };
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", binary.display()))
}

fn demo(kernel: &str) -> Result<ExitCode> {
    let kernel = vm::kernels::ensure(kernel)?;
    let initramfs = vm::prepare()?;
    say(format!("a flood in a guest with {}, watched by `ctwatch live`; it ends by itself", kernel.release));
    let args = ["demo", "--seconds", "60"].map(str::to_owned).to_vec();
    vm::session(&Guest { limit: Duration::from_mins(3), ..Guest::new(&kernel, &initramfs, args) })
}

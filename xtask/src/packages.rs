//! Installing what is missing through the machine's package manager.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::program;
use crate::step::{self, Step, say};

/// A program some step needs, and the Debian package it is in.
pub(crate) type Need = (&'static str, &'static str);

/// Installs the packages of those programs that are missing.
pub(crate) fn ensure_programs(why: &str, needs: &[Need]) -> Result<()> {
    let missing: Vec<String> = needs
        .iter()
        .filter(|(name, _)| program(name).is_none())
        .map(|&(_, package)| package.to_owned())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(why, &missing)
}

/// Installs Debian packages as root or through sudo; an error names exactly what to install by hand.
pub(crate) fn install(why: &str, packages: &[String]) -> Result<()> {
    let list = packages.join(" ");
    if program("apt-get").is_none() {
        bail!(
            "{why} needs what Debian has in the packages: {list}\n\
             This machine has no apt-get: install what they contain with its own package manager, then run this again."
        );
    }
    if !nix::unistd::geteuid().is_root() && program("sudo").is_none() {
        bail!(
            "{why} needs packages, and here is neither root nor sudo. Run as root:\n  apt-get install {list}"
        );
    }
    let step = Step::begin(format!("installing for {why}: {list}"));
    // Fresh lists: a machine image's old ones name versions that the mirror may no longer have.
    if let Err(error) = step::run(apt().arg("update")) {
        say(format!("apt-get update failed, trying with the lists at hand: {error:#}"));
    }
    step::run(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages))
        .with_context(|| format!("{why} needs the packages {list}, and installing them failed"))?;
    step.end();
    Ok(())
}

/// Whether apt could install this package.
pub(crate) fn available(package: &str) -> bool {
    step::output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
        .is_ok_and(|out| out.status.success() && !out.stdout.trim().is_empty())
}

fn apt() -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "-q"]);
    command
}

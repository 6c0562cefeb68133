//! Finding, or installing, what builds the eBPF half.
//!
//! That half needs `core` built from source for the BPF target: either a rustup nightly with `rust-src`, or a
//! distribution's compiler with its source, which is let use unstable features by `RUSTC_BOOTSTRAP`. Either links
//! with bpf-linker, built against the LLVM of that compiler. Everything is found by looking at what is there, so a
//! second run installs nothing and no stamp can be stale.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::packages;
use crate::paths::{self, program};
use crate::step::{self, Step, say};

/// The release of bpf-linker that is built here, and the LLVM releases it knows.
const BPF_LINKER: &str = "0.13.0";
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Debian's compiler that is recent enough (it is kept so for its browsers), its cargo and its source.
const SYSTEM_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// The oldest compiler that aya's eBPF crates and this workspace accept.
const OLDEST_MINOR: u32 = 95;

/// A compiler with the source of `core`, and a linker that reads its bitcode.
#[derive(Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Compiler {
    Nightly,
    System,
}

impl Toolchain {
    /// `cargo` of this toolchain, in an environment where it finds its own compiler and linker.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = self.compiler.cargo();
        let linkers = self.linker.parent().unwrap_or_else(|| Path::new("."));
        command.env("PATH", prepended(linkers));
        command
    }

    /// What was chosen, in words.
    pub(crate) fn describe(&self) -> String {
        format!("{} with {}", self.compiler.name(), self.linker.display())
    }
}

impl Compiler {
    const fn name(&self) -> &'static str {
        match self {
            Self::Nightly => "rustup's nightly",
            Self::System => "the system's compiler",
        }
    }

    /// Its `rustc` or `cargo`, untouched by the toolchain that runs xtask.
    fn tool(&self, name: &str) -> Command {
        let mut command = match self {
            Self::Nightly => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", name]);
                rustup
            }
            Self::System => Command::new(format!("/usr/bin/{name}")),
        };
        for inherited in [
            "CARGO",
            "RUSTC",
            "RUSTDOC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
        ] {
            command.env_remove(inherited);
        }
        command
    }

    fn cargo(&self) -> Command {
        let mut command = self.tool("cargo");
        if *self == Self::System {
            command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// The LLVM release it was built with, if the compiler, its cargo and the source of `core` are all there.
    fn llvm(&self) -> Result<u32> {
        let version = step::read(self.tool("rustc").arg("-vV"))?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .ok_or_else(|| anyhow!("rustc -vV does not tell {name}"))
        };
        let release = field("release")?;
        let minor = release.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
        if minor.is_none_or(|minor| minor < OLDEST_MINOR) {
            bail!("its rustc {release} is older than 1.{OLDEST_MINOR}");
        }
        let sysroot = step::read(self.tool("rustc").args(["--print", "sysroot"]))?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock");
        if !source.exists() {
            bail!("it has no source of core ({} is missing)", source.display());
        }
        step::read(self.cargo().arg("--version"))?;
        let llvm = field("LLVM version")?;
        llvm.split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .with_context(|| format!("cannot read its LLVM version {llvm:?}"))
    }
}

/// Finds the toolchain for the eBPF half, installing what is missing.
pub(crate) fn ensure() -> Result<Toolchain> {
    // One that is complete is taken before a better one that lacks something: a second run asks no package manager.
    for find in [nightly_present, system_present] {
        if let Ok((compiler, llvm)) = find()
            && let Some(linker) = linker_present(llvm)
        {
            return Ok(Toolchain { compiler, linker });
        }
    }
    let mut reasons = Vec::new();
    for find in [nightly_present, system_present, nightly_installed, system_installed] {
        match find().and_then(|(compiler, llvm)| Ok(Toolchain { linker: linker(&compiler, llvm)?, compiler }))
        {
            Ok(toolchain) => return Ok(toolchain),
            Err(reason) => {
                let reason = format!("{reason:#}");
                if !reasons.contains(&reason) {
                    say(format!(
                        "looking for another compiler: {}",
                        reason.lines().next().unwrap_or_default().trim_end_matches(':')
                    ));
                    reasons.push(reason);
                }
            }
        }
    }
    bail!(
        "no compiler for the eBPF half:\n  - {}\n\
         Either of these helps:\n  \
         rustup toolchain install nightly --component rust-src   (and the LLVM development package of its release)\n  \
         apt-get install {} llvm-22-dev",
        reasons.join("\n  - "),
        SYSTEM_PACKAGES.join(" ")
    )
}

fn nightly_present() -> Result<(Compiler, u32)> {
    if program("rustup").is_none() {
        bail!("rustup is not installed");
    }
    let installed = step::read(Command::new("rustup").args(["toolchain", "list"]))?;
    if !installed.lines().any(|line| line.starts_with("nightly-")) {
        bail!("rustup has no nightly toolchain");
    }
    let llvm = Compiler::Nightly.llvm().context("rustup's nightly is of no use")?;
    Ok((Compiler::Nightly, llvm))
}

fn system_present() -> Result<(Compiler, u32)> {
    for tool in ["/usr/bin/rustc", "/usr/bin/cargo"] {
        if !Path::new(tool).exists() {
            bail!("there is no {tool}");
        }
    }
    let llvm = Compiler::System.llvm().context("the system's compiler is of no use")?;
    Ok((Compiler::System, llvm))
}

fn nightly_installed() -> Result<(Compiler, u32)> {
    if program("rustup").is_none() {
        bail!("rustup is not installed");
    }
    let step = Step::begin("asking rustup for a nightly with rust-src");
    let added = step::run(Command::new("rustup").args([
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
        "--no-self-update",
    ]));
    step.end();
    if let Err(error) = added {
        say("rustup cannot fetch one here; looking for a system compiler instead");
        return Err(error.context("rustup could not fetch a nightly with rust-src"));
    }
    nightly_present()
}

fn system_installed() -> Result<(Compiler, u32)> {
    if program("apt-get").is_some() && !packages::available(SYSTEM_PACKAGES[0]) {
        // A bare image has no lists at all: `install` fetches them.
        say(format!("{} is not in apt's lists yet", SYSTEM_PACKAGES[0]));
    }
    packages::install("the eBPF half", &SYSTEM_PACKAGES.map(str::to_owned))?;
    system_present()
}

/// Where bpf-linker for this LLVM is built.
fn tools(llvm: u32) -> PathBuf {
    paths::target(&format!("tools/llvm-{llvm}"))
}

/// bpf-linker for this LLVM: the one built here before, or the user's own.
fn linker_present(llvm: u32) -> Option<PathBuf> {
    let own = tools(llvm).join("bin/bpf-linker");
    if works(&own) {
        return Some(own);
    }
    program("bpf-linker").filter(|path| works(path) && knows(path, llvm))
}

/// The same, or a new one in `target/tools`.
fn linker(compiler: &Compiler, llvm: u32) -> Result<PathBuf> {
    if let Some(linker) = linker_present(llvm) {
        return Ok(linker);
    }
    let tools = tools(llvm);
    let own = tools.join("bin/bpf-linker");
    if !BPF_LINKER_LLVM.contains(&llvm) {
        bail!("{} uses LLVM {llvm}, which bpf-linker {BPF_LINKER} does not know", compiler.name());
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !prefix.join("include/llvm-c/Core.h").exists() || !prefix.join("bin/llvm-config").exists() {
        packages::install(&format!("bpf-linker for {}", compiler.name()), &[format!("llvm-{llvm}-dev")])?;
    }
    let step = Step::begin(format!("building bpf-linker {BPF_LINKER} for LLVM {llvm} (once)"));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    step::run_shown(
        cargo
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"])
            .args(["--features", &format!("llvm-{llvm}"), "--root"])
            .arg(&tools)
            .env("CARGO_TARGET_DIR", paths::target("tools/build"))
            .env("LLVM_PREFIX", &prefix)
            .env("PATH", prepended(&prefix.join("bin")))
            .env_remove("RUSTFLAGS"),
    )?;
    step.end();
    if !works(&own) {
        bail!("{} was built and does not start", own.display());
    }
    Ok(own)
}

fn works(linker: &Path) -> bool {
    linker.is_file()
        && step::output(Command::new(linker).arg("--version")).is_ok_and(|out| out.status.success())
}

/// Whether a bpf-linker of unknown origin is linked with the LLVM of this release.
fn knows(linker: &Path, llvm: u32) -> bool {
    step::output(Command::new("ldd").arg(linker)).is_ok_and(|out| {
        out.stdout.contains(&format!("libLLVM.so.{llvm}")) || out.stdout.contains(&format!("libLLVM-{llvm}"))
    })
}

fn prepended(directory: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = vec![directory.to_path_buf()];
    all.extend(std::env::split_paths(&path));
    std::env::join_paths(all).unwrap_or(path)
}

//! Building both halves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::paths;
use crate::step::{self, Step, say};
use crate::toolchain::{self, Toolchain};

/// Static binaries are built for the C library's own target: glibc links statically there, no musl is needed.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The bound on the static binary.
const DIST_LIMIT: u64 = 8 * 1024 * 1024;

/// `cargo` of the toolchain that runs xtask.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    command
}

/// Builds the eBPF object and leaves it where the `ctwatch` crate looks for it.
pub(crate) fn ebpf() -> Result<()> {
    let toolchain = toolchain::ensure()?;
    let step = Step::begin(format!("building the eBPF half by {}", toolchain.describe()));
    let directory = paths::target("ebpf-build");
    let mut command = ebpf_command(&toolchain, &paths::root(), &directory);
    step::run_shown(&mut command)?;
    let stripped = directory.join("ctwatch-ebpf.stripped");
    fs::write(&stripped, ebpf_built(&directory)?)
        .with_context(|| format!("writing {}", stripped.display()))?;
    install_if_changed(&stripped, &paths::ebpf_object())?;
    step.end();
    Ok(())
}

/// An object without what only a debugger reads, which is four fifths of it. BTF stays: the kernel reads it. The system's
/// `strip` does not know eBPF.
fn without_debug_information(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = object::build::elf::Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.to_vec();
        // What would move places in the BTF: bpf-linker has linked already, and no loader reads it.
        let moves_btf = name.starts_with(b".rel.BTF");
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") || moves_btf;
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections among those of symbols; the builder wants them apart.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// The object that cargo has left in this target directory.
pub(crate) fn ebpf_built(directory: &Path) -> Result<Vec<u8>> {
    let built = directory.join("bpfel-unknown-none/release/ctwatch-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    without_debug_information(&bytes).with_context(|| format!("stripping {}", built.display()))
}

/// Builds the eBPF half of the workspace at `root` into a target directory.
pub(crate) fn ebpf_command(toolchain: &Toolchain, root: &Path, directory: &Path) -> Command {
    let mut command = toolchain.cargo();
    command
        .current_dir(root)
        .args(["build", "--release", "--package", "ctwatch-ebpf", "--bin", "ctwatch-ebpf"])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"])
        .arg(directory)
        // v3 has instructions on half registers (5.1), without which each use of one takes two shifts.
        .env(
            "RUSTFLAGS",
            "-C debuginfo=2 -C link-arg=--btf -C target-cpu=v3 --cfg bpf_target_arch=\"x86_64\"",
        )
        // The workspace's release profile is for userspace: bpf-linker does the link-time work itself, and
        // stripping would take the BTF that names the maps' types.
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        // Set here, so that a developer's faster settings for userspace cannot change the programs.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "4")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none");
    command
}

/// Builds the eBPF half, then userspace with it inside.
pub(crate) fn all(release: bool) -> Result<()> {
    ebpf()?;
    let step = Step::begin("building ctwatch");
    step::run_shown(cargo().args(["build", "--package", "ctwatch"]).args(release.then_some("--release")))?;
    step.end();
    Ok(())
}

/// What `cargo test` is given for all unit tests. Checks that build ctwatch or a test of it with the same find it built:
/// cargo builds a dependency anew for each selection of packages that asks for other features of it.
pub(crate) const EVERYTHING: [&str; 2] = ["--workspace", "--all-targets"];

/// The unit tests of ctwatch as a program, without what only a debugger reads.
pub(crate) fn unit_tests() -> Result<PathBuf> {
    let step = Step::begin("building the unit tests for a guest");
    let arguments = ["test", "--no-run", "--message-format", "json"];
    let messages = step::read(cargo().args(arguments).args(EVERYTHING))?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        let is_test =
            message["profile"]["test"] == true && target["name"] == "ctwatch" && target["kind"][0] == "lib";
        message["executable"].as_str().filter(|_| is_test).map(PathBuf::from)
    };
    let built = messages.lines().find_map(executable).context("cargo built no unit tests of ctwatch")?;
    let stripped = paths::target("guests/ctwatch-tests");
    fs::create_dir_all(paths::target("guests")).context("creating target/guests")?;
    step::run(Command::new("strip").arg("-o").arg(&stripped).arg(&built))?;
    step.end();
    Ok(stripped)
}

/// Where cargo left the release binary.
pub(crate) fn release_binary() -> Result<PathBuf> {
    binary("release")
}

fn binary(profile: &str) -> Result<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let text = step::read(cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("reading cargo metadata")?;
    Ok(metadata.target_directory.join(profile).join("ctwatch"))
}

/// Builds ctwatch for a check on this machine, and says where it is.
pub(crate) fn debug() -> Result<PathBuf> {
    ebpf()?;
    let step = Step::begin("building ctwatch and its tests");
    // Its integration tests need the program, so it comes with them. `cargo build` would put another xtask in the place of
    // the one that runs.
    step::run_shown(cargo().args(["test", "--no-run"]).args(EVERYTHING))?;
    step.end();
    binary("debug")
}

/// Builds `target/dist/ctwatch`, one static file, and checks that it is small.
pub(crate) fn dist() -> Result<PathBuf> {
    let binary = static_ctwatch()?;
    let size = fs::metadata(&binary)?.len();
    say(format!("{} is {:.2} MB, static", binary.display(), size as f64 / 1e6));
    if size > DIST_LIMIT {
        bail!("{} has {size} bytes, more than the {DIST_LIMIT} promised", binary.display());
    }
    Ok(binary)
}

/// The same without a bound on its size, for guests: a developer may build faster and larger.
pub(crate) fn static_ctwatch() -> Result<PathBuf> {
    ebpf()?;
    let built = static_binary("ctwatch", "static", "the static ctwatch", |cargo| cargo)?;
    let binary = paths::target("dist/ctwatch");
    install_if_changed(&built, &binary)?;
    Ok(binary)
}

/// Builds this xtask as a static binary: the init of every guest. Nothing promises its size, so it does without the
/// link-time optimisation that takes one CPU a minute and a half.
pub(crate) fn guest_init() -> Result<PathBuf> {
    static_binary("xtask", "guest-init", "the guests' init", |cargo| {
        cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
    })
}

/// Builds both: the last minutes of ctwatch's build need one CPU only.
pub(crate) fn ctwatch_and_guest_init() -> Result<(PathBuf, PathBuf)> {
    thread::scope(|scope| {
        let init = scope.spawn(guest_init);
        let ctwatch = static_ctwatch();
        let init = init.join().map_err(|_| anyhow!("the thread that builds the guests' init panicked"))?;
        Ok((ctwatch?, init?))
    })
}

/// Builds a static ctwatch that reads its eBPF object from a file: one binary serves many objects.
pub(crate) fn with_object_from_file() -> Result<PathBuf> {
    let what = "a ctwatch that reads its eBPF object from a file";
    static_binary("ctwatch", "static", what, |cargo| cargo.args(["--features", "object-from-file"]))
}

/// Builds a package in a directory of its own below `target`: other flags in cargo's usual one would rebuild everything
/// at each turn.
fn static_binary(
    package: &str,
    directory: &str,
    what: &str,
    adapt: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<PathBuf> {
    let step = Step::begin(format!("building {what}"));
    let directory = paths::target(directory);
    let mut cargo = cargo();
    cargo
        .args(["build", "--release", "--package", package, "--target", STATIC_TARGET, "--target-dir"])
        .arg(&directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    step::run_shown(adapt(&mut cargo))?;
    step.end();
    Ok(directory.join(STATIC_TARGET).join("release").join(package))
}

/// Copies a file unless the same bytes are there already: a new time stamp would make cargo rebuild.
fn install_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    // A copy beside it, then a rename: the old file may be running.
    let new = to.with_extension("new");
    fs::copy(from, &new).with_context(|| format!("copying to {}", new.display()))?;
    fs::rename(&new, to).with_context(|| format!("replacing {}", to.display()))
}

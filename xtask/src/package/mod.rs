//! `cargo xtask package`: a .deb and an .rpm of the static binary, with man page, completions, units and licences.
//!
//! They are made by Debian's and Red Hat's own programs, which a package mirror has: nothing is compiled for them.

pub(crate) mod install;
mod notices;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::packages;
use crate::paths;
use crate::step::{self, Step};

/// Named in both packages; a release sets `CTWATCH_MAINTAINER` to an address that somebody reads.
const MAINTAINER: &str = "The ctwatch maintainers <maintainers@ctwatch.invalid>";
const SUMMARY: &str = "See what connection tracking does to a busy Linux server";
const DESCRIPTION: &str =
    "ctwatch counts new, refused, evicted and removed flows of Linux connection tracking, by network
namespace and protocol. It shows them live, finds what is wrong (doctor) and exports them to Prometheus.";

/// Where each file of the checkout goes; the rest is generated.
const FILES: [(&str, &str); 9] = [
    ("contrib/systemd/ctwatch.service", "usr/lib/systemd/system/ctwatch.service"),
    ("contrib/systemd/ctwatch-record.service", "usr/lib/systemd/system/ctwatch-record.service"),
    ("contrib/systemd/ctwatch.socket", "usr/lib/systemd/system/ctwatch.socket"),
    ("contrib/prometheus/ctwatch.rules.yml", "usr/share/doc/ctwatch/prometheus/ctwatch.rules.yml"),
    ("contrib/prometheus/dashboard.json", "usr/share/doc/ctwatch/prometheus/dashboard.json"),
    ("docs/export.md", "usr/share/doc/ctwatch/export.md"),
    ("CHANGELOG.md", "usr/share/doc/ctwatch/CHANGELOG.md"),
    ("LICENSE-MIT", "usr/share/doc/ctwatch/LICENSE-MIT"),
    ("LICENSE-APACHE", "usr/share/doc/ctwatch/LICENSE-APACHE"),
];

const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/ctwatch"),
    ("zsh", "usr/share/zsh/vendor-completions/_ctwatch"),
    ("fish", "usr/share/fish/vendor_completions.d/ctwatch.fish"),
];

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Makes both packages and says where they are.
pub(crate) fn run() -> Result<()> {
    let binary = build::dist()?;
    for package in [deb(&binary)?, rpm(&binary)?] {
        println!("{}", package.display());
    }
    Ok(())
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn maintainer() -> String {
    std::env::var("CTWATCH_MAINTAINER").unwrap_or_else(|_| MAINTAINER.to_owned())
}

/// Seconds since the epoch of the last commit: the same commit makes the same package.
fn epoch() -> Result<String> {
    let time = step::read(Command::new("git").current_dir(paths::root()).args(["log", "-1", "--format=%ct"]));
    Ok(time.context("when the last commit was made")?.trim().to_owned())
}

/// The files as they will be installed, in a fresh directory.
fn stage(binary: &Path, root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    let put = |name: &str, mode: u32, content: &[u8]| -> Result<()> {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    put("usr/bin/ctwatch", 0o755, &fs::read(binary)?)?;
    for (from, to) in FILES {
        let path = paths::root().join(from);
        put(to, 0o644, &fs::read(&path).with_context(|| format!("reading {}", path.display()))?)?;
    }
    for (shell, to) in COMPLETIONS {
        put(to, 0o644, step::read(Command::new(binary).args(["completions", shell]))?.as_bytes())?;
    }
    let notices = notices::text()?;
    let licence = fs::read_to_string(paths::root().join("LICENSE-MIT"))?;
    let copyright =
        format!("ctwatch is licensed under MIT or Apache-2.0, at your option.\n\n{licence}\n{notices}");
    put("usr/share/doc/ctwatch/copyright", 0o644, copyright.as_bytes())?;
    put("usr/share/man/man1/ctwatch.1", 0o644, step::read(Command::new(binary).arg("man"))?.as_bytes())?;
    step::run(Command::new("gzip").args(["-9n"]).arg(root.join("usr/share/man/man1/ctwatch.1")))
}

/// The Debian package.
pub(crate) fn deb(binary: &Path) -> Result<PathBuf> {
    packages::ensure_programs("packages", &[("dpkg-deb", "dpkg"), ("gzip", "gzip")])?;
    let step = Step::begin("making the .deb");
    let root = paths::target("package/deb");
    stage(binary, &root)?;
    let size = step::read(Command::new("du").args(["-sk"]).arg(&root))?;
    let size = size.split_whitespace().next().context("a size")?;
    let control = root.join("DEBIAN");
    let sums = step::read(
        Command::new("sh")
            .current_dir(&root)
            .args(["-c", "find usr -type f -print0 | sort -z | xargs -0 md5sum"]),
    )?;
    fs::create_dir_all(&control)?;
    fs::write(control.join("md5sums"), sums)?;
    let description = DESCRIPTION.replace('\n', "\n ");
    fs::write(
        control.join("control"),
        format!(
            "Package: ctwatch\nVersion: {}-1\nArchitecture: amd64\nMaintainer: {}\nInstalled-Size: {size}\n\
             Section: net\nPriority: optional\nDescription: {SUMMARY}\n {description}\n",
            version(),
            maintainer()
        ),
    )?;
    for script in SCRIPTS {
        fs::copy(paths::root().join("contrib/packages").join(script), control.join(script))?;
        fs::set_permissions(control.join(script), fs::Permissions::from_mode(0o755))?;
    }
    let package = paths::target("package").join(format!("ctwatch_{}-1_amd64.deb", version()));
    step::run(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "--build"])
            .arg(&root)
            .arg(&package)
            .env("SOURCE_DATE_EPOCH", epoch()?),
    )?;
    step.end();
    Ok(package)
}

/// The package for Fedora, RHEL, SUSE and their kin.
pub(crate) fn rpm(binary: &Path) -> Result<PathBuf> {
    packages::ensure_programs("packages", &[("rpmbuild", "rpm"), ("gzip", "gzip")])?;
    let step = Step::begin("making the .rpm");
    let top = paths::target("package/rpm");
    let root = top.join("staged");
    stage(binary, &root)?;
    // Where Fedora's zsh looks.
    let zsh = root.join("usr/share/zsh/site-functions");
    fs::create_dir_all(&zsh)?;
    fs::rename(root.join("usr/share/zsh/vendor-completions/_ctwatch"), zsh.join("_ctwatch"))?;
    fs::remove_dir(root.join("usr/share/zsh/vendor-completions"))?;
    let spec = top.join("ctwatch.spec");
    fs::write(&spec, spec_text(&root)?)?;
    step::run(
        Command::new("rpmbuild")
            .args(["-bb", "--quiet", "--target", "x86_64-linux", "--define"])
            .arg(format!("_topdir {}", top.join("build").display()))
            .arg(&spec)
            .env("SOURCE_DATE_EPOCH", epoch()?),
    )?;
    let name = format!("ctwatch-{}-1.x86_64.rpm", version());
    let package = paths::target("package").join(&name);
    fs::copy(top.join("build/RPMS/x86_64").join(&name), &package).context("rpmbuild made no package")?;
    let listed = step::read(Command::new("rpm").args(["-qpl"]).arg(&package))?;
    for (_, file) in FILES {
        if !listed.lines().any(|line| line.trim_start_matches('/') == file) {
            bail!("{} has no {file}", package.display());
        }
    }
    step.end();
    Ok(package)
}

fn spec_text(root: &Path) -> Result<String> {
    let files = step::read(Command::new("sh").current_dir(root).args(["-c", "find usr -type f | sort"]))?;
    let files: Vec<String> =
        files
            .lines()
            .map(|file| {
                if file.starts_with("usr/share/doc/") { format!("%doc /{file}") } else { format!("/{file}") }
            })
            .collect();
    let script = |name: &str| -> Result<String> {
        Ok(fs::read_to_string(paths::root().join("contrib/packages").join(name))?.replace("#!/bin/sh\n", ""))
    };
    Ok(format!(
        "# What is packed is built already: no debug package, no stripping, no build links.\n\
         %global debug_package %{{nil}}\n%global __os_install_post %{{nil}}\n%global _build_id_links none\n\
         Name: ctwatch\nVersion: {version}\nRelease: 1\nSummary: {SUMMARY}\nLicense: MIT OR Apache-2.0\n\
         Packager: {maintainer}\nAutoReqProv: no\n\n%description\n{DESCRIPTION}\n\n\
         %install\ncp -a {root}/. %{{buildroot}}/\n\n\
         %post\n{post}\n%preun\n{preun}\n%postun\n{postun}\n%files\n%defattr(-,root,root)\n{files}\n",
        version = version(),
        maintainer = maintainer(),
        root = root.display(),
        post = script("postinst")?,
        preun = script("prerm")?,
        postun = script("postrm")?,
        files = files.join("\n"),
    ))
}

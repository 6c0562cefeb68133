//! Stock Debian kernels: which there are, fetching one, and what is kept of it.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::Suite;
use super::modules;
use crate::packages;
use crate::paths;
use crate::step::{self, Step, say};

/// A kernel of the matrix and the suite it is the newest of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// What users call it: the beginning of its release.
    pub name: &'static str,
    suite: &'static str,
}

/// The kernels that every test runs on.
pub(crate) const MATRIX: [Entry; 4] = [
    Entry { name: "5.10", suite: "bullseye" },
    Entry { name: "6.1", suite: "bookworm" },
    Entry { name: "6.12", suite: "trixie" },
    Entry { name: "7.3", suite: "trixie-backports" },
];

/// Debian's other builds of a kernel of the matrix, on which the part of the tests runs that they can change: PREEMPT_RT,
/// and the configuration for machines of every kind.
pub(crate) const OTHER_BUILDS: [&str; 2] = ["6.12-rt", "6.12-amd64"];

/// A kernel on disk, ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As it was asked for.
    pub name: String,
    /// What `uname -r` says in it.
    pub release: String,
    directory: PathBuf,
}

impl Kernel {
    /// Its image.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// Its modules, as under `/lib/modules/<release>`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("modules")
    }

    /// One that is on no disk, for tests of what is run where.
    #[cfg(test)]
    pub(crate) fn named(name: &str, release: &str) -> Self {
        Self { name: name.to_owned(), release: release.to_owned(), directory: PathBuf::new() }
    }

    fn on_disk(name: &str, release: &str) -> Option<Self> {
        let directory = store().join(release);
        let kept = fs::read_to_string(directory.join("selection")).ok()?;
        (kept == modules::SELECTION.join("\n")).then(|| Self {
            name: name.to_owned(),
            release: release.to_owned(),
            directory,
        })
    }
}

/// Finds a kernel by the beginning of its release (`6.12`), with its flavour (`6.12-rt`, `6.12-amd64`), by its whole
/// release or by its package's name; fetches it once from the machine's package mirror.
pub(crate) fn ensure(wanted: &str) -> Result<Kernel> {
    let name = wanted.strip_prefix("linux-image-").unwrap_or(wanted);
    if !name.starts_with(|first: char| first.is_ascii_digit()) {
        bail!(
            "no kernel is called {wanted:?}: give the beginning of a release, as 6.12 (`cargo xtask vm --list`)"
        );
    }
    let here = fs::read_dir(store()).into_iter().flatten().flatten();
    let mut here: Vec<String> = here
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|release| matches(release, name))
        .collect();
    here.sort_by_key(|release| Reverse(order(release)));
    if let Some(kernel) = here.iter().find_map(|release| Kernel::on_disk(wanted, release)) {
        return Ok(kernel);
    }
    packages::ensure_programs(
        "kernels",
        &[("dpkg-deb", "dpkg"), ("apt-get", "apt"), ("xz", "xz-utils"), ("zstd", "zstd")],
    )?;
    let (suite, release) = find(name)?;
    fetch(wanted, &suite, &release)
}

/// Prints every kernel that can be fetched.
pub(crate) fn list() -> Result<()> {
    for entry in MATRIX {
        let suite = Suite::open(entry.suite)?;
        let mut releases = releases(&suite)?;
        releases.sort_by_key(|release| order(release));
        println!("{} (matrix: {})", entry.suite, entry.name);
        for release in releases {
            println!("  {release}");
        }
    }
    Ok(())
}

/// The suite and release of the newest kernel that answers to this name.
fn find(name: &str) -> Result<(Suite, String)> {
    let newest = |suite: &Suite, name: &str| -> Result<Option<String>> {
        let all = releases(suite)?.into_iter().filter(|release| matches(release, name));
        Ok(all.max_by_key(|release| order(release)))
    };
    let entry = MATRIX.iter().find(|entry| entry.name == name);
    let mut suites: Vec<&str> = entry.iter().map(|entry| entry.suite).collect();
    suites.extend(MATRIX.iter().rev().map(|entry| entry.suite));
    for suite in suites {
        let suite = Suite::open(suite)?;
        if let Some(release) = newest(&suite, name)? {
            return Ok((suite, release));
        }
    }
    if let Some(entry) = entry {
        let suite = Suite::open(entry.suite)?;
        if let Some(release) = releases(&suite)?.into_iter().filter(|r| is_cloud(r)).max_by_key(|r| order(r))
        {
            say(format!("{} has no {name} any more; {release} stands for it", entry.suite));
            return Ok((suite, release));
        }
    }
    bail!("no suite has a kernel {name}; `cargo xtask vm --list` shows what there is")
}

fn releases(suite: &Suite) -> Result<Vec<String>> {
    let names = suite.packages("linux-image-")?;
    let release = |name: &String| {
        let release = name.strip_prefix("linux-image-")?;
        let concrete = order(release).len() > 2 && release.starts_with(|c: char| c.is_ascii_digit());
        (concrete && release.ends_with("-amd64")).then(|| release.to_owned())
    };
    Ok(names.iter().filter_map(release).collect())
}

/// Debian's builds of one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    Cloud,
    /// For machines of every kind.
    Plain,
    /// Fully preemptible (PREEMPT_RT).
    RealTime,
}

impl Flavour {
    fn of(release: &str) -> Self {
        if is_cloud(release) {
            Self::Cloud
        } else if release.ends_with("-rt-amd64") {
            Self::RealTime
        } else {
            Self::Plain
        }
    }

    /// What a short name says after the number; a name that leaves the flavour open means the cloud kernels.
    fn asked(name: &str) -> (&str, Self) {
        [("-rt", Self::RealTime), ("-amd64", Self::Plain)]
            .iter()
            .find_map(|(end, flavour)| Some((name.strip_suffix(end)?, *flavour)))
            .unwrap_or((name, Self::Cloud))
    }
}

/// Whether a release answers to a name: `6.12`, `6.12-rt`, `6.12-amd64`, or the whole release.
fn matches(release: &str, name: &str) -> bool {
    let (number, flavour) = Flavour::asked(name);
    release == name
        || Flavour::of(release) == flavour
            && release
                .strip_prefix(number)
                .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

fn is_cloud(release: &str) -> bool {
    release.ends_with("-cloud-amd64")
}

/// The numbers in a release, by which releases are ordered.
fn order(release: &str) -> Vec<u32> {
    let version = release.strip_suffix("-amd64").unwrap_or(release);
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn fetch(name: &str, suite: &Suite, release: &str) -> Result<Kernel> {
    let step = Step::begin(format!("fetching kernel {release}"));
    let directory = store().join(release);
    let debs = store().join("debs").join(release);
    let image = format!("linux-image-{release}");
    let mut wanted: Vec<String> = suite.depends(&image)?;
    // Since 6.19 the image's package is empty and these hold its parts.
    wanted.retain(|package| {
        ["linux-binary-", "linux-modules-", "linux-base-"]
            .iter()
            .any(|part| package.strip_prefix(part) == Some(release))
    });
    // Not every release has a base package of its own; without it, modprobe knows less of what is built in.
    wanted.retain(|package| suite.has(package));
    wanted.push(image);
    let present = |package: &String| file_of(&debs, package).is_some();
    if !wanted.iter().all(present) {
        suite.download(&wanted, &debs)?;
    }
    let tree = store().join(format!("{release}.tree"));
    let new = store().join(format!("{release}.new"));
    for stale in [&tree, &new, &directory] {
        remove(stale)?;
    }
    for package in &wanted {
        let deb = file_of(&debs, package).with_context(|| format!("apt-get did not download {package}"))?;
        step::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&tree))?;
    }
    fs::create_dir_all(&new)?;
    let of_release = |parents: &[&str]| {
        let places = parents.iter().map(|parent| tree.join(parent.replace("RELEASE", release)));
        places.into_iter().find(|place| place.exists())
    };
    let vmlinuz = of_release(&[
        "boot/vmlinuz-RELEASE",
        "usr/lib/modules/RELEASE/vmlinuz",
        "lib/modules/RELEASE/vmlinuz",
    ])
    .with_context(|| format!("the packages of {release} hold no vmlinuz"))?;
    fs::copy(vmlinuz, new.join("vmlinuz"))?;
    let all = of_release(&["usr/lib/modules/RELEASE", "lib/modules/RELEASE"])
        .with_context(|| format!("the packages of {release} hold no modules"))?;
    modules::extract(&all, &new.join("modules"))?;
    fs::write(new.join("selection"), modules::SELECTION.join("\n"))?;
    // The rename is what makes it complete: an interrupted run leaves no half kernel under the final name.
    fs::rename(&new, &directory).with_context(|| format!("moving {} into place", new.display()))?;
    remove(&tree)?;
    step.end();
    Kernel::on_disk(name, release).with_context(|| format!("{} is not complete", directory.display()))
}

fn file_of(debs: &Path, package: &str) -> Option<PathBuf> {
    let prefix = format!("{package}_");
    fs::read_dir(debs).ok()?.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with(&prefix) && path.extension().is_some_and(|extension| extension == "deb")
    })
}

fn store() -> PathBuf {
    paths::target("kernels")
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_means_cloud_kernels_of_that_release() {
        assert!(matches("6.1.0-56-cloud-amd64", "6.1"));
        assert!(!matches("6.12.117+deb13-cloud-amd64", "6.1"));
        assert!(!matches("6.1.0-56-amd64", "6.1"));
        assert!(matches("6.1.0-56-amd64", "6.1.0-56-amd64"));
        assert!(matches("6.18.15+deb13-cloud-amd64", "6.18.15"));
    }

    #[test]
    fn a_name_may_say_the_flavour() {
        let releases = ["6.12.117+deb13-cloud-amd64", "6.12.117+deb13-amd64", "6.12.117+deb13-rt-amd64"];
        let answering = |name: &str| releases.map(|release| matches(release, name));
        assert_eq!(answering("6.12"), [true, false, false]);
        assert_eq!(answering("6.12-amd64"), [false, true, false]);
        assert_eq!(answering("6.12-rt"), [false, false, true]);
        assert!(!matches("6.1.0-56-rt-amd64", "6.12-rt"));
    }

    #[test]
    fn releases_are_ordered_by_number() {
        assert!(order("6.18.15+deb13-cloud-amd64") > order("6.18.9+deb13-cloud-amd64"));
        assert!(order("5.10.0-46-cloud-amd64") > order("5.10.0-9-cloud-amd64"));
        assert!(order("6.12.90+deb13.1-cloud-amd64") > order("6.12.90+deb13-cloud-amd64"));
    }
}

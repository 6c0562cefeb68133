//! Debian's archive through an apt state of our own, so that the machine's stays untouched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::step::{self, Step, say};

const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// The lists of one Debian suite.
#[derive(Debug)]
pub(crate) struct Suite {
    name: String,
    state: PathBuf,
}

impl Suite {
    /// Opens a suite, fetching its lists if there are none yet.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let suite = Self { name: name.to_owned(), state: paths::target("kernels/apt").join(name) };
        if !suite.has_lists() {
            suite.update()?;
        }
        Ok(suite)
    }

    /// Fetches the suite's lists anew.
    pub(crate) fn update(&self) -> Result<()> {
        let step = Step::begin(format!("fetching the package lists of {}", self.name));
        for directory in ["lists/partial", "cache/archives/partial"] {
            let directory = self.state.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        fs::write(self.state.join("status"), "")?;
        fs::write(self.state.join("sources.list"), sources(&self.name)?)?;
        fs::write(self.state.join("apt.conf"), inherited_settings()?)?;
        step::run(self.apt("apt-get").arg("update"))?;
        if !self.has_lists() {
            bail!("apt-get update left no lists of {} in {}", self.name, self.state.display());
        }
        step.end();
        Ok(())
    }

    /// The names of all packages that begin so.
    pub(crate) fn packages(&self, prefix: &str) -> Result<Vec<String>> {
        let names = step::read(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Whether the suite has this very package: a name alone may be only another package's wish.
    pub(crate) fn has(&self, package: &str) -> bool {
        step::output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))
            .is_ok_and(|out| out.status.success() && !out.stdout.trim().is_empty())
    }

    /// What a package depends on, first alternatives only.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let record = step::read(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        let line = record.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        let name = |dependency: &str| dependency.split_whitespace().next().map(str::to_owned);
        Ok(line.split(',').filter_map(name).collect())
    }

    /// Downloads packages into a directory.
    pub(crate) fn download(&self, packages: &[String], into: &Path) -> Result<()> {
        fs::create_dir_all(into).with_context(|| format!("creating {}", into.display()))?;
        let fetch = || step::run(self.apt("apt-get").arg("download").args(packages).current_dir(into));
        if let Err(error) = fetch() {
            // Lists kept from an earlier day name files that a mirror has since replaced.
            say(format!("download failed, trying again with new lists: {error:#}"));
            self.update()?;
            fetch()?;
        }
        Ok(())
    }

    /// Makes a small Debian of this suite with some packages in a directory; needs root.
    pub(crate) fn root(&self, packages: &[&str], into: &Path) -> Result<()> {
        let settings = inherited_settings()?;
        let acquire: Vec<&str> = settings.lines().filter(|line| line.starts_with("Acquire::")).collect();
        let options = self.state.join("root.conf");
        fs::write(&options, acquire.join("\n"))?;
        step::run(
            Command::new("mmdebstrap")
                .args(["--mode=root", "--variant=minbase", "--format=directory"])
                .arg(format!("--include={}", packages.join(",")))
                .arg(format!("--aptopt={}", options.display()))
                .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
                .arg(&self.name)
                .arg(into)
                .arg(self.state.join("sources.list"))
                .env("LC_ALL", "C"),
        )
    }

    fn has_lists(&self) -> bool {
        fs::read_dir(self.state.join("lists")).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        })
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = |part: &str| self.state.join(part).display().to_string();
        // The machine's own configuration is left out: its hooks clean the machine's own caches after an update.
        command.env("APT_CONFIG", path("apt.conf")).env("LC_ALL", "C");
        for option in [
            format!("Dir::State={}", path("")),
            format!("Dir::State::lists={}", path("lists")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned() + &user(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // An archived suite is signed as ever, and never renewed.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// apt drops its privileges to a user that may not read a checkout in somebody's home.
fn user() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid())
        .ok()
        .flatten()
        .map_or_else(|| "root".to_owned(), |user| user.name)
}

/// How this machine reaches its mirror (proxies, checks), without its hooks and extra indices.
fn inherited_settings() -> Result<String> {
    let all = step::read(Command::new("apt-config").arg("dump"))?;
    let mut settings = String::from("Dir::Etc::parts \"/dev/null\";\nDir::Etc::main \"/dev/null\";\n");
    for line in all.lines() {
        let wanted = line.starts_with("Acquire::")
            && !line.starts_with("Acquire::IndexTargets")
            && !line.starts_with("Acquire::Languages");
        if wanted {
            settings.push_str(line);
            settings.push('\n');
        }
    }
    Ok(settings)
}

/// The source list of a suite, at the addresses that apt on this machine already uses.
fn sources(suite: &str) -> Result<String> {
    let format = "$(REPO_URI)|$(RELEASE)|$(ORIGIN)|$(CREATED_BY)";
    let targets = step::read(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let (mut main, mut security) = (None, None);
    for target in targets.lines() {
        let fields: Vec<&str> = target.split('|').collect();
        // Origin is empty until lists were fetched once.
        let [address, release, "Debian" | "" | "$(ORIGIN)", "Packages"] = fields[..] else { continue };
        let kind = if release.contains("security") { &mut security } else { &mut main };
        kind.get_or_insert_with(|| address.to_owned());
    }
    let main = match std::env::var("CTWATCH_DEBIAN_MIRROR") {
        Ok(address) => address,
        Err(_) => main.context(
            "apt on this machine uses no Debian mirror; set CTWATCH_DEBIAN_MIRROR to the address of one",
        )?,
    };
    let options = KEYRINGS
        .iter()
        .find(|keyring| Path::new(keyring).exists())
        .map_or_else(String::new, |keyring| format!("[signed-by={keyring}] "));
    let mut list = vec![format!("deb {options}{main} {suite} main\n")];
    // A suite's newest kernels, and for an archived suite all of them, are in its security archive.
    if let (Some(security), false) = (security, suite.ends_with("-backports")) {
        list.push(format!("deb {options}{security} {suite}-security main\n"));
    }
    Ok(list.concat())
}

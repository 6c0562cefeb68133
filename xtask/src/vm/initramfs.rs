//! What is in a guest.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::kernels::Kernel;
use crate::guest_protocol::ARGS_FILE;
use crate::paths::program;
use crate::step;

/// The host's programs that guests use, with the libraries they are linked with.
const PROGRAMS: [&str; 10] = [
    "nft",
    "conntrack",
    "ip",
    "tc",
    "bpftool",
    "getent",
    "kmod",
    "xtables-nft-multi",
    "xtables-legacy-multi",
    "tmux",
];

/// The names under which the two programs of iptables do their work.
const XTABLES: [(&str, &str); 3] =
    [("", "xtables-nft-multi"), ("-nft", "xtables-nft-multi"), ("-legacy", "xtables-legacy-multi")];

/// The part of a guest's files that all kernels share.
#[derive(Clone, Debug)]
pub(crate) struct Initramfs {
    base: Archive,
    /// Where the kernel's modules go.
    modules: &'static str,
}

impl Initramfs {
    /// Collects them; `more` are programs that only some guests need.
    pub(crate) fn new(init: &Path, ctwatch: &Path, more: &[&str]) -> Result<Self> {
        let mut base = Archive::default();
        for directory in ["dev", "etc", "opt", "opt/kmod", "proc", "root", "run", "sys", "tmp", "var"] {
            base.directory(directory);
        }
        // The kernel opens it for init before anything is mounted.
        base.device("dev/console", 5, 1);
        base.file("init", 0o755, &read(init)?);
        base.file("bin/ctwatch", 0o755, &read(ctwatch)?);
        busybox(&mut base)?;
        let mut libraries = BTreeSet::new();
        for name in PROGRAMS.iter().chain(more) {
            add_program(&mut base, name, &mut libraries)?;
        }
        iptables(&mut base)?;
        utf8_locale(&mut base)?;
        for library in libraries {
            base.file(&library, 0o755, &read(Path::new(&library))?);
        }
        base.file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        );
        base.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
        base.file("etc/protocols", 0o644, PROTOCOLS.as_bytes());
        Ok(Self { base, modules: "lib/modules" })
    }

    /// A whole system that lies in a directory; its init is systemd. Empty directories, links, files and their modes
    /// are kept, owners are not.
    pub(crate) fn of_system(root: &Path) -> Result<Self> {
        let mut base = Archive::default();
        add_system(&mut base, root, "")?;
        base.device("dev/console", 5, 1);
        base.symlink("init", "usr/lib/systemd/systemd");
        // `lib` is a link there, and an archive that has a directory of that name replaces it.
        Ok(Self { base, modules: "usr/lib/modules" })
    }

    /// The same with a file of these contents.
    pub(crate) fn with_file(mut self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.base.file(name, mode, content);
        self
    }

    /// The same with one more program of this machine's, at `name`, and its libraries.
    pub(crate) fn with_program(&self, name: &str, path: &Path) -> Result<Self> {
        let mut base = self.base.clone();
        base.file(name, 0o755, &read(path)?);
        let mut libraries = BTreeSet::new();
        add_libraries(path, &mut libraries)?;
        for library in libraries {
            base.file(&library, 0o755, &read(Path::new(&library))?);
        }
        Ok(Self { base, modules: self.modules })
    }

    /// The whole archive for one boot.
    pub(crate) fn for_boot(&self, kernel: &Kernel, args: &[String]) -> Result<Vec<u8>> {
        let mut archive = self.base.clone();
        let modules = kernel.modules();
        let under = format!("{}/{}", self.modules, kernel.release);
        add_tree(&mut archive, &modules, &under)?;
        archive.file(ARGS_FILE, 0o644, serde_json::to_string(args)?.as_bytes());
        Ok(archive.finish())
    }
}

/// The names that `conntrack -p` takes.
const PROTOCOLS: &str = "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\ndccp 33 DCCP\ngre 47 GRE\n\
    esp 50 ESP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\nudplite 136 UDPLite\n";

fn busybox(base: &mut Archive) -> Result<()> {
    let path = program("busybox").context("busybox is not installed")?;
    if step::output(Command::new("ldd").arg(&path))?.stdout.contains("=>") {
        bail!("{} is not static: install the package busybox-static", path.display());
    }
    base.file("bin/busybox", 0o755, &read(&path)?);
    for applet in step::read(Command::new(&path).arg("--list"))?.lines() {
        if !PROGRAMS.contains(&applet) && applet != "busybox" {
            base.symlink(&format!("bin/{applet}"), "busybox");
        }
    }
    // Where the kernel looks when it wants a module.
    base.symlink("sbin/modprobe", "/bin/busybox");
    // For scenarios about modprobe's configuration, of which busybox knows only a part.
    for name in ["depmod", "modprobe"] {
        base.symlink(&format!("opt/kmod/{name}"), "/bin/kmod");
    }
    Ok(())
}

/// Names and extensions of iptables; the extensions need no library that the programs do not.
fn iptables(base: &mut Archive) -> Result<()> {
    for (flavour, program) in XTABLES {
        for family in ["iptables", "ip6tables"] {
            for action in ["", "-save", "-restore"] {
                base.symlink(&format!("bin/{family}{flavour}{action}"), program);
            }
        }
    }
    let directory = ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib64/xtables", "/usr/lib/xtables"]
        .into_iter()
        .find(|path| Path::new(path).is_dir())
        .context("the extensions of iptables are not where they should be")?;
    add_tree(base, Path::new(directory), directory.trim_start_matches('/'))
}

/// tmux, whose terminals the full-screen view is tested in, starts in a UTF-8 locale only. glibc has one of its own since
/// 2.35; an older host may have it as files.
fn utf8_locale(base: &mut Archive) -> Result<()> {
    let name = "usr/lib/locale/C.utf8/LC_CTYPE";
    let path = Path::new("/").join(name);
    if path.exists() {
        base.file(name, 0o644, &read(&path)?);
    }
    Ok(())
}

fn add_program(base: &mut Archive, name: &str, libraries: &mut BTreeSet<String>) -> Result<()> {
    let path = program(name).with_context(|| format!("{name} is not installed"))?;
    base.file(&format!("bin/{name}"), 0o755, &read(&path)?);
    add_libraries(&path, libraries)
}

fn add_libraries(path: &Path, libraries: &mut BTreeSet<String>) -> Result<()> {
    let linked = step::output(Command::new("ldd").arg(path))?.stdout;
    for line in linked.lines() {
        if line.contains("not found") {
            bail!("{} misses a library: {}", path.display(), line.trim());
        }
        // `name => /path (address)`, or `/path (address)` for the loader.
        let place = line.split("=>").last().unwrap_or(line).split_whitespace().next();
        libraries.extend(place.filter(|place| place.starts_with('/')).map(str::to_owned));
    }
    Ok(())
}

fn add_tree(archive: &mut Archive, from: &Path, to: &str) -> Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = format!("{to}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            add_tree(archive, &entry.path(), &name)?;
        } else {
            archive.file(&name, 0o644, &read(&entry.path())?);
        }
    }
    Ok(())
}

fn add_system(archive: &mut Archive, from: &Path, under: &str) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let name = format!("{under}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            archive.directory(&name);
            add_system(archive, &entry.path(), &format!("{name}/"))?;
        } else if kind.is_symlink() {
            archive.symlink(&name, &fs::read_link(entry.path())?.to_string_lossy());
        } else if kind.is_file() {
            archive.file(&name, entry.metadata()?.permissions().mode() & 0o7777, &read(&entry.path())?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

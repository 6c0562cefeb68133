//! The kube-proxy of this machine, and what it was told.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc::{self, O_DIRECTORY, O_NOCTTY, O_NONBLOCK, O_PATH};
use nix::sys::statfs::{DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

use crate::doctor::kube_proxy::{KubeProxy, Unread, by_command_line, by_configuration};

/// Bytes of a configuration or a command line that are read.
const MOST: u64 = 1 << 16;
/// How long both may take together.
const IN_TIME: Duration = Duration::from_secs(2);
/// Their files have sizes like others, but to read one may do something. Those of procfs, tracefs and cgroups are of size 0.
const MADE_BY_THE_KERNEL: [FsType; 3] = [SYSFS_MAGIC, DEBUGFS_MAGIC, FsType(0x6265_6570)];

/// The first kube-proxy that may set sysctls of this network namespace: anybody can give a process a name.
pub fn read(proc: &Path, netns: u32) -> Option<KubeProxy> {
    let processes = fs::read_dir(proc).ok()?.flatten();
    let numbered = processes.filter(|process| {
        process.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    numbered
        .map(|process| process.path())
        .find(|process| is_one(process, netns))
        .map(|process| in_time(IN_TIME, move || told(&process)).unwrap_or_else(|| unread(Unread::Late)))
}

fn unread(why: Unread) -> KubeProxy {
    KubeProxy { unread: Some(why), ..KubeProxy::default() }
}

/// Called kube-proxy, all of it root's, and in that namespace.
fn is_one(process: &Path, netns: u32) -> bool {
    let named = fs::read(process.join("comm")).is_ok_and(|comm| comm == b"kube-proxy\n");
    named
        && fs::read_to_string(process.join("status")).is_ok_and(|status| is_roots(&status))
        && fs::metadata(process.join("ns/net")).is_ok_and(|file| file.ino() == u64::from(netns))
}

fn is_roots(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.is_some_and(|ids| ids.split_whitespace().all(|id| id == "0"))
}

fn told(process: &Path) -> KubeProxy {
    let words = match File::open(process.join("cmdline")).map_err(|_| Unread::File).and_then(bytes) {
        Ok(words) => words,
        Err(why) => return unread(why),
    };
    let words = String::from_utf8_lossy(&words);
    let (file, by_flags) = by_command_line(&words.split('\0').collect::<Vec<_>>());
    let Some(file) = file else { return by_flags };
    let text = open(process, Path::new(&file)).and_then(bytes);
    let read = text.and_then(|text| by_configuration(str::from_utf8(&text).map_err(|_| Unread::Form)?));
    let (told, unread) = read.map_or_else(|why| (BTreeMap::new(), Some(why)), |told| (told, None));
    KubeProxy { file: Some(file), unread, told }
}

/// The answer of some work, or `None` where it takes too long: the process chose the file, and the file's system may be
/// one that never answers (FUSE, NFS). The thread is then left to itself: nothing ends such a call.
fn in_time<T: Send + 'static>(most: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = mpsc::sync_channel(1);
    let work = move || drop(answer.send(work()));
    thread::Builder::new().name("kube-proxy".into()).spawn(work).ok()?;
    answered.recv_timeout(most).ok()
}

/// The file as the process sees it: links and `..` lead nowhere out of its root, and none of the kernel's own links is
/// followed. Only a regular file that holds something is opened: a device does things when it is, and a pipe waits.
fn open(process: &Path, file: &Path) -> Result<File, Unread> {
    // Where in its root its folder is cannot be told from outside, so from there nothing may lead up or to the root.
    let (from, stay) = if file.is_absolute() {
        ("root", ResolveFlag::RESOLVE_IN_ROOT)
    } else {
        ("cwd", ResolveFlag::RESOLVE_BENEATH)
    };
    let from = OpenOptions::new().read(true).custom_flags(O_PATH | O_DIRECTORY).open(process.join(from));
    let from = from.map_err(|error| why(&error))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(stay | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let place = File::from(openat2(from, file, how).map_err(|error| why(&error.into()))?);
    let status = place.metadata().map_err(|error| why(&error))?;
    let system = fstatfs(&place).map_err(|error| why(&error.into()))?.filesystem_type();
    match status.len() {
        _ if !status.is_file() || MADE_BY_THE_KERNEL.contains(&system) => return Err(Unread::NotRegular),
        // procfs, tracefs and cgroups tell no size.
        0 if system == PROC_SUPER_MAGIC => return Err(Unread::NotRegular),
        0 => return Err(Unread::Empty),
        1..=MOST => {}
        _ => return Err(Unread::TooLarge),
    }
    // The same file, whatever has its name by now. To wait is for one that somebody holds a lease on.
    let same = format!("/proc/self/fd/{}", place.as_raw_fd());
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(same);
    file.map_err(|error| why(&error))
}

fn why(error: &io::Error) -> Unread {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Unread::Missing,
        // Out of the root, or through a loop or a link of the kernel's.
        Some(libc::EXDEV | libc::ELOOP | libc::EACCES | libc::EPERM) => Unread::NotAllowed,
        _ => Unread::File,
    }
}

fn bytes(file: File) -> Result<Vec<u8>, Unread> {
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|error| why(&error))?;
    // What is cut off could say another thing.
    if bytes.len() as u64 > MOST { Err(Unread::TooLarge) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process as /proc shows it.
    fn process(proc: &Path, name: &str, uid: &str, cmdline: &str) -> u32 {
        let process = proc.join(name);
        fs::create_dir_all(process.join("ns")).unwrap();
        fs::create_dir_all(process.join("root/etc")).unwrap();
        fs::write(process.join("comm"), "kube-proxy\n").unwrap();
        fs::write(process.join("status"), format!("Name:\tkube-proxy\nUid:\t{uid}\n")).unwrap();
        fs::write(process.join("cmdline"), cmdline).unwrap();
        fs::write(process.join("ns/net"), "").unwrap();
        u32::try_from(fs::metadata(process.join("ns/net")).unwrap().ino()).unwrap()
    }

    #[test]
    fn only_roots_own_in_the_first_namespace_counts() {
        let proc = tempfile::tempdir().unwrap();
        let netns = process(proc.path(), "7", "0\t0\t0\t0", "kube-proxy\0--conntrack-min=9\0");
        assert!(read(proc.path(), netns).is_some_and(|proxy| proxy.told["min"] == 9));
        assert_eq!(read(proc.path(), netns.wrapping_add(1)), None);
        let netns = process(proc.path(), "7", "1000\t0\t0\t0", "kube-proxy\0");
        assert_eq!(read(proc.path(), netns), None);
    }

    #[test]
    fn the_file_is_read_from_the_processes_root() {
        let proc = tempfile::tempdir().unwrap();
        let netns =
            process(proc.path(), "7", "0\t0\t0\t0", "kube-proxy\0--config=/etc/c\0--conntrack-min=9\0");
        let found = || read(proc.path(), netns).unwrap();
        let file = proc.path().join("7/root/etc/c");
        assert_eq!(found().unread, Some(Unread::Missing));
        fs::write(&file, "kind: KubeProxyConfiguration\nconntrack:\n  maxPerCore: 5\n").unwrap();
        let told = found();
        assert_eq!((told.file.as_deref(), told.unread), (Some("/etc/c"), None));
        assert_eq!(told.told, [("maxPerCore".to_owned(), 5)].into());
        fs::write(&file, b"conntrack:\xff").unwrap();
        assert_eq!(found().unread, Some(Unread::Form));
        fs::write(&file, " ".repeat(1 << 17)).unwrap();
        assert_eq!(found().unread, Some(Unread::TooLarge));
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(found().unread, Some(Unread::NotRegular));
    }

    /// The process decides what is in its root, so that nothing there may lead out of it, wait, or do anything.
    #[test]
    fn no_file_leads_out_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for folder in [root.join("etc"), root.join("proc"), folder.path().join("cwd")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(folder.path().join("outside"), "outside").unwrap();
        fs::write(root.join("etc/c"), "inside").unwrap();
        fs::write(root.join("outside"), "inside").unwrap();
        fs::write(folder.path().join("cwd/c"), "inside").unwrap();
        for (name, target) in [
            ("root/etc/absolute", "/etc/c"),
            ("root/etc/up", "../../../../etc/c"),
            ("root/etc/out", "/../outside"),
            ("root/kmsg", "/proc/kmsg"),
            ("root/etc/loop", "loop"),
            ("root/etc/own", "/proc/self/root/etc/c"),
            ("cwd/absolute", "/etc/hostname"),
            ("cwd/up", "../outside"),
        ] {
            std::os::unix::fs::symlink(target, folder.path().join(name)).unwrap();
        }
        fs::write(root.join("empty"), "").unwrap();
        fs::write(root.join("full"), " ".repeat(1 << 16)).unwrap();
        fs::write(root.join("too_much"), " ".repeat((1 << 16) + 1)).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let read = |file: &str| {
            let text = open(folder.path(), Path::new(file)).and_then(bytes).ok()?;
            Some(String::from_utf8(text).unwrap().trim().to_owned())
        };
        for file in
            ["/etc/c", "//etc/./c", "/../../etc/c", "/etc/absolute", "/etc/up", "/etc/out", "c", "./c"]
        {
            assert_eq!(read(file).as_deref(), Some("inside"), "{file}");
        }
        assert_eq!(read("/full").as_deref(), Some(""));
        for (file, why) in [
            ("/kmsg", Unread::Missing),
            ("/etc/loop", Unread::NotAllowed),
            ("/etc/own", Unread::Missing),
            ("/etc", Unread::NotRegular),
            ("/", Unread::NotRegular),
            ("", Unread::Missing),
            ("/none", Unread::Missing),
            ("/etc/c/", Unread::Missing),
            ("/empty", Unread::Empty),
            ("/too_much", Unread::TooLarge),
            ("/pipe", Unread::NotRegular),
            ("absolute", Unread::NotAllowed),
            ("up", Unread::NotAllowed),
            ("../outside", Unread::NotAllowed),
            ("../cwd/c", Unread::NotAllowed),
        ] {
            let found = open(folder.path(), Path::new(file)).and_then(bytes);
            assert_eq!(found, Err(why), "{file}");
        }
    }

    /// What the kernel makes as it is read is left alone, also where a process has it in its own root.
    #[test]
    fn files_of_the_kernel_are_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("root")).unwrap();
        for file in [
            "/proc/kmsg",
            "/proc/version",
            "/proc/kcore",
            "/sys/kernel/notes",
            "/sys/kernel/uevent_seqnum",
            "/dev/null",
            "/dev/zero",
        ] {
            // Not each kernel has all of them.
            let expected = if Path::new(file).exists() { Unread::NotRegular } else { Unread::Missing };
            assert_eq!(open(folder.path(), Path::new(file)).map(drop), Err(expected), "{file}");
        }
        // Through a link of the kernel's own.
        let own = Path::new("/proc/self/exe");
        assert_eq!(open(folder.path(), own).map(drop), Err(Unread::NotAllowed));
    }

    #[test]
    fn what_takes_too_long_is_left() {
        assert_eq!(in_time(Duration::from_secs(20), || 7), Some(7));
        assert_eq!(in_time(Duration::from_millis(20), || thread::sleep(Duration::from_mins(1))), None);
    }
}

//! The kube-proxy of this machine, and what it was told.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path};

use nix::libc::O_PATH;

use crate::doctor::kube_proxy::{KubeProxy, Unread, by_command_line, by_configuration};

/// Bytes of a configuration or a command line that are read.
const MOST: u64 = 1 << 16;

/// The first kube-proxy that may set sysctls of this network namespace: anybody can give a process a name.
pub fn read(proc: &Path, netns: u32) -> Option<KubeProxy> {
    let processes = fs::read_dir(proc).ok()?.flatten();
    let numbered = processes.filter(|process| {
        process.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    numbered
        .map(|process| process.path())
        .find(|process| is_one(process, netns))
        .map(|process| told(&process))
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
    let Ok(words) = File::open(process.join("cmdline")).map_err(drop).and_then(bytes) else {
        return KubeProxy { unread: Some(Unread::File), ..KubeProxy::default() };
    };
    let words = String::from_utf8_lossy(&words);
    let (file, by_flags) = by_command_line(&words.split('\0').collect::<Vec<_>>());
    let Some(file) = file else { return by_flags };
    let text = open(process, Path::new(&file)).and_then(bytes).map_err(|()| Unread::File);
    let read = text.and_then(|text| by_configuration(str::from_utf8(&text).map_err(|_| Unread::Form)?));
    let (told, unread) = read.map_or_else(|why| (BTreeMap::new(), Some(why)), |told| (told, None));
    KubeProxy { file: Some(file), unread, told }
}

/// The file as the process sees it, from its own root or folder. Only a regular one is opened: a device does things when
/// it is, and a pipe waits.
fn open(process: &Path, file: &Path) -> Result<File, ()> {
    let mut path = process.join(if file.is_absolute() { "root" } else { "cwd" });
    for component in file.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            // From another root it would lead out of it.
            Component::ParentDir | Component::Prefix(_) => return Err(()),
        }
    }
    let place = OpenOptions::new().read(true).custom_flags(O_PATH).open(path).map_err(drop)?;
    if !place.metadata().is_ok_and(|place| place.is_file()) {
        return Err(());
    }
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(drop)
}

fn bytes(file: File) -> Result<Vec<u8>, ()> {
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(drop)?;
    // What is cut off could say another thing.
    if bytes.len() as u64 > MOST { Err(()) } else { Ok(bytes) }
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
        assert_eq!(found().unread, Some(Unread::File));
        fs::write(&file, "conntrack:\n  maxPerCore: 5\n").unwrap();
        let told = found();
        assert_eq!((told.file.as_deref(), told.unread), (Some("/etc/c"), None));
        assert_eq!(told.told, [("maxPerCore".to_owned(), 5)].into());
        fs::write(&file, b"conntrack:\xff").unwrap();
        assert_eq!(found().unread, Some(Unread::Form));
        fs::write(&file, " ".repeat(1 << 17)).unwrap();
        assert_eq!(found().unread, Some(Unread::File));
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(found().unread, Some(Unread::File));
        process(proc.path(), "7", "0\t0\t0\t0", "kube-proxy\0--config=/etc/../../etc/c\0");
        assert_eq!(found().unread, Some(Unread::File));
    }
}

//! Which network namespaces there are, and sockets in them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// How many are looked at; each further process or mount of a known one costs nothing.
const MOST_FOUND: usize = 1024;
/// How many ways into one are tried, for when the process behind the first one ends.
const MOST_WAYS: usize = 4;

/// Ways into each namespace, by inode.
pub type Found = BTreeMap<u32, Vec<PathBuf>>;

/// The calling thread's own namespace.
pub fn own() -> io::Result<u32> {
    inode_of_link(Path::new("/proc/thread-self/ns/net")).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "cannot read /proc/thread-self/ns/net: is /proc mounted?")
    })
}

/// Every namespace with a mount or a process that can be seen. One that only a descriptor or a socket keeps alive, as
/// ours do, is not among them: it counts as ended.
pub fn find() -> Found {
    let mut found = Found::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (inode, path) in mounts.lines().filter_map(mounted) {
        add(&mut found, inode, path);
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in
        processes.filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
    {
        let path = process.path().join("ns/net");
        if let Some(inode) = inode_of_link(&path) {
            add(&mut found, inode, path);
        }
    }
    found
}

fn add(found: &mut Found, inode: u32, path: PathBuf) {
    if found.len() < MOST_FOUND || found.contains_key(&inode) {
        let ways = found.entry(inode).or_default();
        if ways.len() < MOST_WAYS {
            ways.push(path);
        }
    }
}

/// A line of mountinfo that mounts a network namespace: `ip netns`, Docker and others keep theirs so.
fn mounted(line: &str) -> Option<(u32, PathBuf)> {
    let mut fields = line.split(' ').skip(3);
    let inode = inode_in(fields.next()?)?;
    Some((inode, unescaped(fields.next()?)?))
}

/// Spaces, tabs, line ends and backslashes are written in octal.
fn unescaped(field: &str) -> Option<PathBuf> {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        text.push(char::from(u8::from_str_radix(after.get(..3)?, 8).ok()?));
        rest = &after[3..];
    }
    text.push_str(rest);
    Some(text.into())
}

fn inode_of_link(path: &Path) -> Option<u32> {
    inode_in(fs::read_link(path).ok()?.to_str()?)
}

/// The inode in `net:[4026531840]`.
fn inode_in(text: &str) -> Option<u32> {
    text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Runs `work` in each of these namespaces, in a thread that ends instead of moving back: nothing can then be left in a
/// foreign namespace.
pub fn in_each<T: Send>(
    places: &Found,
    work: impl Fn(u32) -> io::Result<T> + Sync,
) -> Vec<(u32, io::Result<T>)> {
    if places.is_empty() {
        return Vec::new();
    }
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("netns".into()).stack_size(256 << 10).spawn_scoped(
            scope,
            || {
                places
                    .iter()
                    .map(|(inode, ways)| (*inode, enter(*inode, ways).and_then(|()| work(*inode))))
                    .collect()
            },
        );
        match worker.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Vec::new(),
            Err(error) => places
                .keys()
                .map(|inode| (*inode, Err(io::Error::new(error.kind(), error.to_string()))))
                .collect(),
        }
    })
}

fn enter(inode: u32, ways: &[PathBuf]) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for way in ways {
        let entered = File::open(way).and_then(|file| {
            // The process may have ended and its number be another's.
            if file.metadata()?.ino() != u64::from(inode) {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
        });
        match entered {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_namespaces_are_recognised() {
        let line = "512 24 0:4 net:[4026532290] /run/netns/blue\\040sky rw shared:7 - nsfs nsfs rw";
        assert_eq!(mounted(line), Some((4_026_532_290, "/run/netns/blue sky".into())));
        assert_eq!(mounted("22 28 0:21 / /proc rw,nosuid shared:13 - proc proc rw"), None);
        assert_eq!(mounted("22 28 0:4 mnt:[4026532290] /x rw - nsfs nsfs rw"), None);
        assert_eq!(mounted("22 28 0:4 net:[4026532290] /x\\9 rw - nsfs nsfs rw"), None);
        assert_eq!(mounted(""), None);
    }

    #[test]
    fn our_own_is_found() {
        let own = own().unwrap();
        assert!(find()[&own].iter().any(|way| way.starts_with("/proc")));
    }

    #[test]
    fn a_way_that_leads_elsewhere_is_not_taken() {
        let places = Found::from([(1, vec!["/proc/self/ns/net".into(), "/nowhere".into()])]);
        let done = in_each(&places, Ok);
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].1.as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

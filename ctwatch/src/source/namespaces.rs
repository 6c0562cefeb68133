//! Network namespaces: which there are, what they are called, and how to get into them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// How many are looked at; each further process or mount of a known one costs nothing.
const MOST_FOUND: usize = 1024;
/// How many ways into one are tried, for when the process behind the first one ends.
const MOST_WAYS: usize = 4;

/// Ways into each namespace, by inode.
pub type Found = BTreeMap<u32, Vec<PathBuf>>;

/// Where namespaces are looked for; other roots only in tests.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// Where `ip netns` mounts those that it gave a name.
    pub named: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: "/proc".into(), named: "/run/netns".into() }
    }
}

impl Roots {
    /// The calling thread's own namespace, not the process's: this is also asked by threads that have moved.
    pub fn own(&self) -> io::Result<u32> {
        inode_of_link(&self.proc.join("thread-self/ns/net")).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "cannot read /proc/thread-self/ns/net: is /proc mounted?")
        })
    }

    /// The namespace of process 1. Without CAP_SYS_PTRACE its link may not be read; our own is recognised all the same,
    /// for the bucket count can be written in the first namespace only (mode 0444 elsewhere; seen on 5.10, 6.18, 7.3).
    pub fn init(&self, own: u32) -> Option<u32> {
        self.of_process(1).or_else(|| {
            let buckets = fs::metadata(self.proc.join("sys/net/netfilter/nf_conntrack_buckets")).ok()?;
            (buckets.mode() & 0o200 != 0).then_some(own)
        })
    }

    /// At most so many of those with a name: name, mount and inode, sorted. A file left behind by an unmount is none.
    pub fn named(&self, most: usize) -> Vec<(String, PathBuf, u32)> {
        let mut named: Vec<(String, PathBuf, u32)> = fs::read_dir(&self.named)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let inode = self.of_name(&name)?;
                Some((name, entry.path(), inode))
            })
            .take(most)
            .collect();
        named.sort();
        named
    }

    /// The namespace of this name.
    pub fn of_name(&self, name: &str) -> Option<u32> {
        if name.contains('/') || name == "." || name == ".." {
            return None;
        }
        inode_of(&File::open(self.named.join(name)).ok()?)
    }

    /// The processes there are, as the kernel lists them: by number.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        let entries = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
    }

    /// The way into a process's namespace.
    pub fn way_of(&self, pid: u32) -> PathBuf {
        self.proc.join(format!("{pid}/ns/net"))
    }

    /// The namespace of a process, where it may be looked at.
    pub fn of_process(&self, pid: u32) -> Option<u32> {
        inode_of_link(&self.way_of(pid))
    }
}

/// Every namespace with a mount or a process that can be seen, and our own, as far as they are wanted. One that only a descriptor or a socket keeps alive, as
/// ours do, is not among them: it counts as ended.
pub fn find(own: u32, wants: impl Fn(u32) -> bool) -> Found {
    let mut found = Found::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (inode, path) in mounts.lines().filter_map(mounted) {
        add(&mut found, inode, path);
    }
    let roots = Roots::default();
    for pid in roots.processes() {
        if let Some(inode) = roots.of_process(pid) {
            add(&mut found, inode, roots.way_of(pid));
        }
    }
    found.entry(own).or_default();
    found.retain(|inode, _| wants(*inode));
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

/// The namespace behind a link of a process.
pub(super) fn inode_of_link(path: &Path) -> Option<u32> {
    inode_in(fs::read_link(path).ok()?.to_str()?)
}

/// The inode in `net:[4026531840]`.
fn inode_in(text: &str) -> Option<u32> {
    text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn inode_of(file: &File) -> Option<u32> {
    if fstatfs(file).ok()?.filesystem_type() != NSFS_MAGIC {
        return None;
    }
    u32::try_from(file.metadata().ok()?.ino()).ok()
}

/// Opens a way into a namespace. It keeps the namespace alive, so it should be open only for a moment.
pub fn open(way: &Path, inode: u32) -> io::Result<File> {
    let file = File::open(way)?;
    // The process may have ended, and its number may have gone to one in another namespace.
    if inode_of(&file) == Some(inode) { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Moves the calling thread into a namespace.
pub fn enter(way: &Path, inode: u32) -> io::Result<()> {
    Ok(setns(open(way, inode)?, CloneFlags::CLONE_NEWNET)?)
}

/// Runs `work`, which may move, in a thread of its own. It ends instead of moving back: nothing can then be left in a
/// foreign namespace, nor keep it alive.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        worker.join().map_err(|_| io::Error::other("looking into a network namespace failed"))
    })
}

/// Runs `work` in each of these namespaces.
pub fn in_each<T: Send>(
    places: &Found,
    work: impl Fn(u32) -> io::Result<T> + Sync,
) -> Vec<(u32, io::Result<T>)> {
    if places.is_empty() {
        return Vec::new();
    }
    let each = |(inode, ways): (&u32, &Vec<PathBuf>)| {
        (*inode, enter_by_any(ways, *inode).and_then(|()| work(*inode)))
    };
    apart(|| places.iter().map(each).collect()).unwrap_or_else(|error| {
        let failed = |inode: &u32| (*inode, Err(io::Error::new(error.kind(), error.to_string())));
        places.keys().map(failed).collect()
    })
}

fn enter_by_any(ways: &[PathBuf], inode: u32) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for way in ways {
        match enter(way, inode) {
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
        let own = Roots::default().own().unwrap();
        assert!(find(own, |_| true)[&own].iter().any(|way| way.starts_with("/proc")));
    }

    #[test]
    fn a_way_that_leads_elsewhere_is_not_taken() {
        let places = Found::from([(1, vec!["/proc/self/ns/net".into(), "/nowhere".into()])]);
        let done = in_each(&places, Ok);
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].1.as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

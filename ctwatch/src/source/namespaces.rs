//! Network namespaces: how they are recognised and how to get into them. Which there are, [`super::search`] finds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs, statfs};

use super::search::{Place, Way};

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

    /// Those with a name, and their inodes, sorted. A file left behind by an unmount is none.
    pub fn named(&self) -> Vec<(String, u32)> {
        let entries = fs::read_dir(&self.named).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let inode = self.of_name(&name)?;
            Some((name, inode))
        });
        let mut named: Vec<(String, u32)> = named.collect();
        named.sort();
        named
    }

    /// The namespace of this name.
    pub fn of_name(&self, name: &str) -> Option<u32> {
        if name.contains('/') || name == "." || name == ".." {
            return None;
        }
        inode_of_mount(&self.named.join(name))
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

    /// The user namespace of the calling thread.
    pub(super) fn own_users(&self) -> Option<PathBuf> {
        fs::read_link(self.proc.join("thread-self/ns/user")).ok()
    }

    /// The user namespace of a process, where it may be looked at.
    pub(super) fn users_of(&self, pid: u32) -> Option<PathBuf> {
        fs::read_link(self.proc.join(format!("{pid}/ns/user"))).ok()
    }
}

/// The namespace behind a link of a process.
pub(super) fn inode_of_link(path: &Path) -> Option<u32> {
    inode_in(fs::read_link(path).ok()?.to_str()?)
}

/// The namespace that is mounted here. A descriptor of it would keep it alive.
pub(super) fn inode_of_mount(path: &Path) -> Option<u32> {
    if statfs(path).ok()?.filesystem_type() != NSFS_MAGIC {
        return None;
    }
    u32::try_from(fs::metadata(path).ok()?.ino()).ok()
}

/// The inode in `net:[4026531840]`.
pub(super) fn inode_in(text: &str) -> Option<u32> {
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
    roots: &Roots,
    places: &BTreeMap<u32, Place>,
    work: impl Fn(u32) -> io::Result<T> + Sync,
) -> Vec<(u32, io::Result<T>)> {
    if places.is_empty() {
        return Vec::new();
    }
    let each = |(inode, place): (&u32, &Place)| {
        (*inode, enter_by_any(roots, &place.ways, *inode).and_then(|()| work(*inode)))
    };
    apart(|| places.iter().map(each).collect()).unwrap_or_else(|error| {
        let failed = |inode: &u32| (*inode, Err(io::Error::new(error.kind(), error.to_string())));
        places.keys().map(failed).collect()
    })
}

/// Moves the calling thread into a namespace by the first way that still leads there.
pub fn enter_by_any(roots: &Roots, ways: &[Way], inode: u32) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for way in ways {
        match enter(&way.path(roots), inode) {
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
    fn a_way_that_leads_elsewhere_is_not_taken() {
        let ways = vec![Way::Mount("/proc/self/ns/net".into()), Way::Mount("/nowhere".into())];
        let places = BTreeMap::from([(1, Place { ways, ..Place::default() })]);
        let done = in_each(&Roots::default(), &places, Ok);
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].1.as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

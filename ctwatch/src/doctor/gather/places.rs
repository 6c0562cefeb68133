//! Network namespaces: which there are, and how to get into them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// How many namespaces are looked at closely: the own one and those found first.
const MOST: usize = 64;

/// A namespace and a way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its inode.
    pub netns: u32,
    /// `init`, a name known to `ip netns`, or the inode.
    pub name: String,
    /// Whether the calling thread is in it.
    pub own: bool,
    /// What must stand before a command for it to run there.
    pub enter: String,
    path: PathBuf,
}

/// The own namespace first, then those with a name, then those of processes.
pub fn find() -> Vec<Place> {
    let Some(own) = link_inode(Path::new("/proc/thread-self/ns/net")) else { return Vec::new() };
    let mut places = BTreeMap::new();
    let mut order = Vec::new();
    let mut add = |netns: u32, name: Option<String>, enter: String, path: PathBuf| {
        if places.len() < MOST && !places.contains_key(&netns) {
            let name = name.unwrap_or_else(|| netns.to_string());
            let enter = if netns == own { String::new() } else { enter };
            order.push(netns);
            places.insert(netns, Place { netns, name, own: netns == own, enter, path });
        }
    };
    let init = link_inode(Path::new("/proc/1/ns/net"));
    let init_path = PathBuf::from("/proc/1/ns/net");
    let name_of_own = (init == Some(own)).then(|| "init".to_owned());
    let mut named: Vec<(String, PathBuf, u32)> = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name, entry.path(), mounted_inode(&entry.path())?))
        })
        .collect();
    named.sort();
    let own_name =
        name_of_own.or_else(|| named.iter().find(|named| named.2 == own).map(|named| named.0.clone()));
    add(own, own_name, String::new(), "/proc/thread-self/ns/net".into());
    if let Some(init) = init {
        add(init, Some("init".into()), "nsenter --net=/proc/1/ns/net -- ".into(), init_path);
    }
    for (name, path, netns) in named {
        let enter = format!("ip netns exec {name} ");
        add(netns, Some(name), enter, path);
    }
    let mut processes: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    processes.sort_unstable();
    for pid in processes {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        if let Some(netns) = link_inode(&path) {
            add(netns, None, format!("nsenter --net={} -- ", path.display()), path);
        }
    }
    order.iter().filter_map(|netns| places.remove(netns)).collect()
}

/// Runs `look` in each namespace that can be entered.
///
/// In a thread of its own that then ends: setns moves one thread, and a descriptor would keep a namespace alive.
pub fn visit<T: Send>(places: &[Place], look: impl Fn(&Place) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let visitor = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            places.iter().filter(|place| place.own || enter(place)).map(&look).collect()
        });
        visitor.ok().and_then(|visitor| visitor.join().ok()).unwrap_or_default()
    })
}

fn enter(place: &Place) -> bool {
    // The process may have ended, and its number may have gone to one in another namespace.
    File::open(&place.path)
        .is_ok_and(|file| inode(&file) == Some(place.netns) && setns(&file, CloneFlags::CLONE_NEWNET).is_ok())
}

fn link_inode(path: &Path) -> Option<u32> {
    let target = fs::read_link(path).ok()?;
    target.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn mounted_inode(path: &Path) -> Option<u32> {
    inode(&File::open(path).ok()?)
}

fn inode(file: &File) -> Option<u32> {
    if fstatfs(file).ok()?.filesystem_type() != NSFS_MAGIC {
        return None;
    }
    u32::try_from(file.metadata().ok()?.ino()).ok()
}

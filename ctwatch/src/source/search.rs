//! The one search for network namespaces, with one limit: everything that reads namespaces reads those that it finds, and
//! reports how many it left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::namespaces::{self, Roots};

/// How many namespaces are read. A user without privileges may make tens of thousands.
pub const MOST: usize = 1024;
/// How many are counted; a machine with more has left out at least the difference.
const MOST_COUNTED: usize = 1 << 16;
/// How many ways into one are kept, for when the process behind the first one ends.
const MOST_WAYS: usize = 4;

/// A way into a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A name known to `ip netns`.
    Named(String),
    /// Another mount, as container runtimes make it.
    Mount(PathBuf),
    /// A process in it.
    Process(u32),
}

impl Way {
    /// What to open.
    pub fn path(&self, roots: &Roots) -> PathBuf {
        match self {
            Self::Named(name) => roots.named.join(name),
            Self::Mount(path) => path.clone(),
            Self::Process(pid) => roots.way_of(*pid),
        }
    }

    /// The namespace that it leads to now, found out without opening it.
    pub fn leads_to(&self, roots: &Roots) -> Option<u32> {
        match self {
            Self::Process(pid) => roots.of_process(*pid),
            Self::Named(_) | Self::Mount(_) => namespaces::inode_of_mount(&self.path(roots)),
        }
    }
}

/// One namespace as found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `init`, or a name known to `ip netns`.
    pub name: Option<String>,
    /// Ways in, best first.
    pub ways: Vec<Way>,
    /// Its place in the order of the search.
    pub(super) order: usize,
}

impl Place {
    /// Processes in it, a few.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        self.ways.iter().filter_map(|way| if let Way::Process(pid) = way { Some(*pid) } else { None })
    }
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// By inode, at most [`MOST`].
    pub places: BTreeMap<u32, Place>,
    /// How many more there are.
    pub left_out: usize,
}

/// Every namespace with a mount or a process that can be seen, and our own, as far as they are wanted.
///
/// One that only a thread beside its process's first one, a descriptor or a socket keeps alive is not among them. Where
/// there are too many, our own, the first, those with a mount and those of our own user namespace come before those of
/// other users.
pub fn find(roots: &Roots, own: u32, wants: impl Fn(u32) -> bool) -> Found {
    let mut search = Search { wants, places: BTreeMap::new() };
    search.place(own);
    if let Some(init) = roots.init(own)
        && let Some(place) = search.place(init)
    {
        place.name = Some("init".into());
        if init != own {
            place.ways.push(Way::Process(1));
        }
    }
    for (name, inode) in roots.named() {
        if let Some(place) = search.place(inode) {
            place.name.get_or_insert_with(|| name.clone());
            add(place, Way::Named(name));
        }
    }
    let mounts = fs::read_to_string(roots.proc.join("self/mountinfo")).unwrap_or_default();
    for (inode, path) in mounts.lines().filter_map(mounted) {
        // Those were found by their names.
        if path.parent() != Some(&roots.named)
            && let Some(place) = search.place(inode)
        {
            add(place, Way::Mount(path));
        }
    }
    for pid in roots.processes() {
        if let Some(inode) = roots.of_process(pid)
            && let Some(place) = search.place(inode)
        {
            add(place, Way::Process(pid));
        }
    }
    limit(roots, own, search.places)
}

struct Search<F> {
    wants: F,
    places: BTreeMap<u32, Place>,
}

impl<F: Fn(u32) -> bool> Search<F> {
    fn place(&mut self, inode: u32) -> Option<&mut Place> {
        let order = self.places.len();
        if !(self.wants)(inode) || order >= MOST_COUNTED && !self.places.contains_key(&inode) {
            return None;
        }
        Some(self.places.entry(inode).or_insert_with(|| Place { order, ..Place::default() }))
    }
}

fn add(place: &mut Place, way: Way) {
    if place.ways.len() < MOST_WAYS && !place.ways.contains(&way) {
        place.ways.push(way);
    }
}

/// Keeps [`MOST`] of them.
fn limit(roots: &Roots, own: u32, mut places: BTreeMap<u32, Place>) -> Found {
    let left_out = places.len().saturating_sub(MOST);
    if left_out > 0 {
        let users = roots.own_users();
        let rank = |(inode, place): (&u32, &Place)| {
            let strange = match place.ways.first() {
                _ if *inode == own || place.name.is_some() => false,
                Some(Way::Process(pid)) => roots.users_of(*pid) != users,
                _ => false,
            };
            ((*inode != own, strange, place.order), *inode)
        };
        let mut ranked: Vec<((bool, bool, usize), u32)> = places.iter().map(rank).collect();
        ranked.sort_unstable();
        for (_, inode) in &ranked[MOST..] {
            places.remove(inode);
        }
    }
    Found { places, left_out }
}

/// A line of mountinfo that mounts a network namespace: `ip netns`, Docker and others keep theirs so.
fn mounted(line: &str) -> Option<(u32, PathBuf)> {
    let mut fields = line.split(' ').skip(3);
    let inode = namespaces::inode_in(fields.next()?)?;
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

#[cfg(test)]
#[path = "search_tests.rs"]
pub(super) mod tests;

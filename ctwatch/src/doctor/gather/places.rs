//! Network namespaces: which there are, and how to get into them.

use std::path::PathBuf;

use crate::doctor::way::Way;
use crate::source::namespaces::{self, Roots};

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
    /// How a command gets there.
    pub enter: Way,
    path: PathBuf,
}

/// The own namespace first, then those with a name, then those of processes.
pub fn find() -> Vec<Place> {
    let roots = Roots::default();
    let Ok(own) = roots.own() else { return Vec::new() };
    let mut places: Vec<Place> = Vec::new();
    let mut add = |netns: u32, name: Option<String>, enter: Way, path: PathBuf| {
        if places.len() < MOST && !places.iter().any(|place| place.netns == netns) {
            let name = name.unwrap_or_else(|| netns.to_string());
            let enter = if netns == own { Way::Own } else { enter };
            places.push(Place { netns, name, own: netns == own, enter, path });
        }
    };
    let init = roots.init(own);
    let name_of_own = (init == Some(own)).then(|| "init".to_owned());
    let named = roots.named(usize::MAX);
    let own_name =
        name_of_own.or_else(|| named.iter().find(|named| named.2 == own).map(|named| named.0.clone()));
    add(own, own_name, Way::Own, roots.proc.join("thread-self/ns/net"));
    if let Some(init) = init {
        add(init, Some("init".into()), Way::Process(1), roots.way_of(1));
    }
    for (name, path, netns) in named {
        let enter = Way::Named(name.clone());
        add(netns, Some(name), enter, path);
    }
    for pid in roots.processes() {
        if let Some(netns) = roots.of_process(pid) {
            add(netns, None, Way::Process(pid), roots.way_of(pid));
        }
    }
    places
}

/// Runs `look` in each namespace that can be entered.
pub fn visit<T: Send>(places: &[Place], look: impl Fn(&Place) -> T + Sync) -> Vec<T> {
    let enter = |place: &&Place| place.own || namespaces::enter(&place.path, place.netns).is_ok();
    namespaces::apart(|| places.iter().filter(enter).map(&look).collect()).unwrap_or_default()
}

//! The network namespaces that doctor looks at, and how commands get into them.

use crate::doctor::way::Way;
use crate::source::namespaces::{self, Roots};
use crate::source::search::{self, Found};

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
    ways: Vec<search::Way>,
}

/// The own namespace first, then those with a name, then the others; and how many were left out.
pub fn find(only: Option<u32>) -> (Vec<Place>, u64) {
    let roots = Roots::default();
    let Ok(own) = roots.own() else { return (Vec::new(), 0) };
    let Found { places, left_out } = search::find(&roots, own, |netns| only.is_none_or(|only| only == netns));
    let place = |(netns, place): (u32, search::Place)| Place {
        netns,
        own: netns == own,
        enter: if netns == own { Way::Own } else { enter(&place) },
        name: place.name.unwrap_or_else(|| netns.to_string()),
        ways: place.ways,
    };
    let named = |place: &search::Place| place.name.is_some();
    let mut places: Vec<(u32, search::Place)> = places.into_iter().collect();
    places.sort_by_key(|(netns, place)| (*netns != own, !named(place)));
    (places.into_iter().map(place).collect(), left_out as u64)
}

/// A command takes a name before a process, which may end.
fn enter(place: &search::Place) -> Way {
    let by_name = place.ways.iter().find_map(|way| match way {
        search::Way::Named(name) => Some(Way::Named(name.clone())),
        _ => None,
    });
    by_name.or_else(|| place.processes().next().map(Way::Process)).unwrap_or(Way::Unknown)
}

/// Runs `look` in each namespace that can be entered.
pub fn visit<T: Send>(places: &[Place], look: impl Fn(&Place) -> T + Sync) -> Vec<T> {
    let roots = Roots::default();
    let enter =
        |place: &&Place| place.own || namespaces::enter_by_any(&roots, &place.ways, place.netns).is_ok();
    namespaces::apart(|| places.iter().filter(enter).map(&look).collect()).unwrap_or_default()
}

//! Room for events that wait for their cause or for a reader.
//!
//! Whoever keeps an event keeps its place with it, so that a place is free again exactly when its event is gone: handed
//! over, held back, or dropped with its namespace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::search::MOST as NAMESPACES;

/// How many events of all namespaces together wait, some 200 bytes each.
const MOST: usize = 1 << 16;
/// Any user can make namespaces, and fill their tables. So a namespace gets no more than this part of what is still free,
/// an eighth if it is alone, and only until half of the room is taken …
const PART: usize = 8;
/// … and the other half is for the first few events of each namespace, whatever others do.
const FIRST: usize = MOST / 2 / NAMESPACES;

/// The room that all namespaces share. Clones are the same room.
#[derive(Clone, Debug, Default)]
pub(super) struct Room(Arc<AtomicUsize>);

impl Room {
    /// Room for one more namespace.
    pub(super) fn share(&self) -> Share {
        Share(Arc::new(Taken { room: self.clone(), here: AtomicUsize::new(0) }))
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Taken {
    room: Room,
    /// How much of it this namespace has.
    here: AtomicUsize,
}

/// One namespace's share of the room.
#[derive(Debug)]
pub struct Share(Arc<Taken>);

impl Share {
    /// A place, where one is free.
    pub fn take(&self) -> Option<Place> {
        let Taken { room: Room(taken), here } = &*self.0;
        let mine = here.load(Ordering::Relaxed);
        let may = |taken| mine < FIRST || taken < MOST / 2 && mine < (MOST - taken) / PART;
        let more = |taken| (taken < MOST && may(taken)).then_some(taken + 1);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        here.fetch_add(1, Ordering::Relaxed);
        Some(Place(Arc::clone(&self.0)))
    }
}

/// A place in the room. It cannot be copied, and is free again once it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Taken>);

impl Drop for Place {
    fn drop(&mut self) {
        let Taken { room: Room(taken), here } = &*self.0;
        here.fetch_sub(1, Ordering::Relaxed);
        taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Something with its place.
#[derive(Debug)]
pub struct Kept<T> {
    /// What is kept.
    pub it: T,
    /// Where.
    pub place: Place,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(share: &Share) -> Vec<Place> {
        std::iter::from_fn(|| share.take()).collect()
    }

    #[test]
    fn one_namespace_takes_an_eighth_at_most() {
        let room = Room::default();
        let share = room.share();
        let places = fill(&share);
        assert!((MOST / 10..=MOST / PART).contains(&places.len()), "{}", places.len());
        assert_eq!(room.taken(), places.len());
        // Its places outlive it.
        drop(share);
        assert_eq!(room.taken(), places.len());
        drop(places);
        assert_eq!(room.taken(), 0);
    }

    #[test]
    fn however_many_fill_their_shares_one_more_finds_room() {
        let room = Room::default();
        let mut all: Vec<Vec<Place>> = (1..NAMESPACES).map(|_| fill(&room.share())).collect();
        let taken: usize = all.iter().map(Vec::len).sum();
        assert!(taken == room.taken() && taken < MOST, "{taken}");
        assert_eq!(fill(&room.share()).len(), FIRST);
        // Ended ones may have left events: more namespaces than there can be at a time.
        all.extend((0..NAMESPACES).map(|_| fill(&room.share())));
        assert_eq!(room.taken(), MOST);
        drop(all);
        assert_eq!(room.taken(), 0);
    }

    #[test]
    fn threads_that_race_for_places_give_all_of_them_back() {
        let room = Room::default();
        let take = || fill(&room.share());
        let all: Vec<Vec<Place>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().map(Vec::len).sum::<usize>(), room.taken());
        drop(all);
        assert_eq!(room.taken(), 0);
    }
}

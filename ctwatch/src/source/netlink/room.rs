//! Room for events that wait for their cause or for a reader.
//!
//! Whoever keeps an event keeps its place with it, so that a place is free again exactly when its event is gone: handed
//! over, held back, or dropped with its namespace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many events of all namespaces together wait, some 200 bytes each.
pub(super) const MOST: usize = 1 << 16;

/// The room that all namespaces share. Clones are the same room.
#[derive(Clone, Debug, Default)]
pub struct Room(Arc<AtomicUsize>);

impl Room {
    /// A place, where one is free.
    pub fn take(&self) -> Option<Place> {
        let more = |taken| (taken < MOST).then_some(taken + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place(self.clone()))
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A place in the room. It cannot be copied, and is free again once it is dropped.
#[derive(Debug)]
pub struct Place(Room);

impl Drop for Place {
    fn drop(&mut self) {
        let Room(taken) = &self.0;
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

    #[test]
    fn no_more_places_are_taken_than_there_are() {
        let room = Room::default();
        let places: Vec<Place> = std::iter::from_fn(|| room.take()).collect();
        assert_eq!((places.len(), room.taken()), (MOST, MOST));
        drop(places);
        assert_eq!(room.taken(), 0);
        assert!(room.clone().take().is_some());
    }

    #[test]
    fn threads_that_race_for_places_take_none_twice() {
        let room = Room::default();
        let take = || std::iter::from_fn(|| room.take()).collect::<Vec<Place>>();
        let all: Vec<Vec<Place>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().map(Vec::len).sum::<usize>(), MOST);
        drop(all);
        assert_eq!(room.taken(), 0);
    }
}

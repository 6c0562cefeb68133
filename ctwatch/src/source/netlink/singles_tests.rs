use proptest::prelude::*;

use super::super::message::build::{attribute, message, nest};
use super::super::message::{CT_DELETE, CT_NEW, Messages};
use super::super::room::Room;
use super::*;
use crate::model::entry::Nat;

const NETNS: u32 = 7;
const SECOND: u64 = 1_000_000_000;

fn all() -> Names {
    let mut names = Names::default();
    for name in Group::ALL {
        names.insert(name);
    }
    names
}

fn singles(names: Names) -> Singles {
    let asked = Asked { names, filter: Filter::default(), entries: EntryFilter::default(), per_second: 1000 };
    Singles::new(Arc::new(asked), Room::default().share())
}

/// A UDP flow from this port that is sent to another destination.
fn bytes(kind: u16, portid: u32, port: u16) -> Vec<u8> {
    let direction = |kind, src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16| {
        let addresses = nest(1, &[attribute(1, &src), attribute(2, &dst)]);
        let ports = [attribute(2, &sport.to_be_bytes()), attribute(3, &dport.to_be_bytes())].concat();
        nest(kind, &[addresses, nest(2, &[attribute(1, &[17]), ports])])
    };
    let parts = [
        direction(1, [10, 0, 0, 1], port, [10, 0, 0, 2], 53),
        direction(2, [10, 9, 0, 77], 53, [10, 0, 0, 1], port),
        attribute(3, &8_u32.to_be_bytes()),
        attribute(8, &5_u32.to_be_bytes()),
    ];
    message(kind, portid, ctwatch_ebpf::AF_INET, &parts)
}

fn at(mono: u64, wall: u64) -> Moment {
    Moment { wall_ns: wall * SECOND, mono_ns: mono * SECOND }
}

fn insert(singles: &mut Singles, portid: u32, port: u16) {
    singles.insert(NETNS, &Messages::new(&bytes(CT_NEW, portid, port)).next().unwrap());
}

fn delete(singles: &mut Singles, fate: Fate, port: u16) {
    singles.delete(NETNS, &Messages::new(&bytes(CT_DELETE, 0, port)).next().unwrap(), fate);
}

/// What is handed over, by event and certainty.
fn told(singles: &mut Singles) -> Vec<(Counted, Certainty)> {
    let event = |number| Counted::ALL.into_iter().find(|event| *event as u32 == number).unwrap();
    singles.take().map(|Kept { it, .. }| (event(it.traced.event), it.certainty)).collect()
}

/// A settlement with so many evictions since the start, while nothing goes on.
fn calm(evictions: u64) -> Reading {
    Reading { evictions, calm: true, complete: true }
}

/// The same while evictions go on.
fn unrest(evictions: u64) -> Reading {
    Reading { calm: false, ..calm(evictions) }
}

const EVICTED: (Counted, Certainty) = (Counted::DeleteEarlyDrop, Certainty::Inferred);
const UNKNOWN: (Counted, Certainty) = (Counted::DeleteOther, Certainty::Doubtful);

#[test]
fn an_insert_is_told_at_once_with_both_directions() {
    let mut singles = singles(all());
    singles.set_now(at(9, 1));
    insert(&mut singles, 0, 4000);
    insert(&mut singles, 99, 4001);
    let events: Vec<Single> = singles.take().map(|Kept { it, .. }| it).collect();
    assert_eq!(events[0].traced.event, Counted::Insert as u32);
    assert_eq!(events[1].traced.event, Counted::InsertNetlink as u32);
    let Traced { tuple, reply, mark, netns, ktime_ns, cpu, .. } = events[0].traced;
    assert_eq!((netns, mark, ktime_ns, cpu), (NETNS, 5, SECOND, NO_CPU));
    assert_eq!((tuple.src_part, reply.src_part), (4000_u16.to_be_bytes(), 53_u16.to_be_bytes()));
    assert_eq!(Nat::between(&tuple, &reply), Nat::Dnat);
}

#[test]
fn a_removal_waits_until_it_is_known_whether_it_was_an_eviction() {
    let mut singles = singles(all());
    delete(&mut singles, Fate::Known(Counted::DeleteNetlink), 1);
    delete(&mut singles, Fate::Alive, 2);
    delete(&mut singles, Fate::Expired, 3);
    assert_eq!(told(&mut singles), [(Counted::DeleteNetlink, Certainty::Sure)]);
    singles.settle(calm(2));
    assert_eq!(told(&mut singles), [EVICTED; 2]);
    delete(&mut singles, Fate::Alive, 4);
    delete(&mut singles, Fate::Expired, 5);
    singles.settle(calm(2));
    let sure = |event| (event, Certainty::Sure);
    assert_eq!(told(&mut singles), [sure(Counted::DeleteOther), sure(Counted::DeleteTimeout)]);
    assert_eq!((singles.lost(), singles.suppressed()), (0, 0));
}

#[test]
fn the_kernel_counts_an_eviction_after_it_has_announced_it() {
    let mut singles = singles(all());
    (0..5).for_each(|port| delete(&mut singles, Fate::Alive, port));
    singles.settle(unrest(3));
    assert_eq!(told(&mut singles), [], "two more may be counted yet");
    delete(&mut singles, Fate::Alive, 5);
    singles.settle_if_all(5);
    assert_eq!(told(&mut singles), []);
    singles.settle_if_all(6);
    assert_eq!(told(&mut singles), [EVICTED; 6]);
    singles.settle(calm(6));
    assert_eq!((told(&mut singles), singles.lost()), (Vec::new(), 0));
}

#[test]
fn what_cannot_be_told_apart_has_no_cause_and_counts_as_lost() {
    let mut both = singles(all());
    (0..5).for_each(|port| delete(&mut both, Fate::Alive, port));
    both.settle(unrest(3));
    both.settle(calm(3));
    assert_eq!((told(&mut both), both.lost()), (vec![UNKNOWN; 5], 3));

    let mut losses = singles(Names::default());
    (0..5).for_each(|port| delete(&mut losses, Fate::Alive, port));
    losses.settle(calm(3));
    assert_eq!((told(&mut losses), losses.lost()), (Vec::new(), 3));
}

#[test]
fn one_that_expired_may_be_the_one_that_was_evicted() {
    let mut singles = singles(all());
    delete(&mut singles, Fate::Alive, 1);
    delete(&mut singles, Fate::Expired, 2);
    singles.settle(calm(1));
    assert_eq!((told(&mut singles), singles.lost()), (vec![UNKNOWN; 2], 1));
}

#[test]
fn evictions_of_which_no_removal_was_heard_count_as_lost() {
    for names in [all(), Names::default()] {
        // Of entries that came when nobody listened, as the count of entries shows …
        let mut older = singles(names);
        delete(&mut older, Fate::Alive, 1);
        older.miss(4);
        older.settle(calm(5));
        assert_eq!((told(&mut older), older.lost()), (vec![EVICTED], 4));
        // … and where nothing shows them but the statistics.
        older.settle(calm(8));
        assert_eq!((told(&mut older), older.lost()), (Vec::new(), 7));
        delete(&mut older, Fate::Alive, 2);
        older.settle(calm(10));
        assert_eq!(older.lost(), 9);

        // What the kernel's queue had no room for is counted as it is seen.
        let mut overrun = singles(names);
        delete(&mut overrun, Fate::Alive, 1);
        overrun.lose(3);
        overrun.settle(calm(4));
        assert_eq!((told(&mut overrun), overrun.lost()), (vec![EVICTED], 0));
        delete(&mut overrun, Fate::Alive, 1);
        overrun.lose(3);
        overrun.settle(calm(6));
        assert_eq!(overrun.lost(), 1, "at most one of them is not among the three");
    }
    // Without evictions they are of no account.
    let mut nothing = singles(all());
    nothing.miss(3);
    nothing.settle(calm(0));
    assert_eq!(nothing.lost(), 0);
    let mut inserts = Names::default();
    inserts.remove(Group::EarlyDrop);
    let mut nothing = singles(inserts);
    nothing.settle(calm(5));
    assert_eq!(nothing.lost(), 0);
}

#[test]
fn evictions_that_find_no_room_count_as_lost() {
    let mut losses = singles(Names::default());
    (0..9000).for_each(|port| delete(&mut losses, Fate::Alive, port));
    losses.settle(calm(9000));
    let shown = told(&mut losses).len() as u64 + losses.suppressed();
    assert_eq!(shown + losses.lost(), 9000);
    assert!(losses.lost() > 1000, "{}", losses.lost());
    // No evictions, no loss.
    let lost = losses.lost();
    (0..9000).for_each(|port| delete(&mut losses, Fate::Alive, port));
    losses.settle(calm(9000));
    assert_eq!(losses.lost(), lost);
    // Some of the removals: none of them may vanish.
    (0..9000).for_each(|port| delete(&mut losses, Fate::Alive, port));
    losses.settle(calm(17_500));
    assert_eq!((told(&mut losses), losses.lost() - lost), (Vec::new(), 8500));
}

#[test]
fn what_is_given_up_may_all_have_been_evictions() {
    for names in [all(), Names::default()] {
        let mut singles = singles(names);
        (0..3).for_each(|port| delete(&mut singles, Fate::Alive, port));
        singles.settle(unrest(1));
        singles.give_up();
        assert_eq!(singles.lost(), 3);
    }
}

#[test]
fn only_what_is_asked_for_is_kept() {
    let mut losses = singles(Names::default());
    insert(&mut losses, 0, 1);
    delete(&mut losses, Fate::Known(Counted::DeleteNetlink), 2);
    delete(&mut losses, Fate::Alive, 3);
    losses.settle(calm(0));
    assert_eq!(told(&mut losses), []);

    let entries = EntryFilter { rsport: vec![54], ..EntryFilter::default() };
    let asked = Asked { names: all(), filter: Filter::default(), entries, per_second: 1000 };
    let mut filtered = Singles::new(Arc::new(asked), Room::default().share());
    insert(&mut filtered, 0, 1);
    delete(&mut filtered, Fate::Alive, 2);
    filtered.settle(calm(1));
    assert_eq!((told(&mut filtered), filtered.lost()), (Vec::new(), 0));
}

#[test]
fn what_nobody_asked_for_may_have_been_evicted_instead() {
    let entries = EntryFilter { rdport: vec![1], ..EntryFilter::default() };
    let asked = Asked { names: all(), filter: Filter::default(), entries, per_second: 1000 };
    let mut filtered = Singles::new(Arc::new(asked), Room::default().share());
    delete(&mut filtered, Fate::Alive, 1);
    delete(&mut filtered, Fate::Alive, 2);
    filtered.settle(calm(1));
    assert_eq!((told(&mut filtered), filtered.lost()), (vec![UNKNOWN], 1));
    delete(&mut filtered, Fate::Alive, 1);
    delete(&mut filtered, Fate::Alive, 2);
    filtered.settle(calm(3));
    assert_eq!((told(&mut filtered), filtered.lost()), (vec![EVICTED], 1));
}

#[test]
fn beyond_the_budget_events_are_counted_and_room_is_given_back() {
    let asked =
        Asked { names: all(), filter: Filter::default(), entries: EntryFilter::default(), per_second: 2 };
    let room = Room::default();
    let mut singles = Singles::new(Arc::new(asked), room.share());
    (0..5).for_each(|port| insert(&mut singles, 0, port));
    delete(&mut singles, Fate::Alive, 9);
    assert_eq!(room.taken(), 3);
    singles.give_up();
    assert_eq!(room.taken(), 2, "what is held back needs no room");
    assert_eq!((told(&mut singles).len(), singles.suppressed()), (2, 4));
    assert_eq!(room.taken(), 0);
}

#[test]
fn the_budget_goes_by_a_clock_that_nobody_sets() {
    let asked =
        Asked { names: all(), filter: Filter::default(), entries: EntryFilter::default(), per_second: 2 };
    let mut singles = Singles::new(Arc::new(asked), Room::default().share());
    let mut shown = |now, count| {
        singles.set_now(now);
        (0..count).for_each(|port| insert(&mut singles, 0, port));
        told(&mut singles).len()
    };
    assert_eq!(shown(at(1, 100), 3), 2);
    // Setting the clock gives nothing more in a second …
    assert_eq!(shown(at(1, 50), 3), 0);
    // … and takes nothing from the next.
    assert_eq!(shown(at(2, 50), 3), 2);
    assert_eq!(shown(at(2, 100), 1), 0);
    assert_eq!(singles.suppressed(), 6);
}

#[test]
fn a_removal_spends_of_the_second_in_which_it_is_decided() {
    let asked =
        Asked { names: all(), filter: Filter::default(), entries: EntryFilter::default(), per_second: 3 };
    let mut singles = Singles::new(Arc::new(asked), Room::default().share());
    singles.set_now(at(1, 1));
    (0..3).for_each(|port| delete(&mut singles, Fate::Alive, port));
    singles.set_now(at(2, 2));
    (0..2).for_each(|port| insert(&mut singles, 0, port));
    singles.settle(calm(3));
    insert(&mut singles, 0, 9);
    let heard: Vec<u64> = singles.take().map(|Kept { it, .. }| it.traced.ktime_ns / SECOND).collect();
    assert_eq!((heard, singles.suppressed()), (vec![2, 2, 1], 3));
}

#[test]
fn a_place_is_free_once_its_event_is_gone() {
    let room = Room::default();
    let asked =
        Asked { names: all(), filter: Filter::default(), entries: EntryFilter::default(), per_second: 1000 };
    let new = || Singles::new(Arc::new(asked.clone()), room.share());
    let fill = |singles: &mut Singles| {
        (0..3).for_each(|port| insert(singles, 0, port));
        (3..6).for_each(|port| delete(singles, Fate::Alive, port));
    };
    // What ended with its namespace waits for a reader as before.
    let (mut heard, mut ended) = (Heard::default(), new());
    fill(&mut ended);
    ended.give_up();
    heard.take(&mut ended);
    drop(ended);
    assert_eq!((heard.events.len(), room.taken()), (6, 6));

    let mut dropped = new();
    fill(&mut dropped);
    dropped.settle(unrest(1));
    assert_eq!(room.taken(), 12);
    drop(dropped);
    assert_eq!(room.taken(), 6);
    assert_eq!((heard.told(0).events.len(), room.taken()), (6, 0));
}

#[test]
fn without_a_place_nothing_is_kept() {
    let room = Room::default();
    let asked = Asked {
        names: all(),
        filter: Filter::default(),
        entries: EntryFilter::default(),
        per_second: 10_000,
    };
    let mut singles = Singles::new(Arc::new(asked), room.share());
    (0..10_000).for_each(|port| insert(&mut singles, 0, port));
    let kept = room.taken() as u64;
    assert_eq!((singles.lost(), singles.suppressed()), (10_000 - kept, 0));
    delete(&mut singles, Fate::Alive, 2);
    delete(&mut singles, Fate::Known(Counted::DeleteNetlink), 3);
    assert_eq!((room.taken() as u64, singles.lost()), (kept, 10_001 - kept), "one waits for its cause");
    assert_eq!(told(&mut singles).len() as u64, kept);
    delete(&mut singles, Fate::Alive, 2);
    assert_eq!(room.taken(), 1);
}

proptest! {
    #[test]
    fn whatever_is_settled_nothing_vanishes(
        rounds in proptest::collection::vec((0_u16..9, 0_u64..12, 0_u64..3, 0_u64..3, any::<bool>()), 1..12),
        deletes in any::<bool>(),
    ) {
        let mut singles = singles(if deletes { all() } else { Names::default() });
        let (mut removed, mut told, mut evicted, mut lost) = (0, 0, 0, 0);
        let mut shown = 0;
        let mut hear = |singles: &mut Singles| {
            for event in self::told(singles) {
                told += 1;
                shown += u64::from(event == EVICTED);
            }
            (told, shown)
        };
        for (alive, evictions, missed, overrun, is_calm) in rounds {
            (0..alive).for_each(|port| delete(&mut singles, Fate::Alive, port));
            singles.miss(missed);
            singles.lose(overrun);
            removed += usize::from(alive);
            lost += overrun;
            evicted += evictions;
            singles.settle(if is_calm { calm(evicted) } else { unrest(evicted) });
            hear(&mut singles);
        }
        singles.settle(calm(evicted));
        singles.give_up();
        let (told, shown) = hear(&mut singles);
        if deletes {
            prop_assert_eq!(told, removed);
        }
        prop_assert!(shown <= evicted);
        prop_assert!(shown + singles.lost() + lost >= evicted, "{} {} {} {}", shown, singles.lost(), lost, evicted);
    }
}

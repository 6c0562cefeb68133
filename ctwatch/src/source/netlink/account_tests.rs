use proptest::prelude::*;

use ctwatch_ebpf::Group;

use super::super::entry::status::{ASSURED, SEEN_REPLY};
use super::super::fate::TCP_CLOSE;
use super::*;

const UDP: Event = Event { family: AF_INET, proto: 17, portid: 0 };
const TCP: Event = Event { family: AF_INET, proto: 6, portid: 0 };

const ALIVE: Ending = Ending { status: SEEN_REPLY, alive: true, state: None };
const EXPIRED: Ending = Ending { status: 0, alive: false, state: None };

fn account() -> Account {
    let mut account = Account::new(7);
    account.set_tells_time_left();
    account
}

fn get(account: &Account, event: Event, counted: Counted) -> u64 {
    let flow = FlowType { netns: 7, family: event.family, proto: event.proto };
    account.rows().find(|(key, _)| *key == flow).map_or(0, |(_, counters)| counters.get(counted))
}

fn typeless(account: &Account, counted: Counted) -> u64 {
    account.rows().find(|(key, _)| *key == any_flow(7)).map_or(0, |(_, counters)| counters.get(counted))
}

fn deletes(account: &Account) -> u64 {
    account.rows().map(|(_, counters)| Group::Delete.of(&counters)).sum()
}

fn settle(account: &mut Account, statistics: &[(Statistic, u64)], calm: bool) {
    account.settle(Some(Sums::of(statistics)), calm);
}

#[test]
fn inserts_are_told_apart_by_who_asked() {
    let mut account = account();
    account.insert(UDP);
    account.insert(Event { portid: 99, ..UDP });
    assert_eq!(get(&account, UDP, Counted::Insert), 1);
    assert_eq!(get(&account, UDP, Counted::InsertNetlink), 1);
    assert_eq!(account.rows().count(), 1);
}

#[test]
fn causes_that_an_event_tells() {
    let mut account = account();
    account.delete(Event { portid: 99, ..UDP }, ALIVE);
    account.delete(UDP, EXPIRED);
    account.delete(TCP, Ending { status: ASSURED, alive: true, state: Some(7) });
    account.delete(TCP, Ending { status: 0, alive: true, state: Some(TCP_CLOSE) });
    settle(&mut account, &[], true);
    assert_eq!(get(&account, UDP, Counted::DeleteNetlink), 1);
    assert_eq!(get(&account, UDP, Counted::DeleteTimeout), 1);
    assert_eq!(get(&account, TCP, Counted::DeleteOther), 2);
    assert_eq!(deletes(&account), 4);
}

#[test]
fn evictions_are_given_to_the_flow_type_where_it_is_certain() {
    let mut account = account();
    for _ in 0..1000 {
        account.delete(UDP, ALIVE);
    }
    for _ in 0..5 {
        account.delete(TCP, ALIVE);
    }
    settle(&mut account, &[(Statistic::EarlyDrop, 1000)], true);
    // At most the 5 of TCP can be among the evicted, so 995 of UDP are for sure.
    assert_eq!(get(&account, UDP, Counted::DeleteEarlyDrop), 995);
    assert_eq!(typeless(&account, Counted::DeleteEarlyDrop), 5);
    assert_eq!(typeless(&account, Counted::DeleteOther), 5);
    assert_eq!(deletes(&account), 1005);
}

#[test]
fn evictions_in_the_last_second_look_expired() {
    let mut account = account();
    account.delete(UDP, ALIVE);
    account.delete(UDP, EXPIRED);
    account.delete(UDP, EXPIRED);
    settle(&mut account, &[(Statistic::EarlyDrop, 2)], true);
    assert_eq!(get(&account, UDP, Counted::DeleteEarlyDrop), 2);
    assert_eq!(get(&account, UDP, Counted::DeleteTimeout), 1);
}

#[test]
fn an_eviction_whose_event_comes_later_is_counted_once() {
    let mut account = account();
    settle(&mut account, &[(Statistic::EarlyDrop, 1)], true);
    assert_eq!(typeless(&account, Counted::DeleteEarlyDrop), 1);
    account.delete(UDP, ALIVE);
    settle(&mut account, &[(Statistic::EarlyDrop, 1)], true);
    assert_eq!(deletes(&account), 1);
}

#[test]
fn an_eviction_that_only_the_count_shows_is_counted_once() {
    let mut account = account();
    account.compare_with_count(0, 10, 10);
    settle(&mut account, &[(Statistic::EarlyDrop, 1)], true);
    account.compare_with_count(0, 10, 9);
    settle(&mut account, &[(Statistic::EarlyDrop, 1)], true);
    assert_eq!(deletes(&account), 1);
    assert_eq!(typeless(&account, Counted::DeleteEarlyDrop), 1);
}

#[test]
fn lost_events_are_counted_without_their_flow_type() {
    let mut account = account();
    account.lose_inserts(10);
    account.lose_deletes(8);
    settle(&mut account, &[(Statistic::EarlyDrop, 3)], true);
    assert_eq!(typeless(&account, Counted::Insert), 10);
    assert_eq!(typeless(&account, Counted::DeleteEarlyDrop), 3);
    assert_eq!(typeless(&account, Counted::DeleteOther), 5);
    assert_eq!(account.lost(), 18);
}

#[test]
fn an_entry_that_was_evicted_before_it_was_announced_is_missed_once() {
    let mut account = account();
    for _ in 0..9 {
        account.insert(UDP);
    }
    // The tenth was never announced, its eviction was.
    account.delete(UDP, ALIVE);
    account.compare_with_count(9, 0, 9);
    settle(&mut account, &[(Statistic::EarlyDrop, 1)], true);
    assert_eq!(account.unannounced(0, 9), 1);
    account.miss_inserts(1);
    assert_eq!(account.unannounced(0, 9), 0);
    assert_eq!(typeless(&account, Counted::Insert), 1);
    assert_eq!(account.lost(), 1);
    // Packets that wait for their confirmation are in the count.
    assert_eq!(account.unannounced(0, 12), 0);
}

#[test]
fn reply_only_entries_are_no_missed_inserts() {
    let mut account = account();
    for _ in 0..5 {
        account.delete(Event { portid: 1, ..UDP }, ALIVE);
    }
    settle(&mut account, &[(Statistic::ClashResolve, 3)], true);
    account.delete(UDP, Ending { status: NAT_CLASH, ..EXPIRED });
    assert_eq!(account.unannounced(10, 7), 0);
    assert_eq!(account.unannounced(10, 8), 1);
}

#[test]
fn the_count_shows_what_no_event_told() {
    let mut account = account();
    for _ in 0..20 {
        account.insert(UDP);
    }
    // 100 entries at the start; 20 came, 90 are left: 30 went unheard.
    account.compare_with_count(20, 100, 90);
    // A count that holds an entry not yet confirmed shows fewer, which takes nothing back.
    account.compare_with_count(20, 100, 91);
    settle(&mut account, &[], true);
    assert_eq!(typeless(&account, Counted::DeleteOther), 30);
    // An entry that nobody announced is not missed when it goes.
    account.delete(UDP, Ending { status: NAT_CLASH, ..EXPIRED });
    account.compare_with_count(20, 100, 90);
    settle(&mut account, &[], true);
    assert_eq!(deletes(&account), 31);
}

#[test]
fn a_kernel_that_does_not_tell_the_time_left_has_no_timeouts() {
    let mut account = Account::new(7);
    account.delete(UDP, EXPIRED);
    account.delete(UDP, EXPIRED);
    settle(&mut account, &[(Statistic::EarlyDrop, 1)], true);
    assert_eq!(get(&account, UDP, Counted::DeleteTimeout), 0);
    assert_eq!(get(&account, UDP, Counted::DeleteEarlyDrop), 1);
    assert_eq!(get(&account, UDP, Counted::DeleteOther), 1);
    account.delete(TCP, Ending { status: ASSURED, alive: false, state: Some(7) });
    assert!(account.tells_time_left());
}

#[test]
fn refusals_are_what_drop_holds_beside_clashes() {
    let mut account = account();
    settle(
        &mut account,
        &[
            (Statistic::Drop, 10),
            (Statistic::InsertFailed, 7),
            (Statistic::ChainTooLong, 4),
            (Statistic::ClashResolve, 2),
        ],
        true,
    );
    assert_eq!(typeless(&account, Counted::DropTableFull), 7);
    assert_eq!(typeless(&account, Counted::FailedOther), 3);
    assert_eq!(typeless(&account, Counted::FailedChaintoolong), 4);
    assert_eq!(typeless(&account, Counted::ClashResolve), 2);
}

#[test]
fn rows_are_bounded_and_the_excess_is_visible() {
    let mut account = account();
    for family in [AF_INET, AF_INET6] {
        for proto in 0..=u8::MAX {
            account.insert(Event { family, proto, portid: 0 });
        }
    }
    assert_eq!(account.rows().count(), MOST_ROWS + 1);
    assert_eq!(typeless(&account, Counted::Insert), 512 - MOST_ROWS as u64);
}

#[test]
fn removals_of_flow_types_beyond_the_rows_wait_for_their_cause_too() {
    let mut account = account();
    let beyond = Event { family: AF_INET6, proto: 0, portid: 0 };
    for proto in 0..=u8::MAX {
        account.insert(Event { family: AF_INET, proto, portid: 0 });
    }
    assert_eq!(account.delete(beyond, ALIVE), Fate::Alive);
    assert_eq!(account.delete(beyond, EXPIRED), Fate::Expired);
    assert_eq!(
        account.delete(beyond, Ending { status: ASSURED, ..ALIVE }),
        Fate::Known(Counted::DeleteOther)
    );
    assert_eq!(deletes(&account), 1);
    // The kernel counts the eviction: it is the one that still had time left, and not one more removal.
    settle(&mut account, &[(Statistic::EarlyDrop, 1)], true);
    account.delete(UDP, ALIVE);
    settle(&mut account, &[(Statistic::EarlyDrop, 1)], true);
    assert_eq!(typeless(&account, Counted::DeleteEarlyDrop), 1);
    assert_eq!(typeless(&account, Counted::DeleteTimeout), 1);
    assert_eq!(get(&account, UDP, Counted::DeleteOther), 1);
    assert_eq!(deletes(&account), 4);
}

#[test]
fn a_removal_announced_before_the_kernel_counts_it_waits() {
    let mut account = account();
    for _ in 0..10 {
        account.delete(UDP, ALIVE);
    }
    account.delete(TCP, ALIVE);
    settle(&mut account, &[(Statistic::EarlyDrop, 6)], false);
    assert_eq!(get(&account, UDP, Counted::DeleteEarlyDrop), 5);
    assert_eq!(typeless(&account, Counted::DeleteEarlyDrop), 1);
    assert_eq!(deletes(&account), 6);
    settle(&mut account, &[(Statistic::EarlyDrop, 10)], false);
    assert_eq!(deletes(&account), 11, "what was held is decided now");
    settle(&mut account, &[(Statistic::EarlyDrop, 10)], true);
    assert_eq!(deletes(&account), 11);
}

#[test]
fn entries_that_end_with_their_namespace_have_a_flow_type_where_all_were_heard_of() {
    let mut heard = account();
    heard.insert(UDP);
    heard.insert(UDP);
    heard.insert(TCP);
    heard.delete(UDP, EXPIRED);
    settle(&mut heard, &[], true);
    let mut older = heard.clone();
    heard.end(2);
    assert_eq!(get(&heard, UDP, Counted::DeleteOther), 1);
    assert_eq!(get(&heard, TCP, Counted::DeleteOther), 1);
    older.end(3);
    assert_eq!(typeless(&older, Counted::DeleteOther), 3);
}

proptest! {
    #[test]
    fn every_removal_is_counted_once(
        steps in proptest::collection::vec((0u64..50, 0u64..50, 0u64..50, 0u64..50, 0u64..10, 0u64..60, any::<bool>()), 1..8)
    ) {
        let mut account = account();
        let (mut told, mut evictions) = (0, 0);
        for (udp, tcp, udp_expired, tcp_expired, lost, evicted, calm) in steps {
            for (count, event, ending) in
                [(udp, UDP, ALIVE), (tcp, TCP, ALIVE), (udp_expired, UDP, EXPIRED), (tcp_expired, TCP, EXPIRED)]
            {
                (0..count).for_each(|_| {
                    account.delete(event, ending);
                });
            }
            account.lose_deletes(lost);
            let all = udp + tcp + udp_expired + tcp_expired + lost;
            told += all;
            // The kernel evicts only what also ends.
            evictions += evicted.min(all);
            settle(&mut account, &[(Statistic::EarlyDrop, evictions)], calm);
            if !calm {
                settle(&mut account, &[(Statistic::EarlyDrop, evictions)], true);
            }
            prop_assert_eq!(deletes(&account), told);
            let counted: u64 = account.rows().map(|(_, counters)| counters.get(Counted::DeleteEarlyDrop)).sum();
            prop_assert_eq!(counted, evictions);
        }
    }
}

#[test]
fn invalid_packets_are_counted_without_reason_and_flow_type() {
    let mut account = account();
    settle(&mut account, &[(Statistic::Invalid, 5), (Statistic::IcmpError, 2)], true);
    settle(&mut account, &[(Statistic::Invalid, 6), (Statistic::IcmpError, 2)], true);
    assert_eq!(typeless(&account, Counted::InvalidOther), 8);
    assert_eq!(deletes(&account), 0);
}

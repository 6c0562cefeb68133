use ctwatch_ebpf::{AF_INET, Event};
use proptest::prelude::*;

use super::*;

fn top(key: &str, insert: u64, early_drop: u64, drop: u64) -> Top {
    Top {
        by: By::Dport,
        netns: 7,
        family: AF_INET,
        proto: 17,
        key: key.into(),
        insert,
        early_drop,
        drop,
        invalid: 0,
    }
}

#[test]
fn only_what_is_new_counts() {
    let before = [top("53", 100, 2, 1), top("443", 50, 0, 0)];
    let now = [top("443", 50, 0, 0), top("53", 110, 2, 4), top("80", 3, 0, 0)];
    assert_eq!(since(&before, &now), [top("53", 10, 0, 3), top("80", 3, 0, 0)]);
}

#[test]
fn losses_outrank_inserts() {
    let keys: Vec<String> = since(&[], &[top("1", 1_000_000, 0, 0), top("2", 1, 0, 1), top("3", 1, 5, 0)])
        .into_iter()
        .map(|top| top.key)
        .collect();
    assert_eq!(keys, ["3", "2", "1"]);
}

#[test]
fn a_key_that_came_back_begins_anew() {
    assert_eq!(since(&[top("53", 100, 0, 0)], &[top("53", 7, 0, 1)]), [top("53", 7, 0, 1)]);
}

#[test]
fn what_is_not_ranked_is_known() {
    let flow = |family, proto| FlowType { netns: 7, family, proto };
    let mut udp = Counters::default();
    udp.0[Event::Insert as usize] = 100;
    udp.0[Event::DeleteEarlyDrop as usize] = 9;
    udp.0[Event::DropNoMemory as usize] = 4;
    let flows = [(flow(AF_INET, 17), udp), (flow(AF_INET, 1), udp), (FlowType::OVERFLOW, udp)];
    let left = |top: &[Top], by| unranked(top, by, flows.iter().map(|(flow, counts)| (flow, counts)));
    assert_eq!(left(&[], By::Dport), [100, 9, 4, 0], "ICMP has no ports");
    assert_eq!(left(&[], By::Src), [200, 18, 8, 0]);
    let top = [top("53", 90, 9, 1), top("54", 1, 1, 2)];
    assert_eq!(left(&top, By::Dport), [9, 0, 1, 0], "one reading may be a moment behind the other");
    assert_eq!(left(&top, By::Src), [200, 18, 8, 0], "another ranking");
}

proptest! {
    #[test]
    fn totals_are_the_sum_of_the_differences(steps in prop::collection::vec((0_u64..100, 0_u64..5, 0_u64..5), 1..20)) {
        let mut before: Vec<Top> = Vec::new();
        let mut now = top("53", 0, 0, 0);
        let mut sum = top("53", 0, 0, 0);
        for (insert, early_drop, drop) in steps {
            now.insert += insert;
            now.early_drop += early_drop;
            now.drop += drop;
            for new in since(&before, std::slice::from_ref(&now)) {
                sum.insert += new.insert;
                sum.early_drop += new.early_drop;
                sum.drop += new.drop;
            }
            before = vec![now.clone()];
        }
        prop_assert_eq!(sum, now);
    }
}

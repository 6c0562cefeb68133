use ctwatch_ebpf::AF_INET;
use ctwatch_ebpf::invalid::WORDS;
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn flow(family: u8) -> FlowType {
    FlowType { netns: 7, family, proto: if family == 0 { 0 } else { 6 } }
}

fn key(family: u8, words: u64) -> Key {
    Key { flow: flow(family).pack(), words }
}

fn words(said: &str) -> Words {
    let mut text = [0; WORDS];
    text[..said.len()].copy_from_slice(said.as_bytes());
    Words { text, accepted: 0 }
}

#[test]
fn counts_go_by_what_the_words_mean() {
    let said = BTreeMap::from([
        (100, words("SEQ is over upper bound %u (over the window of the receiver)")),
        (200, words("SEQ is under lower bound %u (already ACKed data retransmitted)")),
    ]);
    let counts = vec![
        (key(AF_INET, 100), 900),
        (key(AF_INET, 200), 50),
        (key(AF_INET, 0), 3),
        (key(AF_INET, 1), 2),
        // The filter leaves these out.
        (key(0, 100), 40),
    ];
    let sum = sums(counts, &said);
    let row = |event| sum.rows.get(&(flow(AF_INET), event)).copied();
    assert_eq!(row(Event::InvalidOutOfWindow), Some(900));
    assert_eq!((row(Event::InvalidOther), row(Event::InvalidUnrelated)), (Some(3), Some(2)));
    assert_eq!(sum.rows.len(), 3);
    assert_eq!((sum.all[&7], sum.unsaid), (945, 5));
    let since = sum.clone().since(&sum);
    assert!(since.rows.values().chain(since.all.values()).all(|count| *count == 0) && since.unsaid == 0);
}

/// What the hooks have told of, and how much of it without words.
fn told(all: u64, unsaid: u64) -> Invalid {
    Invalid { all: BTreeMap::from([(7, all)]), unsaid, ..Invalid::default() }
}

fn kernel(count: u64) -> BTreeMap<u32, u64> {
    BTreeMap::from([(7, count)])
}

#[test]
fn what_nobody_explains_is_lost_once_and_then_looked_for() {
    let mut search = Search::begin(&kernel(1000), None);
    assert_eq!(search.step(SECOND, &kernel(1900), &told(900, 0)), Step::Stay);
    assert_eq!(search.step(2 * SECOND, &kernel(1905), &told(900, 0)), Step::Attach);
    assert_eq!(search.lost(), 5);
    assert_eq!(search.step(3 * SECOND, &kernel(1925), &told(920, 20)), Step::Stay);
    assert_eq!(search.step(12 * SECOND, &kernel(1925), &told(920, 20)), Step::Stay);
    assert_eq!(search.step(13 * SECOND, &kernel(1925), &told(920, 20)), Step::Detach);
    assert_eq!(search.step(14 * SECOND, &kernel(1925), &told(920, 20)), Step::Stay);
    assert_eq!(search.step(15 * SECOND, &kernel(1926), &told(920, 20)), Step::Attach);
    assert_eq!(search.lost(), 6);
}

#[test]
fn what_no_packet_explains_is_tried_less_and_less_often() {
    let mut search = Search::begin(&kernel(0), None);
    let mut steps = Vec::new();
    for second in 1..=100 {
        // One a second that is no invalid packet.
        let step = search.step(second * SECOND, &kernel(second), &told(0, 0));
        if step != Step::Stay {
            steps.push((second, step));
        }
    }
    assert_eq!(
        steps,
        [
            (1, Step::Attach),
            (11, Step::Detach),
            (21, Step::Attach),
            (31, Step::Detach),
            (51, Step::Attach),
            (61, Step::Detach),
        ]
    );
    assert_eq!(search.lost(), 3, "each attempt begins with one that nobody saw");
}

#[test]
fn a_namespace_that_comes_later_begins_at_its_present_count() {
    let mut search = Search::begin(&BTreeMap::new(), None);
    assert_eq!(search.step(SECOND, &kernel(50), &told(20, 0)), Step::Stay);
    assert_eq!(search.step(2 * SECOND, &kernel(51), &told(20, 0)), Step::Attach);
    assert_eq!(search.lost(), 1);
    // Its inode is another one's later.
    let mut search = Search::begin(&kernel(50), None);
    assert_eq!(search.step(SECOND, &BTreeMap::new(), &told(20, 0)), Step::Stay);
    assert_eq!(search.step(2 * SECOND, &kernel(0), &told(20, 0)), Step::Stay);
    assert_eq!(search.step(3 * SECOND, &kernel(2), &told(20, 0)), Step::Attach);
}

proptest! {
    #[test]
    fn what_is_explained_is_never_lost(steps in prop::collection::vec((0_u64..50, 0_u64..50), 1..30)) {
        let mut search = Search::begin(&kernel(0), None);
        let (mut count, mut now) = (0, 0);
        for (packets, more) in steps {
            count += packets;
            now += SECOND;
            // Read after the kernel's counter: it may hold more.
            prop_assert_eq!(search.step(now, &kernel(count), &told(count + more, 0)), Step::Stay);
            count += more;
        }
        prop_assert_eq!(search.lost(), 0);
    }
}

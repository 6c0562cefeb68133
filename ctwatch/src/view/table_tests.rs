use ctwatch_ebpf::loss::Tuple;
use jiff::tz::TimeZone;

use super::Machine;
use super::table_json;
use super::table_lines::{TableLines, progress};
use crate::model::Table;
use crate::model::filter::tuple;
use crate::model::held::Reading;
use crate::model::table::{Dimensions, Entry, GroupBy, Grouping, Holding, Saved, Space, Traffic, status};

/// 2026-11-23T19:00:00.012345678Z
const TIME: i128 = 1_795_460_400_012_345_678;
const NEW: u32 = status::CONFIRMED;
const SEEN: u32 = NEW | status::SEEN_REPLY;
const KEPT: u32 = SEEN | status::ASSURED;

fn machine() -> Machine {
    Machine { host: "web-7".into(), kernel: "6.12.117".into() }
}

fn lines(color: bool) -> TableLines {
    TableLines::new(Some(machine()), TimeZone::UTC, color)
}

fn table(netns: u32, name: &str, count: u64, max: u64) -> Table {
    Table { netns, name: name.into(), count: Some(count), max: Some(max) }
}

/// A flood, web servers behind it, and the little that is always there.
fn entries(netns: u32) -> Vec<Entry> {
    let entry = |proto, src: String, dst: &str, ports, state, status| {
        let tuple = tuple(proto, src.parse().unwrap(), dst.parse().unwrap(), ports);
        Entry { netns, tuple, state, status, ..Entry::default() }
    };
    let mut all = Vec::new();
    for n in 0..200_u16 {
        let src = format!("198.51.100.{}", n % 100);
        all.push(entry(17, src, "203.0.113.7", Some((1024 + n, 6881)), None, NEW));
    }
    for n in 0..30_u16 {
        let src = format!("192.0.2.{}", n % 9);
        let state = if n < 20 { 3 } else { 7 };
        all.push(entry(6, src, "203.0.113.7", Some((2048 + n, 443)), Some(state), KEPT));
    }
    for n in 0..5_u16 {
        let src = format!("2001:db8::{n}");
        all.push(entry(17, src, "2001:db8::53", Some((4096 + n, 53)), None, SEEN));
    }
    all.push(entry(1, "192.0.2.9".into(), "203.0.113.7", None, None, SEEN));
    all.push(entry(132, "192.0.2.9".into(), "203.0.113.7", Some((9, 9)), Some(4), KEPT));
    all
}

/// One or several namespaces as the command puts them together.
fn holding(by: &[GroupBy], shown: Option<usize>, most: usize, tables: &[Table]) -> Holding {
    let mut grouping = Grouping::new(Dimensions::of(by), most);
    let mut spaces = Vec::new();
    for table in tables {
        grouping.make_room();
        for entry in &entries(table.netns) {
            grouping.add(entry);
        }
        let census = grouping.take_census();
        let reading = Reading { before: census.total, listed: census.total, after: census.total };
        let readings = vec![reading];
        spaces.push(Space { table: table.clone(), census, interrupted: false, readings, error: None });
    }
    let ranked = grouping.ranked(shown);
    Holding {
        wall_ns: TIME,
        by: Dimensions::of(by),
        filtered: false,
        spaces,
        namespaces_left_out: 0,
        ranked,
        saved: None,
    }
}

/// What a router with accounting has: NAT of the destination and of the source, a zone, a mark, a flow table.
fn natted(by: &[GroupBy]) -> Holding {
    let of = |src: &str, sport, dst: &str, dport| {
        tuple(17, src.parse().unwrap(), dst.parse().unwrap(), Some((sport, dport)))
    };
    let mut grouping = Grouping::new(Dimensions::of(by), 100);
    for n in 0..3_u16 {
        grouping.add(&Entry {
            tuple: of("192.0.2.8", 4000 + n, "198.51.100.1", 5353),
            reply: Some(of("10.9.0.77", 53, "192.0.2.8", 4000 + n)),
            status: SEEN | status::OFFLOAD,
            traffic: Some(Traffic { packets: 10, bytes: 1400 + u64::from(n) }),
            ..Entry::default()
        });
    }
    grouping.add(&Entry {
        tuple: Tuple { zone: 9, ..of("10.9.0.5", 4000, "192.0.2.53", 53) },
        reply: Some(of("192.0.2.53", 53, "198.51.100.1", 1024)),
        status: NEW,
        mark: 0x4001,
        ..Entry::default()
    });
    grouping.add(&Entry { tuple: of("10.9.0.6", 1, "10.9.0.7", 2), status: NEW, ..Entry::default() });
    let census = grouping.take_census();
    let space = Space {
        table: table(0, "init", 5, 100),
        census,
        interrupted: false,
        readings: Vec::new(),
        error: None,
    };
    Holding { ranked: grouping.ranked(None), spaces: vec![space], ..holding(by, None, 1, &[]) }
}

/// All a view can meet: defaults, addresses, everything at once, several namespaces, no room, trouble.
fn all() -> Vec<Holding> {
    let init = table(4_026_531_840, "init", 240, 262_144);
    let full = table(4_026_532_290, "blue\x1b[2J", 237, 237);
    let mut trouble = holding(&[GroupBy::Dport], Some(2), 100, std::slice::from_ref(&full));
    trouble.spaces[0].interrupted = true;
    trouble.filtered = true;
    let mut empty = holding(&[GroupBy::Dport], Some(2), 100, &[]);
    let census = empty.census();
    let unreadable = Table { count: None, max: None, ..full.clone() };
    // Packets hold what was flushed.
    let readings = vec![Reading { before: 240, listed: 0, after: 240 }; 2];
    empty.spaces = vec![Space { table: init.clone(), census, interrupted: false, readings, error: None }];
    let mut unread = empty.clone();
    unread.spaces[0].readings.clear();
    unread.spaces[0].error = Some("Operation not permitted (os error 1)".into());
    unread.spaces[0].table = unreadable;
    vec![
        holding(
            &[GroupBy::Proto, GroupBy::State, GroupBy::Dport],
            Some(20),
            100,
            std::slice::from_ref(&init),
        ),
        holding(&[GroupBy::Src], Some(3), 40, std::slice::from_ref(&init)),
        holding(&GroupBy::ALL, Some(2), 1000, &[init.clone(), full.clone()]),
        holding(&[GroupBy::Netns], None, 1000, &[init, full]),
        trouble,
        empty,
        unread,
        natted(&[GroupBy::Dport, GroupBy::Rsrc, GroupBy::Rdport, GroupBy::Nat]),
        natted(&[GroupBy::Zone, GroupBy::Mark, GroupBy::Offload]),
    ]
}

#[test]
fn lines_of_tables() {
    let lines = lines(false);
    let text: String = all().iter().map(|holding| lines.holding(holding)).collect();
    assert!(!text.contains('\x1b'), "a name can write no escape sequence");
    insta::assert_snapshot!(lines.start(TIME, 0) + &text);
}

#[test]
fn namespaces_that_are_left_out_are_told() {
    assert!(lines(false).start(TIME, 1).contains("!1 network namespace is not looked at"));
    let holding = Holding { namespaces_left_out: 3, ..all().remove(0) };
    let object: serde_json::Value =
        serde_json::from_str(&table_json::holding(&holding, Some(&machine()))).unwrap();
    assert_eq!(object["namespaces_left_out"], 3);
}

#[test]
fn lines_of_tables_in_colour() {
    let lines = lines(true);
    let text: String = all().iter().skip(4).take(3).map(|holding| lines.holding(holding)).collect();
    insta::assert_snapshot!(text.replace('\x1b', "ESC"));
}

#[test]
fn json_of_tables() {
    let text: String = all().iter().map(|holding| table_json::holding(holding, Some(&machine()))).collect();
    for line in text.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        let count = |value: &serde_json::Value| value.as_u64().unwrap();
        if object["error"].is_string() {
            assert!(object["total"].is_null(), "what was not read is not 0: {line}");
            continue;
        }
        let groups: u64 =
            object["groups"].as_array().unwrap().iter().map(|group| count(&group["count"])).sum();
        let sum = groups + count(&object["more"]["entries"]) + count(&object["ungrouped"]);
        assert_eq!(sum, count(&object["total"]), "{line}");
    }
    insta::assert_snapshot!(text);
}

/// A list from a ticket: a prompt in it, and its end cut off.
#[test]
fn a_saved_list() {
    let mut holding = natted(&[GroupBy::Proto, GroupBy::Nat]);
    holding.spaces[0].table = Table { netns: 0, name: "list.txt".into(), count: None, max: None };
    let first = Some((2, "there is no protocol number where an entry has it".to_owned()));
    let from = "list.txt\x1b[2J".to_owned();
    holding.saved = Some(Saved { from: from.clone(), listed: 7, unread: 2, first, cut: Some(10) });
    let lines = TableLines::new(None, TimeZone::UTC, false);
    let text = lines.start_saved(&from) + &lines.holding(&holding);
    insta::assert_snapshot!(text + &table_json::holding(&holding, None));
}

#[test]
fn progress_tells_how_far_it_has_come() {
    let known = table(1, "init", 250_000, 262_144);
    assert_eq!(progress(&known, 8192), "init: 8192 of about 250000 entries");
    assert_eq!(progress(&Table { count: None, ..known }, 8192), "init: 8192 entries");
}

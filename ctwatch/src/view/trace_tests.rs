use std::net::IpAddr;
use std::time::Duration;

use ctwatch_ebpf::{AF_INET, AF_INET6, Event, Group};
use jiff::tz::TimeZone;

use super::trace_json;
use super::trace_lines::TraceLines;
use crate::model::entry::Nat;
use crate::model::trace::{Certainty, Detail, Flow, Invalid, Names, OfEntry, Record, Tcp};
use crate::model::{SourceInfo, SourceKind};

/// 2026-11-23T19:00:00.012345678Z
const TIME: i128 = 1_795_460_400_012_345_678;

fn flow(proto: u8, src: &str, dst: &str, detail: Detail) -> Flow {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let family = if src.is_ipv4() { AF_INET } else { AF_INET6 };
    Flow { family, proto, src, dst, detail, zone: 0 }
}

fn record(name: Group, event: Event, flow: Flow) -> Record {
    Record {
        wall_ns: TIME,
        name,
        event,
        netns: 4_026_531_840,
        flow,
        assured: false,
        replied: false,
        age: None,
        newcomer: None,
        entry: None,
        invalid: None,
        certainty: Certainty::Sure,
        cpu: Some(1),
        comm: None,
    }
}

/// One of each kind, with the name of its namespace.
fn records() -> Vec<(Record, &'static str)> {
    let udp = flow(17, "10.0.0.1", "10.0.0.2", Detail::Ports(3333, 6881));
    let tcp = flow(6, "2001:db8::1", "2001:db8::2", Detail::Ports(40000, 443));
    let ping = flow(1, "10.0.0.1", "10.0.0.9", Detail::Icmp { kind: 8, code: 0, id: 77 });
    let bare = flow(253, "10.0.0.1", "10.0.0.9", Detail::None);
    let answers = flow(17, "10.9.0.77", "10.0.0.1", Detail::Ports(53, 3333));
    let natted = OfEntry { reply: answers, nat: Nat::Dnat, mark: 0x4001 };
    let plain = OfEntry { reply: answers, nat: Nat::None, mark: 0 };
    vec![
        (Record { newcomer: Some(ping), ..record(Group::EarlyDrop, Event::DeleteEarlyDrop, udp) }, "init"),
        (
            Record {
                comm: Some("curl\x1b[2J".into()),
                flow: Flow { zone: 7, ..tcp },
                ..record(Group::Drop, Event::DropTableFull, tcp)
            },
            "blue",
        ),
        (record(Group::InsertFailed, Event::FailedChaintoolong, bare), "init"),
        (
            Record {
                age: Some(Duration::from_millis(121_500)),
                assured: true,
                replied: true,
                ..record(Group::Delete, Event::DeleteTimeout, tcp)
            },
            "init",
        ),
        (Record { entry: Some(natted), ..record(Group::ClashResolve, Event::ClashReplyOnly, udp) }, "init"),
        (Record { entry: Some(plain), ..record(Group::Insert, Event::Insert, ping) }, "4026532201"),
        (
            Record {
                invalid: Some(Invalid {
                    detail: Some("SEQ is over upper bound N\x1b[2J".into()),
                    known: Some(udp),
                    tcp: Some(Tcp { seq: 4_000_000_000, ack: 7, win: 512, flags: 0x12 }),
                }),
                ..record(Group::Invalid, Event::InvalidOutOfWindow, tcp)
            },
            "init",
        ),
        (
            Record {
                invalid: Some(Invalid::default()),
                ..record(Group::Invalid, Event::InvalidUnrelated, ping)
            },
            "init",
        ),
    ]
}

/// What ctnetlink tells of: an eviction that follows from statistics, and a removal that may have been one.
fn heard() -> [Record; 2] {
    let udp = flow(17, "10.0.0.1", "10.0.0.2", Detail::Ports(3333, 6881));
    let of = |name, event, certainty| Record { cpu: None, certainty, ..record(name, event, udp) };
    [
        of(Group::EarlyDrop, Event::DeleteEarlyDrop, Certainty::Inferred),
        of(Group::Delete, Event::DeleteOther, Certainty::Doubtful),
    ]
}

#[test]
fn what_is_inferred_is_marked() {
    let lines = TraceLines::new(TimeZone::UTC, false);
    let info = SourceInfo { kind: SourceKind::Netlink, why: None, unknown: [].into() };
    let mut text = lines.start(&info, Names::default(), 1000);
    for record in &heard() {
        text += &lines.record(record, "init");
    }
    text += &lines.lost(3, SourceKind::Netlink);
    insta::assert_snapshot!(text, @r#"
    tracing early_drop, insert_failed, drop by netlink; at most 1000 a second from each network namespace
    evictions are inferred from the kernel's statistics; times are those of hearing of it
    19:00:00.012 early_drop    udp 10.0.0.1:3333 > 10.0.0.2:6881  unreplied  inferred
    19:00:00.012 delete        udp 10.0.0.1:3333 > 10.0.0.2:6881  unknown  unreplied
    !3 events missed: no room for them, not announced, or evictions that could not be told from other deletes
    "#);
    let text: String = heard().iter().map(|record| trace_json::record(record, "init")).collect();
    insta::assert_snapshot!(text, @r#"
    {"time":"2026-11-23T19:00:00.012345Z","event":"early_drop","netns":4026531840,"netns_name":"init","family":"ipv4","proto":"udp","src":"10.0.0.1","sport":3333,"dst":"10.0.0.2","dport":6881,"reason":null,"age_s":null,"assured":false,"replied":false,"newcomer":null,"reply":null,"nat":null,"mark":null,"cpu":null,"comm":null,"inferred":true}
    {"time":"2026-11-23T19:00:00.012345Z","event":"delete","netns":4026531840,"netns_name":"init","family":"ipv4","proto":"udp","src":"10.0.0.1","sport":3333,"dst":"10.0.0.2","dport":6881,"reason":null,"cause":"unknown","age_s":null,"assured":false,"replied":false,"newcomer":null,"reply":null,"nat":null,"mark":null,"cpu":null,"comm":null}
    "#);
}

#[test]
fn lines_of_each_kind() {
    let lines = TraceLines::new(TimeZone::UTC, false);
    let info = SourceInfo { kind: SourceKind::Kprobe, why: Some("a reason".into()), unknown: [].into() };
    let mut text = lines.start(&info, Names::default(), 1000);
    for (record, name) in records() {
        text += &lines.record(&record, name);
    }
    text += &lines.suppressed(12);
    text += &lines.lost(3, SourceKind::Kprobe);
    insta::assert_snapshot!(text, @r#"
    tracing early_drop, insert_failed, drop by kprobe; at most 1000 a second from each CPU
    using kprobe, because no better source is available: a reason
    19:00:00.012 early_drop    udp 10.0.0.1:3333 > 10.0.0.2:6881  unreplied  for icmp 10.0.0.1 > 10.0.0.9 type 8 code 0 id 77
    19:00:00.012 drop          tcp [2001:db8::1]:40000 > [2001:db8::2]:443 zone 7  table_full  netns blue  by curl?[2J
    19:00:00.012 insert_failed 253 10.0.0.1 > 10.0.0.9  chaintoolong
    19:00:00.012 delete        tcp [2001:db8::1]:40000 > [2001:db8::2]:443  timeout  assured  after 121.5 s
    19:00:00.012 clash_resolve udp 10.0.0.1:3333 > 10.0.0.2:6881  reply_only  dnat, answers 10.9.0.77:53 > 10.0.0.1:3333  mark 0x4001
    19:00:00.012 insert        icmp 10.0.0.1 > 10.0.0.9 type 8 code 0 id 77  netns 4026532201
    19:00:00.012 invalid       tcp [2001:db8::1]:40000 > [2001:db8::2]:443  out_of_window  SYN,ACK seq 4000000000 ack 7 win 512  "SEQ is over upper bound N?[2J"  of udp 10.0.0.1:3333 > 10.0.0.2:6881
    19:00:00.012 invalid       icmp 10.0.0.1 > 10.0.0.9 type 8 code 0 id 77  unrelated
    (12 more events not shown: --max-events)
    !3 events missed: the kernel skipped programs
    "#);
}

#[test]
fn colour_marks_losses_and_nothing_else() {
    let lines = TraceLines::new(TimeZone::UTC, true);
    for (record, name) in records() {
        let loss =
            matches!(record.name, Group::Drop | Group::EarlyDrop | Group::InsertFailed | Group::Invalid);
        assert_eq!(lines.record(&record, name).contains("\x1b["), loss, "{:?}", record.name);
    }
}

#[test]
fn json_of_each_kind() {
    let mut text: String = records().iter().map(|(record, name)| trace_json::record(record, name)).collect();
    text += &trace_json::suppressed(12);
    text += &trace_json::lost(3);
    insta::assert_snapshot!(text, @r#"
    {"time":"2026-11-23T19:00:00.012345Z","event":"early_drop","netns":4026531840,"netns_name":"init","family":"ipv4","proto":"udp","src":"10.0.0.1","sport":3333,"dst":"10.0.0.2","dport":6881,"reason":null,"age_s":null,"assured":false,"replied":false,"newcomer":{"family":"ipv4","proto":"icmp","src":"10.0.0.1","dst":"10.0.0.9","type":8,"code":0,"id":77},"reply":null,"nat":null,"mark":null,"cpu":1,"comm":null}
    {"time":"2026-11-23T19:00:00.012345Z","event":"drop","netns":4026531840,"netns_name":"blue","family":"ipv6","proto":"tcp","src":"2001:db8::1","sport":40000,"dst":"2001:db8::2","dport":443,"zone":7,"reason":"table_full","age_s":null,"assured":false,"replied":false,"newcomer":null,"reply":null,"nat":null,"mark":null,"cpu":1,"comm":"curl\u001b[2J"}
    {"time":"2026-11-23T19:00:00.012345Z","event":"insert_failed","netns":4026531840,"netns_name":"init","family":"ipv4","proto":"253","src":"10.0.0.1","sport":null,"dst":"10.0.0.9","dport":null,"reason":"chaintoolong","age_s":null,"assured":false,"replied":false,"newcomer":null,"reply":null,"nat":null,"mark":null,"cpu":1,"comm":null}
    {"time":"2026-11-23T19:00:00.012345Z","event":"delete","netns":4026531840,"netns_name":"init","family":"ipv6","proto":"tcp","src":"2001:db8::1","sport":40000,"dst":"2001:db8::2","dport":443,"reason":null,"cause":"timeout","age_s":121.5,"assured":true,"replied":true,"newcomer":null,"reply":null,"nat":null,"mark":null,"cpu":1,"comm":null}
    {"time":"2026-11-23T19:00:00.012345Z","event":"clash_resolve","netns":4026531840,"netns_name":"init","family":"ipv4","proto":"udp","src":"10.0.0.1","sport":3333,"dst":"10.0.0.2","dport":6881,"reason":"reply_only","age_s":null,"assured":false,"replied":false,"newcomer":null,"reply":{"family":"ipv4","proto":"udp","src":"10.9.0.77","sport":53,"dst":"10.0.0.1","dport":3333},"nat":"dnat","mark":16385,"cpu":1,"comm":null}
    {"time":"2026-11-23T19:00:00.012345Z","event":"insert","netns":4026531840,"netns_name":"4026532201","family":"ipv4","proto":"icmp","src":"10.0.0.1","dst":"10.0.0.9","type":8,"code":0,"id":77,"reason":null,"age_s":null,"assured":false,"replied":false,"newcomer":null,"reply":{"family":"ipv4","proto":"udp","src":"10.9.0.77","sport":53,"dst":"10.0.0.1","dport":3333},"nat":"none","mark":0,"cpu":1,"comm":null}
    {"time":"2026-11-23T19:00:00.012345Z","event":"invalid","netns":4026531840,"netns_name":"init","family":"ipv6","proto":"tcp","src":"2001:db8::1","sport":40000,"dst":"2001:db8::2","dport":443,"reason":"out_of_window","age_s":null,"assured":false,"replied":false,"newcomer":null,"reply":null,"nat":null,"mark":null,"detail":"SEQ is over upper bound N\u001b[2J","known_flow":{"family":"ipv4","proto":"udp","src":"10.0.0.1","sport":3333,"dst":"10.0.0.2","dport":6881},"tcp":{"seq":4000000000,"ack":7,"win":512,"flags":18},"cpu":1,"comm":null}
    {"time":"2026-11-23T19:00:00.012345Z","event":"invalid","netns":4026531840,"netns_name":"init","family":"ipv4","proto":"icmp","src":"10.0.0.1","dst":"10.0.0.9","type":8,"code":0,"id":77,"reason":"unrelated","age_s":null,"assured":false,"replied":false,"newcomer":null,"reply":null,"nat":null,"mark":null,"detail":null,"known_flow":null,"tcp":null,"cpu":1,"comm":null}
    {"event":"suppressed","count":12}
    {"event":"lost","count":3}
    "#);
}

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::series::Ranked;

const BUILD: Build = Build { version: "0.1.0", revision: "0123abc" };

fn labels(netns: &str, family: &'static str, proto: &str) -> Labels {
    Labels { netns: Some(netns.into()), family, proto: proto.into() }
}

/// A kprobe source in two namespaces, one with a hostile name; it cannot tell dying entries from others.
fn exposition() -> Exposition {
    let all: BTreeMap<Event, u64> =
        Event::ALL.into_iter().filter(|event| *event != Event::FailedDying).zip(100..).collect();
    let occupation = |netns: &str, name: &str, count, max| Occupation {
        netns: Some(netns.into()),
        name: name.into(),
        count,
        max,
    };
    Exposition {
        flows: BTreeMap::from([
            (labels("init", "ipv4", "udp"), all),
            (labels("4026532201", "ipv6", "253"), BTreeMap::from([(Event::Insert, u64::MAX)])),
        ]),
        tables: vec![
            occupation("init", "init", Some(251_003), Some(262_144)),
            occupation("4026532201", "a\"b\\c\nd\x1b[31m} 1 é", None, Some(262_144)),
        ],
        top: vec![Ranked {
            labels: labels("init", "ipv4", "udp"),
            dport: "6881".into(),
            insert: 8001,
            early_drop: 400,
            drop: 95,
        }],
        lost: 3,
        cpu_ns: 1_500_000_000,
        kind: "kprobe",
        why: Some("no trampolines:\nthe kernel has no BTF".into()),
        watching: true,
        left_out: 17,
        top_left_out: 2,
        namespaces_left_out: 3,
    }
}

/// What the event table has is exported, and under a name that was chosen for it.
#[test]
fn each_event_has_a_counter_with_a_name_of_its_own() {
    let counters = counters();
    for event in Event::ALL {
        assert!(counters.iter().any(|counter| counter.events.contains(&event)), "{event:?}");
    }
    for counter in &counters {
        let same = counters.iter().filter(|other| other.name == counter.name).count();
        assert_eq!((same, counter.help == UNNAMED), (1, false), "{}", counter.name);
        assert_eq!(counter.label.is_some(), counter.events.len() > 1, "{}", counter.name);
    }
}

#[test]
fn openmetrics() {
    insta::assert_snapshot!(render(&Arc::new(exposition()), BUILD, Format::OpenMetrics));
}

#[test]
fn prometheus_text() {
    insta::assert_snapshot!(render(&Arc::new(exposition()), BUILD, Format::Prometheus));
}

#[test]
fn what_nobody_can_tell_has_no_family() {
    let empty = Exposition { flows: BTreeMap::new(), tables: vec![], top: vec![], ..exposition() };
    let text = render(&Arc::new(empty), BUILD, Format::Prometheus);
    for name in ["ctwatch_inserts", "ctwatch_drops", "ctwatch_table", "ctwatch_netns", "ctwatch_top_inserts"]
    {
        assert!(!text.contains(name), "{name}: {text}");
    }
}

#[test]
fn the_format_is_what_the_client_likes_best() {
    use Format::{OpenMetrics, Prometheus};
    for (accept, format) in [
        ("", Prometheus),
        ("*/*", Prometheus),
        ("text/html", Prometheus),
        ("application/openmetrics-text", OpenMetrics),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", OpenMetrics),
        ("Application/OpenMetrics-Text;Version=\"1.0.0\"", OpenMetrics),
        ("application/openmetrics-text;version=2.0.0", Prometheus),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.5", Prometheus),
        ("application/openmetrics-text;q=0", Prometheus),
        ("application/openmetrics-text;q=x", Prometheus),
        // Prometheus 2.42 and 3.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OpenMetrics,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3",
            OpenMetrics,
        ),
    ] {
        assert_eq!(Format::negotiate(accept), format, "{accept}");
    }
}

proptest! {
    #[test]
    fn any_accept_is_borne(accept in ".*") {
        Format::negotiate(&accept);
    }

    /// A name is one label value on one line, whatever is in it.
    #[test]
    fn no_name_breaks_out_of_its_label(name in ".*") {
        let mut exposition = exposition();
        exposition.tables[1].name = name;
        let lines = |text: &str| text.lines().count();
        for format in Format::ALL {
            let text = render(&Arc::new(exposition.clone()), BUILD, format);
            prop_assert_eq!(lines(&text), lines(&render(&Arc::new(self::exposition()), BUILD, format)));
            prop_assert!(!text.contains(|c: char| c.is_control() && c != '\n'));
        }
    }
}

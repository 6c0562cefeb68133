use std::net::IpAddr;

use proptest::prelude::*;

use ctwatch_ebpf::{AF_INET, AF_INET6, Group};

use super::*;

/// As the programs write it.
fn bytes(traced: &Traced) -> Vec<u8> {
    let mut out = traced.ktime_ns.to_ne_bytes().to_vec();
    out.extend(traced.start_ns.to_ne_bytes());
    for word in [traced.netns, traced.event, traced.status, traced.cpu] {
        out.extend(word.to_ne_bytes());
    }
    for tuple in [&traced.tuple, &traced.newcomer] {
        for word in tuple.src.iter().chain(&tuple.dst) {
            out.extend(word.to_ne_bytes());
        }
        out.extend(tuple.src_part.iter().chain(&tuple.dst_part));
        out.extend(tuple.zone.to_ne_bytes());
        out.extend([tuple.family, tuple.proto]);
    }
    out.extend(traced.comm);
    out
}

fn tuple(src: &str, dst: &str, proto: u8, src_part: [u8; 2], dst_part: [u8; 2]) -> Tuple {
    let at = |text: &str| match text.parse().unwrap() {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            words(octets)
        }
        IpAddr::V6(address) => words(address.octets()),
    };
    let family = if src.contains(':') { AF_INET6 } else { AF_INET };
    Tuple { src: at(src), dst: at(dst), src_part, dst_part, zone: 0, family, proto }
}

fn everything() -> Names {
    let mut names = Names::default();
    for name in Group::ALL {
        names.insert(name);
    }
    names
}

#[test]
fn the_layout_is_the_programs_own() {
    assert_eq!(bytes(&Traced::default()).len(), size_of::<Traced>());
}

#[test]
fn an_eviction_names_victim_newcomer_and_process() {
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"ngin");
    let traced = Traced {
        ktime_ns: 5,
        start_ns: 98,
        netns: 4_026_531_840,
        event: Event::DeleteEarlyDrop as u32,
        status: SEEN_REPLY,
        cpu: 1,
        tuple: tuple("10.0.0.1", "10.0.0.2", 17, 3333_u16.to_be_bytes(), 6881_u16.to_be_bytes()),
        newcomer: tuple("fd00::1", "fd00::2", 58, [0x12, 0x34], [128, 0]),
        comm,
    };
    let record = decode(&bytes(&traced), Names::default(), 100).unwrap();
    assert_eq!(record.wall_ns, 105);
    assert_eq!(record.age, Some(Duration::from_nanos(7)));
    assert_eq!((record.name, record.reason(), record.cause()), (Group::EarlyDrop, None, None));
    assert_eq!((record.assured, record.replied), (false, true));
    assert_eq!(record.flow.src.to_string(), "10.0.0.1");
    assert_eq!(record.flow.detail, Detail::Ports(3333, 6881));
    let newcomer = record.newcomer.unwrap();
    assert_eq!(newcomer.dst.to_string(), "fd00::2");
    assert_eq!(newcomer.detail, Detail::Icmp { kind: 128, code: 0, id: 0x1234 });
    assert_eq!(record.comm.as_deref(), Some("ngin"));
}

#[test]
fn an_age_is_known_or_it_is_not() {
    assert_eq!(age(0, 5), None);
    assert_eq!(age(6, 5), None, "the clock was set back");
    assert_eq!(age(5, 5), Some(Duration::ZERO));
}

#[test]
fn an_eviction_is_a_delete_where_only_deletes_are_asked_for() {
    let traced = Traced {
        event: Event::DeleteEarlyDrop as u32,
        tuple: tuple("10.0.0.1", "10.0.0.2", 253, [0; 2], [0; 2]),
        ..Traced::default()
    };
    let mut names = Names::default();
    names.remove(Group::EarlyDrop);
    names.insert(Group::Delete);
    let record = decode(&bytes(&traced), names, 0).unwrap();
    assert_eq!((record.name, record.cause()), (Group::Delete, Some("early_drop")));
    assert_eq!(record.flow.detail, Detail::None);
    assert_eq!(record.newcomer, None);
    assert_eq!(record.comm, None);
}

#[test]
fn every_event_that_is_asked_for_has_one_name_and_its_reason() {
    let names = everything();
    assert_eq!(names.events(), (1 << Event::COUNT) - 1);
    for event in Event::ALL {
        assert!(names.name_of(event).events().contains(&event), "{event:?}");
    }
    for name in Group::ALL {
        let mut one = Names::default();
        for other in Group::ALL {
            one.remove(other);
        }
        assert!(one.is_empty());
        one.insert(name);
        for event in name.events() {
            assert_eq!(one.name_of(*event), name, "{event:?}");
        }
    }
    assert!(!Names::default().contains(Group::Insert) && !Names::default().contains(Group::Delete));
}

proptest! {
    #[test]
    fn any_bytes_are_a_record_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if decode(&bytes, Names::default(), 0).is_some() {
            prop_assert_eq!(bytes.len(), size_of::<Traced>());
        }
    }

    #[test]
    fn what_was_written_is_read(
        (ktime_ns, start_ns, netns, status, cpu) in any::<(u64, u64, u32, u32, u32)>(),
        event in 0..Event::COUNT,
        (src, dst) in any::<([u64; 2], [u64; 2])>(),
        (src_part, dst_part) in any::<([u8; 2], [u8; 2])>(),
        (zone, proto) in any::<(u16, u8)>(),
        family in prop::sample::select(vec![AF_INET, AF_INET6]),
        comm: [u8; 16],
    ) {
        let event = Event::ALL[event];
        let tuple = Tuple { src, dst, src_part, dst_part, zone, family, proto };
        let traced = Traced { ktime_ns, start_ns, netns, event: event as u32, status, cpu, tuple, newcomer: tuple, comm };
        prop_assert_eq!(from_bytes(&bytes(&traced)), Some(traced));
        let record = decode(&bytes(&traced), everything(), 7).unwrap();
        prop_assert_eq!(record.wall_ns, i128::from(ktime_ns) + 7);
        prop_assert_eq!(record.newcomer, Some(record.flow));
        prop_assert_eq!((record.event, record.netns, record.cpu), (event, netns, cpu));
        prop_assert_eq!(record.flow.zone, zone);
        if let Detail::Ports(sport, dport) = record.flow.detail {
            prop_assert_eq!((sport.to_be_bytes(), dport.to_be_bytes()), (src_part, dst_part));
        }
    }
}

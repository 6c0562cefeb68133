use std::net::IpAddr;

use proptest::prelude::*;

use ctwatch_ebpf::invalid::TracedInvalid;
use ctwatch_ebpf::{AF_INET, AF_INET6, Group};

use super::*;

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
    assert_eq!(encode(&Traced::default()).len(), size_of::<Traced>());
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
        reply: tuple("10.9.0.77", "10.0.0.1", 17, 53_u16.to_be_bytes(), 3333_u16.to_be_bytes()),
        mark: 0x4001,
        comm,
    };
    let record = decode(&encode(&traced), Names::default(), 100).unwrap();
    assert_eq!(record.wall_ns, 105);
    assert_eq!(record.age, Some(Duration::from_nanos(7)));
    assert_eq!((record.name, record.reason(), record.cause()), (Group::EarlyDrop, None, None));
    assert_eq!((record.assured, record.replied), (false, true));
    assert_eq!(record.flow.src.to_string(), "10.0.0.1");
    assert_eq!(record.flow.detail, Detail::Ports(3333, 6881));
    let newcomer = record.newcomer.unwrap();
    assert_eq!(newcomer.dst.to_string(), "fd00::2");
    assert_eq!(newcomer.detail, Detail::Icmp { kind: 128, code: 0, id: 0x1234 });
    let entry = record.entry.unwrap();
    assert_eq!(
        (entry.reply.src.to_string(), entry.reply.detail),
        ("10.9.0.77".into(), Detail::Ports(53, 3333))
    );
    assert_eq!((entry.nat, entry.mark), (Nat::Dnat, 0x4001));
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
    let record = decode(&encode(&traced), names, 0).unwrap();
    assert_eq!((record.name, record.cause()), (Group::Delete, Some("early_drop")));
    assert_eq!(record.flow.detail, Detail::None);
    assert_eq!((record.newcomer, record.entry), (None, None));
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

/// What follows a [`Traced`] for an invalid packet.
fn invalid_bytes(traced: &Traced, said: &str, shown_by: u64, tcp: Option<[u8; 16]>) -> Vec<u8> {
    let mut out = encode(traced);
    let mut words = [0; WORDS];
    words[..said.len()].copy_from_slice(said.as_bytes());
    out.extend(words);
    out.extend(shown_by.to_ne_bytes());
    out.extend(u64::from(tcp.is_some()).to_ne_bytes());
    out.extend(tcp.unwrap_or_default());
    out
}

#[test]
fn an_invalid_packet_has_the_kernels_words_its_flow_and_its_numbers() {
    let traced = Traced {
        event: Event::InvalidOther as u32,
        tuple: tuple("10.0.0.2", "10.0.0.1", 6, 80_u16.to_be_bytes(), 4000_u16.to_be_bytes()),
        newcomer: tuple("10.0.0.1", "10.0.0.2", 6, 4000_u16.to_be_bytes(), 80_u16.to_be_bytes()),
        reply: tuple("10.0.0.2", "10.0.0.1", 6, 80_u16.to_be_bytes(), 4000_u16.to_be_bytes()),
        ..Traced::default()
    };
    let header = [0, 80, 15, 160, 0, 0, 1, 0, 0, 0, 2, 0, 80, 16, 32, 0];
    let said = "SEQ is over upper bound %u (over the window of the receiver)";
    let raw = invalid_bytes(&traced, said, 9, Some(header));
    assert_eq!(raw.len(), size_of::<TracedInvalid>());
    let record = decode(&raw, everything(), 0).unwrap();
    assert_eq!((record.name, record.reason()), (Group::Invalid, Some("out_of_window")));
    assert_eq!(record.newcomer, None);
    assert_eq!(record.entry.map(|entry| entry.nat), Some(Nat::None), "of the flow, not of the packet");
    let invalid = record.invalid.unwrap();
    assert_eq!(
        invalid.detail.as_deref(),
        Some("SEQ is over upper bound N (over the window of the receiver)")
    );
    assert_eq!(invalid.known.unwrap().src.to_string(), "10.0.0.1");
    assert_eq!(invalid.tcp, Some(Tcp { seq: 256, ack: 512, win: 8192, flags: 16 }));

    let accepted = invalid_bytes(&traced, "challenge-ack ignored", 9, Some(header));
    assert_eq!(decode(&accepted, everything(), 0), None);
    let plain = Traced { newcomer: Tuple::default(), reply: Tuple::default(), ..traced };
    let unsaid = decode(&invalid_bytes(&plain, "", 1, None), everything(), 0).unwrap();
    assert_eq!((unsaid.reason(), unsaid.invalid), (Some("unrelated"), Some(Invalid::default())));
}

proptest! {
    #[test]
    fn any_bytes_are_a_record_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if decode(&bytes, Names::default(), 0).is_some() {
            prop_assert!([size_of::<Traced>(), size_of::<TracedInvalid>()].contains(&bytes.len()));
        }
    }

    #[test]
    fn what_was_written_is_read(
        (ktime_ns, start_ns, netns, status, cpu, mark) in any::<(u64, u64, u32, u32, u32, u32)>(),
        event in 0..Event::COUNT,
        (src, dst) in any::<([u64; 2], [u64; 2])>(),
        (src_part, dst_part) in any::<([u8; 2], [u8; 2])>(),
        (zone, proto) in any::<(u16, u8)>(),
        family in prop::sample::select(vec![AF_INET, AF_INET6]),
        comm: [u8; 16],
    ) {
        let event = Event::ALL[event];
        let tuple = Tuple { src, dst, src_part, dst_part, zone, family, proto };
        let traced = Traced {
            ktime_ns, start_ns, netns, event: event as u32, status, cpu, tuple, newcomer: tuple, reply: tuple, mark: mark.into(), comm,
        };
        prop_assert_eq!(Reader(&encode(&traced)).traced(), Some(traced));
        let record = decode(&encode(&traced), everything(), 7).unwrap();
        prop_assert_eq!(record.wall_ns, i128::from(ktime_ns) + 7);
        prop_assert_eq!(record.newcomer, Some(record.flow));
        prop_assert_eq!(record.entry.map(|entry| (entry.reply, entry.mark)), Some((record.flow, mark)));
        prop_assert_eq!((record.event, record.netns, record.cpu), (event, netns, Some(cpu).filter(|cpu| *cpu != NO_CPU)));
        prop_assert_eq!(record.flow.zone, zone);
        if let Detail::Ports(sport, dport) = record.flow.detail {
            prop_assert_eq!((sport.to_be_bytes(), dport.to_be_bytes()), (src_part, dst_part));
        }
    }
}

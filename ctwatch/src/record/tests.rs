use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ctwatch_ebpf::{AF_INET, AF_INET6, Counters, Event, FlowType, Group};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::ranking::{By, Losses, Top};
use crate::model::trace::{Detail, Flow as Ends, Invalid, Record, Tcp};
use crate::model::{Cost, Report, Sample, SourceKind, Table, Tracker};

pub(super) fn session() -> Session {
    Session {
        id: 7,
        host: "web-7".into(),
        kernel: "6.12.0".into(),
        version: "0.1.0".into(),
        info: SourceInfo {
            kind: SourceKind::Kprobe,
            why: Some("no BTF".into()),
            unknown: [(Event::DropNoMemory, "no such symbol".to_owned())].into(),
        },
    }
}

fn losses(at: u64) -> Losses {
    let flow = Ends {
        family: AF_INET,
        proto: 17,
        src: [10, 0, 0, 1].into(),
        dst: [10, 0, 0, 2].into(),
        detail: Detail::Ports(u16::try_from(at % 60_000).unwrap(), 53),
        zone: 1,
    };
    let record = Record {
        wall_ns: i128::from(at),
        name: Group::EarlyDrop,
        event: Event::DeleteEarlyDrop,
        netns: 7,
        flow,
        assured: false,
        replied: true,
        age: Some(Duration::from_millis(at)),
        newcomer: Some(Ends { detail: Detail::Icmp { kind: 8, code: 0, id: 3 }, ..flow }),
        entry: None,
        invalid: Some(Invalid {
            detail: Some("SEQ is over upper bound N".into()),
            known: Some(flow),
            tcp: Some(Tcp { seq: 1, ack: 2, win: 3, flags: 16 }),
        }),
        certainty: crate::model::trace::Certainty::default(),
        cpu: Some(1),
        comm: Some("dig".into()),
    };
    Losses { events: vec![record], more: at }
}

/// Reports of flow types whose counts grow by these steps.
fn reports(steps: &[Vec<u64>]) -> Vec<Report> {
    let mut tracker = Tracker::new(1_000);
    let mut rows: BTreeMap<FlowType, Counters> = BTreeMap::new();
    let mut reports = Vec::new();
    let mut mono_ns = 1_000;
    for (at, step) in (1u64..).zip(steps) {
        mono_ns += 1_000_123_456 + at;
        for (index, count) in step.iter().enumerate() {
            let family = if index % 2 == 0 { AF_INET } else { AF_INET6 };
            let key = FlowType {
                netns: 7 + u32::try_from(index / 8).unwrap(),
                family,
                proto: 6 + u8::try_from(index).unwrap(),
            };
            let event = Event::ALL[(index * 5 + usize::try_from(at % 3).unwrap()) % Event::COUNT];
            let row = rows.entry(key).or_default();
            row.0[event as usize] += *count;
        }
        reports.push(tracker.advance(Sample {
            wall_ns: 1_700_000_000_000_000_000 + i128::from(mono_ns) + i128::from(at % 5) * 1000,
            mono_ns,
            rows: rows.clone(),
            tables: vec![Table { netns: 7, name: "init".into(), count: Some(100 + at), max: Some(1000) }],
            namespaces_left_out: at / 10,
            lost: at / 3,
            cost: Some(Cost { run_ns: mono_ns / 1000, runs: at * 17 }),
            own_ns: Some(mono_ns / 500),
            top: Some(vec![Top {
                by: By::Dport,
                netns: 7,
                family: AF_INET,
                proto: 17,
                key: "53".into(),
                insert: at * 10,
                early_drop: 0,
                drop: at / 2,
                invalid: at / 3,
            }]),
            losses: (at % 4 == 0).then(|| losses(at)),
        }));
    }
    reports
}

const SECOND: u64 = 1_000_000_000;

fn record(limits: Limits, reports: &[Report]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording");
    let mut writer = Writer::open(&path, limits).unwrap();
    for (at, report) in (1u64..).zip(reports) {
        writer.append(&session(), report, false, at * SECOND).unwrap();
    }
    (dir, path)
}

fn read(path: &std::path::Path) -> Vec<Report> {
    let mut reader = Reader::open(path).unwrap();
    let mut reports = Vec::new();
    while let Some(step) = reader.next_step().unwrap() {
        assert_eq!(step.session, session());
        reports.push(step.report);
    }
    reports
}

fn some_steps(count: usize) -> Vec<Vec<u64>> {
    (0..count as u64)
        .map(|at| (0..20).map(|row| (at * at * 31 + row * 7) % (row * 500 + 3)).collect())
        .collect()
}

#[test]
fn a_size_is_never_exceeded_and_the_newest_reports_are_kept() {
    const MOST: u64 = 320 << 10;
    let written = reports(&some_steps(6000));
    let limits = Limits { max_size: Some(MOST), keep: None };
    let (_dir, path) = record(limits, &written);
    assert!(std::fs::metadata(&path).unwrap().len() <= MOST);
    let kept = read(&path);
    assert!(kept.len() < written.len(), "the ring was never full");
    assert!(kept.len() > 1000, "{} kept", kept.len());
    assert_eq!(kept, written[written.len() - kept.len()..]);
}

#[test]
fn a_time_is_never_exceeded() {
    let written = reports(&some_steps(400));
    let limits = Limits { keep: Some(Duration::from_secs(100)), max_size: None };
    let (_dir, path) = record(limits, &written);
    let kept = read(&path);
    assert!((90..=101).contains(&kept.len()), "{} kept", kept.len());
    assert_eq!(kept, written[written.len() - kept.len()..]);
}

/// Years on, and back again: a wrong clock that is set right.
#[test]
fn a_clock_that_jumps_gives_up_nothing() {
    const YEARS: i128 = 10 * 365 * 86_400 * 1_000_000_000;
    let mut written = reports(&some_steps(90));
    for report in &mut written[30..60] {
        report.wall_ns += YEARS;
    }
    for report in &mut written[60..] {
        report.wall_ns -= YEARS;
    }
    let limits = Limits { keep: Some(Duration::from_secs(100)), max_size: None };
    let (_dir, path) = record(limits, &written);
    assert_eq!(read(&path), written);
}

/// The bytes that a kill at any moment of the last write leaves: some of what is new, then what was there before.
fn torn(before: &[u8], after: &[u8], cut: prop::sample::Index) -> Vec<u8> {
    let differs = |at: &usize| before.get(*at) != after.get(*at);
    let first = (0..after.len()).find(differs).unwrap_or(0);
    let last = (0..after.len()).rfind(differs).unwrap_or(0);
    let cut = first + cut.index(last - first + 1);
    let rest = before.get(cut..).unwrap_or_default();
    [&after[..cut], rest].concat()
}

#[test]
fn a_kill_at_any_byte_of_any_write_leaves_all_whole_reports() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    // Four slots, so that most kills meet one that is used again.
    let limits = Limits { max_size: Some(65 << 10), keep: None };
    let written = reports(&some_steps(1200));
    let (dir, path) = record(limits, &[]);
    let mut writer = Writer::open(&path, limits).unwrap();
    let mut runner = TestRunner::deterministic();
    for (at, report) in (1u64..).zip(&written) {
        let kill = at % 12 == 0;
        let before = if kill { std::fs::read(&path).unwrap() } else { Vec::new() };
        writer.append(&session(), report, false, at * SECOND).unwrap();
        if !kill {
            continue;
        }
        let cut = any::<prop::sample::Index>().new_tree(&mut runner).unwrap().current();
        let left = dir.path().join("left");
        std::fs::write(&left, torn(&before, &std::fs::read(&path).unwrap(), cut)).unwrap();
        let whole = usize::try_from(at).unwrap() - 1;
        let kept = read(&left);
        assert!(kept == written[whole - kept.len()..whole], "report {at}, cut at {cut:?}");
        // The next run goes on behind it.
        let mut next = Writer::open(&left, limits).unwrap();
        next.append(&session(), report, false, at * SECOND).unwrap();
        assert_eq!(read(&left).last(), Some(report));
    }
    assert!(read(&path).len() < written.len(), "the ring was never full");
}

#[test]
fn there_is_one_writer_and_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording");
    let first = Writer::open(&path, Limits::default()).unwrap();
    let second = Writer::open(&path, Limits::default()).err().unwrap();
    assert!(format!("{second:#}").contains("another ctwatch records"), "{second:#}");
    drop(first);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(Writer::open(&link, Limits::default()).is_err());
    let other = dir.path().join("other");
    std::fs::write(&other, "a file of somebody else, which must stay as it is").unwrap();
    let refused = Writer::open(&other, Limits::default()).err().unwrap();
    assert!(format!("{refused:#}").contains("no recording"), "{refused:#}");
    assert!(std::fs::read_to_string(&other).unwrap().starts_with("a file of"));
}

#[test]
fn a_second_run_goes_on_behind_the_first() {
    let written = reports(&some_steps(40));
    let (_dir, path) = record(Limits::default(), &written[..20]);
    let mut writer = Writer::open(&path, Limits::default()).unwrap();
    for report in &written[20..] {
        writer.append(&session(), report, false, SECOND).unwrap();
    }
    drop(writer);
    assert_eq!(read(&path), written);
}

#[test]
fn a_newer_format_is_refused_with_words() {
    let (_dir, path) = record(Limits::default(), &[]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 9;
    std::fs::write(&path, bytes).unwrap();
    let error = Reader::open(&path).err().unwrap();
    assert!(format!("{error:#}").contains("format 9"), "{error:#}");
}

/// The flood of the page's check, recorded by a ctwatch that wrote version 1.
fn of_version_1() -> Vec<u8> {
    std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../xtask/src/page/flood.ctw")).unwrap()
}

#[test]
fn version_1_is_read() {
    let mut reader = Reader::of_bytes(of_version_1()).unwrap();
    let mut sums = [0; 3];
    let mut last = None;
    while let Some(step) = reader.next_step().unwrap() {
        let of = |event| step.report.flows.iter().map(|flow| flow.counts.get(event)).sum::<u64>();
        // As that ctwatch printed it.
        // What ends a run repeats its last report.
        let new = if step.closing { [0; 3] } else { [1, of(Event::Insert), of(Event::DropTableFull)] };
        sums = std::array::from_fn(|at| sums[at] + new[at]);
        last = Some(step.report);
    }
    assert_eq!(sums, [11, 3706, 4976]);
    let total = |flow: &crate::model::Flow| flow.total.get(Event::Insert);
    assert_eq!(last.unwrap().flows.iter().map(total).sum::<u64>(), 3706);
}

#[test]
fn a_file_of_version_1_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording");
    std::fs::write(&path, of_version_1()).unwrap();
    let written = reports(&some_steps(20));
    let mut writer = Writer::open(&path, Limits::default()).unwrap();
    for report in &written {
        writer.append(&session(), report, false, SECOND).unwrap();
    }
    drop(writer);
    // An older ctwatch refuses it rather than to read a part of it.
    assert_eq!(std::fs::read(&path).unwrap()[8], 2);
    let mut reader = Reader::open(&path).unwrap();
    let mut kept = Vec::new();
    while let Some(step) = reader.next_step().unwrap() {
        kept.push(step.report);
    }
    // With the one that closes the old run.
    assert_eq!(kept.len(), 12 + 20);
    assert_eq!(kept[12..], written);
}

#[test]
fn losses_beyond_the_budget_are_counted() {
    let mut budget = Budget::default();
    let mut kept = 0;
    let mut more = 0;
    for _ in 0..100 {
        let mut flood = losses(0);
        let one = flood.events[0].clone();
        flood.events = vec![one; 500];
        budget.spend(&mut flood, Duration::from_secs(1));
        kept += flood.events.len();
        more += flood.more;
    }
    assert_eq!(kept as u64 + more, 100 * 500);
    assert!((2000..=2600).contains(&kept), "{kept}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(steps in prop::collection::vec(prop::collection::vec(0u64..5000, 0..20), 1..30)) {
        let written = reports(&steps);
        let (_dir, path) = record(Limits::default(), &written);
        prop_assert_eq!(read(&path), written);
    }

    #[test]
    fn a_cut_anywhere_leaves_the_whole_reports_before_it(cut: prop::sample::Index) {
        let written = reports(&some_steps(40));
        let (_dir, path) = record(Limits::default(), &written);
        let bytes = std::fs::read(&path).unwrap();
        let length = cut.index(bytes.len());
        std::fs::write(&path, &bytes[..length]).unwrap();
        if length < HEADER {
            prop_assert!(Reader::open(&path).is_err());
        } else {
            let kept = read(&path);
            prop_assert_eq!(&kept[..], &written[..kept.len()]);
        }
    }

    #[test]
    fn a_flipped_byte_never_panics_and_makes_no_report_up(at: prop::sample::Index, flip in 1u8..) {
        let written = reports(&some_steps(40));
        let (_dir, path) = record(Limits::default(), &written);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(mut reader) = Reader::open(&path) {
            let mut kept = Vec::new();
            while let Some(step) = reader.next_step().unwrap() {
                kept.push(step.report);
            }
            prop_assert_eq!(&kept[..], &written[..kept.len()]);
        }
    }

    /// A stranger gets the checksums right.
    #[test]
    fn hostile_frames_never_panic(plain in prop::collection::vec(any::<u8>(), 0..400), words in prop::collection::vec(any::<u8>(), 0..40), kind in 0..4) {
        let written = reports(&some_steps(3));
        let whole = postcard::to_stdvec(&wire::Key::new(&session(), &written[2], 2, false)).unwrap();
        let bytes = sealed([
            Piece::Key(&whole),
            match kind {
                0 => Piece::Key(&plain),
                1 => Piece::Difference(&plain),
                2 => Piece::Numbers(&plain),
                _ => Piece::Words(&words, &plain),
            },
        ])
        .unwrap();
        let mut reader = Reader::of_bytes(bytes).unwrap();
        let first = reader.next_step().unwrap();
        prop_assert_eq!(first.map(|step| step.report), Some(written[2].clone()));
        while reader.next_step().unwrap().is_some() {}
    }
}

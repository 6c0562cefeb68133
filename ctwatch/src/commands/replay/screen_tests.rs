use ctwatch_ebpf::{AF_INET, Counters, Event, FlowType};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tokio::time::sleep;

use super::*;
use crate::model::{Sample, SourceInfo, SourceKind, Tracker};
use crate::record::{Limits, Reader, Writer};

const SECOND: i128 = 1_000_000_000;
/// 2026-11-23T19:00:00Z.
const START: i128 = 1_795_460_400 * SECOND;
const REPORTS: u32 = 3000;
/// The reports with a refused flow.
const LOSSES: [u32; 2] = [700, 2500];

/// A report a second; the inserts of each are its number.
fn film(from: Option<i128>, to: Option<i128>) -> Film {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording");
    // Small slots, so that seeking has to choose.
    let mut writer = Writer::open(&path, Limits { max_size: Some(400 << 10), keep: None }).unwrap();
    let session = Session {
        id: 1,
        host: "web-7".into(),
        kernel: "6.12.117".into(),
        version: "0".into(),
        info: SourceInfo { kind: SourceKind::Fexit, why: None, unknown: [].into() },
    };
    let mut tracker = Tracker::new(0);
    let mut counters = Counters::default();
    for number in 1..=REPORTS {
        counters.0[Event::Insert as usize] += u64::from(number);
        counters.0[Event::DropTableFull as usize] += u64::from(LOSSES.contains(&number));
        let mono_ns = u64::from(number) * 1_000_000_000;
        let report = tracker.advance(Sample {
            wall_ns: START + i128::from(mono_ns),
            mono_ns,
            rows: [(FlowType { netns: 7, family: AF_INET, proto: 17 }, counters)].into(),
            ..Sample::default()
        });
        writer.append(&session, &report, false, mono_ns).unwrap();
    }
    Film::new(Reader::open(&path).unwrap(), from, to)
}

/// The numbers of reports, by their times.
fn numbers(steps: &[Step]) -> Vec<u32> {
    let number = |step: &Step| u32::try_from((step.report.wall_ns - START) / SECOND).unwrap();
    steps.iter().map(number).collect()
}

#[test]
fn every_time_is_found_with_what_was_before_it() {
    let mut film = film(None, None);
    for second in [1_u32, 2, 399, 400, 401, 1777, 3000] {
        let steps = film.go_to(START + i128::from(second) * SECOND + SECOND / 2).unwrap();
        let first = second.saturating_sub(399).max(1);
        assert_eq!(numbers(&steps), (first..=second).collect::<Vec<_>>());
        let counts = steps.last().unwrap().report.flows[0].counts;
        assert_eq!(counts.get(Event::Insert), u64::from(second), "its own counts, not its neighbour's");
        assert_eq!(
            film.take().unwrap().map(|step| numbers(&[step])),
            (second < 3000).then(|| vec![second + 1])
        );
    }
    // Before the beginning there is the first, behind the end the last.
    assert_eq!(numbers(&film.go_to(0).unwrap()), [1]);
    assert_eq!(numbers(&film.end().unwrap()).last(), Some(&3000));
    assert_eq!(numbers(&film.back().unwrap()).last(), Some(&2999));
    assert_eq!(numbers(&film.begin().unwrap()), [1]);
    assert_eq!(numbers(&film.back().unwrap()), [1]);
}

#[test]
fn nothing_outside_the_times_asked_for_is_shown() {
    let mut film = film(Some(START + 100 * SECOND), Some(START + 102 * SECOND));
    assert_eq!(numbers(&film.begin().unwrap()), [100]);
    assert_eq!(numbers(&film.end().unwrap()), [100, 101, 102]);
    assert!(film.take().unwrap().is_none());
    assert_eq!(numbers(&film.go_to(START).unwrap()), [100]);
}

#[test]
fn times_are_read_as_people_type_them() {
    let zone = jiff::tz::TimeZone::UTC;
    for (typed, wall_ns) in [
        ("19:00:05", Some(START + 5 * SECOND)),
        ("19:01", Some(START + 60 * SECOND)),
        ("2026-11-23T19:00:05", Some(START + 5 * SECOND)),
        ("2026-11-23 19:00:05", Some(START + 5 * SECOND)),
        ("2026-11-23T20:00:05+01:00", Some(START + 5 * SECOND)),
        ("", None),
        ("soon", None),
        ("25:00", None),
    ] {
        assert_eq!(time(typed, Some(START), &zone), wall_ns, "{typed}");
    }
}

/// Keeps what was shown last.
struct Fake;

impl Surface for Fake {
    async fn show(&mut self, _: &mut watch::Receiver<bool>) -> anyhow::Result<bool> {
        Ok(true)
    }

    fn suspend(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// What the user does, and what stands on the screen at the end.
async fn screen_after(user: impl AsyncFnOnce(&mpsc::Sender<Told>)) -> String {
    let mut film = film(None, None);
    let info = film.peek().unwrap().unwrap().session.info.clone();
    let zone = jiff::tz::TimeZone::UTC;
    let settings = Settings {
        machine: Machine { host: "web-7".into(), kernel: "6.12.117".into() },
        zone: zone.clone(),
        theme: Theme { color: false, blocks: false },
    };
    let app = App::of_recording(settings, info);
    let (tell, told) = mpsc::channel(KEYS_AHEAD);
    let (stop, stopped) = watch::channel(false);
    let terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let mut player = Player::new(film, app, zone, terminal, Fake, told, stopped);
    let (end, ()) = tokio::join!(player.until_end(), async {
        user(&tell).await;
        sleep(Duration::from_millis(10)).await;
        stop.send(true).unwrap();
    });
    end.unwrap();
    player.terminal.backend().to_string()
}

async fn press(tell: &mpsc::Sender<Told>, code: KeyCode) {
    tell.send(Told::Key(KeyEvent::new(code, KeyModifiers::NONE))).await.unwrap();
}

async fn type_in(tell: &mpsc::Sender<Told>, text: &str) {
    for c in text.chars() {
        press(tell, KeyCode::Char(c)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_plays_as_fast_as_it_was() {
    let shown = screen_after(async |_| sleep(Duration::from_millis(5020)).await).await;
    assert!(shown.contains("PLAY 1x") && shown.contains("2026-11-23 19:00:06"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn it_plays_faster_and_is_held() {
    let shown = screen_after(async |tell| {
        type_in(tell, "+++").await;
        sleep(Duration::from_millis(5020)).await;
        press(tell, KeyCode::Char(' ')).await;
        sleep(Duration::from_mins(1)).await;
    })
    .await;
    assert!(shown.contains("HELD") && shown.contains("2026-11-23 19:00:51"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn keys_go_to_losses_to_times_and_by_single_reports() {
    let shown = screen_after(async |tell| {
        press(tell, KeyCode::Char('n')).await;
        sleep(Duration::from_secs(1)).await;
    })
    .await;
    assert!(shown.contains("19:11:40") && shown.contains("DROPPING"), "{shown}");
    let shown = screen_after(async |tell| {
        type_in(tell, "t19:30:00").await;
        press(tell, KeyCode::Enter).await;
        press(tell, KeyCode::Right).await;
        press(tell, KeyCode::Right).await;
        press(tell, KeyCode::Left).await;
    })
    .await;
    assert!(shown.contains("HELD") && shown.contains("2026-11-23 19:30:01"), "{shown}");
    let shown = screen_after(async |tell| {
        press(tell, KeyCode::End).await;
        press(tell, KeyCode::Char('n')).await;
        sleep(Duration::from_secs(1)).await;
    })
    .await;
    assert!(shown.contains("no loss from there") && shown.contains("2026-11-23 19:50:00"), "{shown}");
    let shown = screen_after(async |tell| {
        type_in(tell, "tsoon").await;
        press(tell, KeyCode::Enter).await;
    })
    .await;
    assert!(shown.contains("`soon` is no time"), "{shown}");
}

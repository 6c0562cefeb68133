use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;

use super::super::scripted::Scripted;
use super::*;
use crate::view::Machine;
use crate::view::tui::{Settings, Theme};

/// What was asked of the terminal.
#[derive(Clone, Default)]
struct Asked(Rc<RefCell<Vec<&'static str>>>);

struct Fake {
    asked: Asked,
    /// Nobody sees the screen any more once so much was shown.
    shows: usize,
}

impl Surface for Fake {
    async fn show(&mut self, _: &mut watch::Receiver<bool>) -> anyhow::Result<bool> {
        self.shows = self.shows.saturating_sub(1);
        Ok(self.shows > 0)
    }

    fn suspend(&mut self) -> anyhow::Result<()> {
        self.asked.0.borrow_mut().push("suspend");
        Ok(())
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        self.asked.0.borrow_mut().push("resume");
        Ok(())
    }
}

struct Outside {
    tell: mpsc::Sender<Told>,
    stop: watch::Sender<bool>,
    asked: Asked,
}

fn settings() -> Settings {
    Settings {
        machine: Machine { host: "web-7".into(), kernel: "6.12.117".into() },
        zone: jiff::tz::TimeZone::UTC,
        theme: Theme { color: false, blocks: false },
    }
}

/// Runs the loop beside a script that plays the user.
async fn run(
    looks: Vec<anyhow::Result<Status>>,
    count: Option<u64>,
    shows: usize,
    user: impl AsyncFnOnce(&Outside),
) -> anyhow::Result<(End, Duration, String)> {
    let mut source = Scripted::new(looks);
    let info = source.info().clone();
    let (tell, told) = mpsc::channel(KEYS_AHEAD);
    let (stop, stopped) = watch::channel(false);
    let asked = Asked::default();
    let mut screen = Screen {
        tracker: Tracker::new(source.sample()?.mono_ns),
        source: &mut source,
        app: App::new(settings(), info, Duration::from_secs(1)),
        terminal: Terminal::new(TestBackend::new(80, 24))?,
        tty: Fake { asked: asked.clone(), shows },
        told,
        stop: stopped,
        reported: false,
        census: Census { take: |_| None, filter: Filter::default(), tell: tell.clone(), before: None },
    };
    // Kept to the end: a sender that is gone says stop.
    let outside = Outside { tell, stop, asked };
    let (end, ()) = tokio::join!(screen.until_end(count), user(&outside));
    let end = end?;
    let drawn = screen.terminal.backend().to_string();
    let watched = screen.finish()?.watched;
    Ok((end, watched, drawn))
}

fn press(c: char) -> Told {
    Told::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE))
}

#[tokio::test(start_paused = true)]
async fn count_ends_after_so_many_reports() {
    let (end, watched, shown) = run(vec![], Some(3), 1000, async |_outside| {}).await.unwrap();
    assert_eq!((end, watched), (End::Counted, Duration::from_secs(3)));
    assert!(shown.contains("ipv4 udp"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn quitting_takes_the_partial_interval_along() {
    let (end, watched, _) = run(vec![], None, 1000, async |outside| {
        tokio::time::sleep(Duration::from_millis(2250)).await;
        outside.tell.send(press('q')).await.unwrap();
    })
    .await
    .unwrap();
    assert_eq!((end, watched), (End::Quit, Duration::from_millis(2250)));
}

#[tokio::test(start_paused = true)]
async fn a_signal_ends_it_as_a_key_does() {
    let (end, watched, _) = run(vec![], None, 1000, async |outside| {
        tokio::time::sleep(Duration::from_millis(500)).await;
        outside.stop.send(true).unwrap();
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!((end, watched), (End::Quit, Duration::from_millis(500)));
}

#[tokio::test(start_paused = true)]
async fn another_interval_counts_from_the_key_on() {
    let (end, watched, shown) = run(vec![], Some(3), 1000, async |outside| {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        outside.tell.send(press('+')).await.unwrap();
    })
    .await
    .unwrap();
    // Reports at 1 s, 3.5 s and 5.5 s.
    assert_eq!((end, watched), (End::Counted, Duration::from_millis(5500)));
    assert!(shown.contains("every 2 s"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn waiting_says_so_and_goes_on_by_itself() {
    let looks = (0..50).map(|_| Ok(Status::Waiting("not loaded".into()))).collect();
    let (end, watched, shown) = run(looks, Some(1), 1000, async |_outside| {}).await.unwrap();
    assert_eq!((end, watched), (End::Counted, Duration::from_secs(1)));
    assert!(!shown.contains("WAITING"), "{shown}");

    let looks = (0..50).map(|_| Ok(Status::Waiting("not loaded".into()))).collect();
    let (_, _, shown) = run(looks, None, 1000, async |outside| {
        tokio::time::sleep(Duration::from_secs(3)).await;
        outside.tell.send(press('q')).await.unwrap();
    })
    .await
    .unwrap();
    assert!(shown.contains("WAITING") && shown.contains("not loaded"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn a_terminal_that_went_away_ends_it() {
    let (end, _, _) = run(vec![], None, 3, async |_outside| {}).await.unwrap();
    assert_eq!(end, End::Gone);
}

#[tokio::test(start_paused = true)]
async fn stopped_and_continued() {
    let asked = Asked::default();
    let seen = asked.clone();
    run(vec![], None, 1000, async move |outside| {
        let suspend = KeyEvent::new(KeyCode::Char('z'), KeyModifiers::CONTROL);
        outside.tell.send(Told::Key(suspend)).await.unwrap();
        outside.tell.send(Told::Continued).await.unwrap();
        outside.tell.send(press('q')).await.unwrap();
        // Asked for within this moment of the paused clock.
        tokio::time::sleep(Duration::from_millis(1)).await;
        seen.0.borrow_mut().extend(outside.asked.0.borrow().iter());
    })
    .await
    .unwrap();
    assert_eq!(*asked.0.borrow(), ["suspend", "resume"]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_ends_the_run() {
    let looks = vec![Ok(Status::Watching), Err(anyhow::anyhow!("map gone"))];
    let error = run(looks, None, 1000, async |_outside| {}).await.unwrap_err();
    assert_eq!(error.to_string(), "map gone");
}

#[test]
fn a_serial_line_without_a_size_has_a_screen() {
    assert_eq!(terminal(TestBackend::new(0, 0)).unwrap().get_frame().area(), Rect::new(0, 0, 80, 24));
    assert_eq!(terminal(TestBackend::new(100, 5)).unwrap().get_frame().area(), Rect::new(0, 0, 100, 5));
}

#[test]
fn the_screen_follows_the_terminal_as_far_as_its_memory_is_bounded() {
    let source = Scripted::new(Vec::new());
    let app = App::new(settings(), source.info().clone(), Duration::from_secs(1));
    let mut terminal = terminal(TestBackend::new(100, 30)).unwrap();
    for (size, area) in [((60, 20), (60, 20)), ((900, 25), (500, 25)), ((120, 900), (120, 200))] {
        terminal.backend_mut().resize(size.0, size.1);
        draw(&mut terminal, &app).unwrap();
        assert_eq!(terminal.get_frame().area(), Rect::new(0, 0, area.0, area.1), "{size:?}");
    }
}

#[test]
fn blocks_need_a_utf8_locale_and_a_font() {
    let with = |set: &'static [(&str, &str)]| {
        shows_blocks(|name| {
            set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    };
    assert!(with(&[("LANG", "de_DE.UTF-8"), ("TERM", "xterm-256color")]));
    assert!(with(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]));
    assert!(!with(&[("LC_ALL", "C"), ("LANG", "en_GB.UTF-8")]));
    assert!(!with(&[("LANG", "C.UTF-8"), ("TERM", "linux")]));
    assert!(!with(&[]));
}

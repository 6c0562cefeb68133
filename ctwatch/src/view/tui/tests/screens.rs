//! What each state looks like.

use ctwatch_ebpf::Event;
use ratatui::crossterm::event::KeyCode;
use ratatui::style::{Color, Modifier};

use super::*;
use crate::view::tui::Playing;
use crate::view::tui::keys::{Place, in_force};

#[test]
fn calm_looks_calm() {
    let app = app_after(COLOR, info(), 12, calm);
    let buffer = drawn(&app, 80, 24);
    insta::assert_snapshot!(text(&buffer));
    for cell in buffer.content() {
        assert!(matches!(cell.fg, Color::Reset | Color::Green), "{cell:?}");
        assert_eq!(cell.bg, Color::Reset);
        assert!(!cell.modifier.contains(Modifier::REVERSED), "{cell:?}");
    }
}

#[test]
fn filling_has_a_forecast() {
    insta::assert_snapshot!(screen(&app_after(COLOR, info(), 12, filling), 80, 24));
}

#[test]
fn full_and_dropping() {
    let app = app_after(COLOR, info(), 9, full);
    let buffer = drawn(&app, 80, 24);
    insta::assert_snapshot!(text(&buffer));
    let red = buffer.content().iter().filter(|cell| cell.bg == Color::Red).count();
    assert_eq!(red, 3 * 80, "three whole lines are red");
}

#[test]
fn full_without_colour() {
    let app = app_after(Theme { color: false, blocks: true }, info(), 9, full);
    let buffer = drawn(&app, 80, 24);
    insta::assert_snapshot!(text(&buffer));
    assert!(buffer.content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    let inverse = buffer.content().iter().filter(|cell| cell.modifier.contains(Modifier::REVERSED)).count();
    assert!(inverse >= 3 * 80, "three whole lines are inverse, and the numbers that are bad news");
}

#[test]
fn full_in_ascii() {
    let app = app_after(Theme { color: false, blocks: false }, info(), 9, full);
    let shown = screen(&app, 120, 40);
    assert!(shown.is_ascii(), "{shown}");
    insta::assert_snapshot!(shown);
}

#[test]
fn full_on_a_wide_screen() {
    insta::assert_snapshot!(screen(&app_after(COLOR, info(), 9, full), 200, 60));
}

#[test]
fn full_where_panels_just_stand_side_by_side() {
    insta::assert_snapshot!(screen(&app_after(COLOR, info(), 9, full), 140, 30));
}

#[test]
fn full_on_a_tiny_screen() {
    insta::assert_snapshot!(screen(&app_after(COLOR, info(), 9, full), 20, 5));
}

#[test]
fn over_after_a_flood() {
    let mut app = app_with(COLOR, info());
    let mut tracker = Tracker::new(0);
    feed(&mut app, &mut tracker, 1..=9, full);
    feed(&mut app, &mut tracker, 20..=32, |second| {
        let mut sample = full(9);
        (sample.mono_ns, sample.wall_ns) = (second * SECOND, START + i128::from(second * SECOND));
        sample.tables[0].count = Some(100_000);
        sample
    });
    let shown = screen(&app, 80, 24);
    assert!(shown.contains("ok now; earlier 582 dropped, 2496 evicted, last at 19:00:09"), "{shown}");
}

#[test]
fn waiting_says_what_for() {
    let mut app = app_with(COLOR, info());
    app.waiting(Some("connection tracking is not loaded; the first rule that needs it loads it".into()));
    insta::assert_snapshot!(screen(&app, 80, 24));
}

#[test]
fn waiting_again_keeps_what_was_seen() {
    let mut app = app_after(COLOR, info(), 9, full);
    app.waiting(Some("the module was unloaded".into()));
    let shown = screen(&app, 80, 24);
    assert!(shown.contains("WAITING") && shown.contains("the module was unloaded"), "{shown}");
    assert!(shown.contains("ipv4 udp"), "{shown}");
}

#[test]
fn paused_holds_the_screen_but_not_the_banner() {
    let mut app = app_with(COLOR, info());
    let mut tracker = Tracker::new(0);
    feed(&mut app, &mut tracker, 1..=3, calm);
    press(&mut app, &[KeyCode::Char('p')]);
    feed(&mut app, &mut tracker, 4..=9, full);
    insta::assert_snapshot!(screen(&app, 80, 24));
    press(&mut app, &[KeyCode::Char('p')]);
    assert!(screen(&app, 80, 24).contains("19:00:09"));
}

#[test]
fn unknown_is_never_nothing_and_has_its_note() {
    let mut info = info();
    info.kind = SourceKind::Netlink;
    info.why = Some("this kernel has no kprobes".into());
    for event in [Event::DropTableFull, Event::DropNoMemory, Event::DeletePressure] {
        info.unknown.insert(event, "ctnetlink does not tell".into());
    }
    let mut app = app_after(COLOR, info, 9, calm);
    insta::assert_snapshot!("unknown", screen(&app, 80, 24));
    press(&mut app, &[KeyCode::Tab]);
    insta::assert_snapshot!("unknown_source_panel", screen(&app, 80, 24));
}

#[test]
fn help_has_every_key() {
    let mut app = app_after(COLOR, info(), 9, calm);
    press(&mut app, &[KeyCode::Char('?')]);
    let shown = screen(&app, 80, 24);
    insta::assert_snapshot!(shown);
    for binding in [Place::Screen, Place::Filter].into_iter().flat_map(in_force) {
        assert!(shown.contains(binding.help), "{:?}", binding.help);
        for key in binding.keys {
            assert!(shown.contains(&key.to_string()), "{key}");
        }
    }
    press(&mut app, &[KeyCode::Esc]);
    assert!(screen(&app, 80, 24).contains("ipv4 tcp"));
}

#[test]
fn help_over_a_recording_has_every_key_that_is_in_force_there() {
    let mut app = app_after(COLOR, info(), 9, calm);
    app.plays(Playing { state: "PLAY 10x".into(), note: None });
    insta::assert_snapshot!("recording", screen(&app, 80, 24));
    press(&mut app, &[KeyCode::Char('?')]);
    let shown = screen(&app, 80, 40);
    for binding in in_force(Place::Replay) {
        assert!(shown.contains(binding.help), "{:?} in\n{shown}", binding.help);
    }
    assert!(!shown.contains("a shorter interval"), "{shown}");
    press(&mut app, &[KeyCode::Esc]);
    app.plays(Playing { state: "HELD".into(), note: Some("the end\x1b[2J".into()) });
    assert!(screen(&app, 80, 24).contains("the end?[2J"));
}

#[test]
fn help_can_be_scrolled_on_a_small_screen() {
    let mut app = app_after(COLOR, info(), 9, calm);
    press(&mut app, &[KeyCode::Char('?')]);
    let mut seen = String::new();
    for _ in 0..12 {
        seen += &screen(&app, 50, 12);
        press(&mut app, &[KeyCode::PageDown]);
    }
    assert!(
        [Place::Screen, Place::Filter]
            .into_iter()
            .flat_map(in_force)
            .all(|binding| seen.contains(binding.help)),
        "{seen}"
    );
}

#[test]
fn filter_while_typing_and_after() {
    let mut app = app_after(COLOR, info(), 9, full);
    press(&mut app, &typed("/blue ud"));
    insta::assert_snapshot!("filter_typing", screen(&app, 80, 24));
    press(&mut app, &[KeyCode::Enter]);
    let shown = screen(&app, 80, 24);
    assert!(shown.contains("filter \"blue ud\" shows 1 of 3"), "{shown}");
    assert!(shown.contains("DROPPING 97"), "a filter hides no bad news: {shown}");
    press(&mut app, &typed("/q"));
    press(&mut app, &[KeyCode::Esc]);
    assert!(screen(&app, 80, 24).contains("shows 1 of 3"), "leaving keeps the filter as it was");
    press(&mut app, &[KeyCode::Esc]);
    assert!(!screen(&app, 80, 24).contains("filter \""));
}

#[test]
fn a_filter_without_matches_says_so() {
    let mut app = app_after(COLOR, info(), 9, calm);
    press(&mut app, &typed("/sctp"));
    assert!(screen(&app, 80, 24).contains("nothing matches the filter"));
}

#[test]
fn nothing_yet_says_so() {
    let app = app_with(COLOR, info());
    assert!(screen(&app, 80, 24).contains("the first report is on its way"));
    let app = app_after(COLOR, info(), 1, |second| Sample { mono_ns: second * SECOND, ..Sample::default() });
    assert!(screen(&app, 80, 24).contains("no connection was tracked yet"));
}

//! What keys do, and that no size and no key breaks the screen.

use proptest::prelude::*;
use ratatui::style::Color;

use super::*;
use crate::view::tui::keys::KEYS;

#[test]
fn keys_ask_the_caller_for_what_the_screen_cannot_do() {
    let mut app = app_after(COLOR, info(), 3, calm);
    assert_eq!(press(&mut app, &[KeyCode::Char('q')]), Outcome::Quit);
    assert_eq!(press(&mut app, &[KeyCode::Char('-')]), Outcome::Interval(Duration::from_millis(500)));
    assert_eq!(press(&mut app, &[KeyCode::Char('+')]), Outcome::Interval(Duration::from_secs(1)));
    let ctrl = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
    assert_eq!(app.key(ctrl('c')), Outcome::Quit);
    assert_eq!(app.key(ctrl('z')), Outcome::Suspend);
    assert_eq!(app.key(ctrl('l')), Outcome::Redraw);
    press(&mut app, &typed("/"));
    assert_eq!(press(&mut app, &[KeyCode::Char('q')]), Outcome::Draw, "while typing it is a letter");
    assert_eq!(app.key(ctrl('c')), Outcome::Quit);
}

#[test]
fn the_interval_keeps_to_its_bounds() {
    let mut app = app_with(COLOR, info());
    press(&mut app, &typed(&"-".repeat(30)));
    assert_eq!(app.interval(), Duration::from_millis(100));
    press(&mut app, &typed(&"+".repeat(30)));
    assert_eq!(app.interval(), Duration::from_hours(1));
}

#[test]
fn rows_are_sorted_as_asked() {
    let mut app = app_after(COLOR, info(), 9, full);
    let first = |app: &App| app.rows()[0].key;
    assert_eq!(first(&app), flow(INIT, AF_INET, 17), "worst first");
    press(&mut app, &typed("S"));
    assert_eq!(first(&app), flow(INIT, AF_INET, 6), "by name");
    assert!(screen(&app, 80, 24).contains("by name"));
    press(&mut app, &typed("ss"));
    assert!(screen(&app, 80, 24).contains("by insert"));
    assert_eq!(first(&app), flow(INIT, AF_INET, 17));
}

#[test]
fn the_chosen_row_stays_chosen() {
    let mut app = app_after(COLOR, info(), 9, full);
    press(&mut app, &[KeyCode::Down]);
    let chosen = app.chosen();
    assert_eq!(chosen, Some(flow(INIT, AF_INET, 6)));
    press(&mut app, &typed("sss"));
    assert_eq!(app.chosen(), chosen);
    press(&mut app, &[KeyCode::Up, KeyCode::Up, KeyCode::Up, KeyCode::Up]);
    assert_eq!(app.chosen(), Some(app.rows()[0].key));
    press(&mut app, &typed("jjjjjjj"));
    assert_eq!(app.chosen(), Some(app.rows()[2].key));
}

#[test]
fn reset_begins_totals_anew() {
    let mut app = app_with(COLOR, info());
    let mut tracker = Tracker::new(0);
    feed(&mut app, &mut tracker, 1..=9, full);
    press(&mut app, &typed("r"));
    feed(&mut app, &mut tracker, 10..=11, full);
    let udp = app.live.history.flow(flow(INIT, AF_INET, 17)).unwrap();
    assert_eq!(udp.total().get(Event::DropTableFull), 2 * 97);
    assert_eq!(app.live.losses.len(), 2 * (2 + 1), "two events a second, and how many more");
}

#[test]
fn the_ranking_shows_each_kind_of_culprit_first_and_sorts_as_asked() {
    let mut app = app_with(COLOR, info());
    let mut tracker = Tracker::new(0);
    feed(&mut app, &mut tracker, 1..=6, |second| {
        let mut sample = full(second);
        let top = sample.top.as_mut().unwrap();
        for (by, key, insert, drop) in
            [(By::Src, "10.9.9.9", 50, 95), (By::Src, "10.1.1.1", 7_000, 1), (By::Dst, "10.0.0.2", 8_001, 95)]
        {
            let key = key.into();
            top.push(Top {
                by,
                key,
                insert: insert * second,
                early_drop: 0,
                drop: drop * second,
                invalid: 0,
                ..top[1].clone()
            });
        }
        top[0].family = AF_INET6;
        sample
    });
    assert!(screen(&app, 100, 40).contains(" dport tcp6    443 "));
    let keys = |app: &App| {
        let shown = screen(app, 100, 40);
        let lines = shown.lines().skip_while(|line| !line.starts_with(" by ")).skip(1).take(5);
        lines.map(|line| line.split_whitespace().nth(2).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&app), ["6881", "10.9.9.9", "10.0.0.2", "443", "10.1.1.1"]);
    press(&mut app, &typed("s"));
    assert_eq!(app.sort.name(), "by insert");
    assert_eq!(keys(&app), ["6881", "10.1.1.1", "10.0.0.2", "443", "10.9.9.9"]);
    let shown = screen(&app, 139, 40);
    assert!(
        shown.contains("134 inserts, 12 evictions, 2 drops not ranked by dport; 1285 inserts"),
        "{shown}"
    );
}

#[test]
fn the_ranking_of_a_burst_stays() {
    let mut app = app_with(COLOR, info());
    let mut tracker = Tracker::new(0);
    feed(&mut app, &mut tracker, 1..=9, full);
    feed(&mut app, &mut tracker, 10..=11, |second| {
        let mut sample = full(9);
        (sample.mono_ns, sample.wall_ns) = (second * SECOND, START + i128::from(second * SECOND));
        sample
    });
    let shown = screen(&app, 80, 24);
    assert!(
        shown.contains("top at 19:00:09, per second") && shown.contains(" dport udp     6881"),
        "{shown}"
    );
    press(&mut app, &typed("r"));
    assert!(app.live.ranked.is_none());
}

#[test]
fn entries_are_told_as_exactly_as_they_are_known() {
    let mut app = app_with(COLOR, info());
    let mut tracker = Tracker::new(0);
    feed(&mut app, &mut tracker, 1..=5, calm);
    assert!(!screen(&app, 80, 24).contains("live"), "nobody knows yet");
    // Of 1000 TCP entries at the fourth second, all that came and went in the fifth may be more or less.
    let entries = [(flow(INIT, AF_INET, 6), 1_000), (flow(INIT, AF_INET, 17), 3_210)].into();
    let dump = Dump { namespaces: [INIT].into(), entries, filtered: false };
    app.baseline(Baseline::new(&dump, &calm(4), &calm(5)));
    let shown = screen(&app, 80, 24);
    assert!(shown.contains("ipv4 tcp          ~1000"), "{shown}");
    assert!(shown.contains(" entries now           789 to 1212"), "{shown}");
    assert!(shown.contains("ipv6 icmpv6           . "), "the dump found none: {shown}");
    // The kernel's own count is another.
    feed(&mut app, &mut tracker, 6..=6, |second| {
        let mut sample = calm(second);
        sample.tables[0].count = Some(200);
        sample
    });
    assert!(!screen(&app, 80, 24).contains("live"), "{}", screen(&app, 80, 24));
}

#[test]
fn panels_go_round_and_exist_only_with_data() {
    let mut app = app_after(COLOR, info(), 9, full);
    let mut titles = Vec::new();
    for _ in 0..4 {
        titles.push(app.panel());
        press(&mut app, &[KeyCode::Tab]);
    }
    assert_eq!(titles[0], app.panel(), "once round");
    titles.dedup();
    assert_eq!(titles.len(), 4);
    assert_eq!(app_after(COLOR, info(), 9, calm).panels().len(), 2);
}

#[test]
fn hostile_names_stay_in_their_place() {
    let app = app_after(COLOR, info(), 3, |second| {
        let mut sample = calm(second);
        sample.tables[0].name = "a\x1b[2J\u{7}very long name 名前名前名前".into();
        sample
    });
    let shown = screen(&app, 80, 24);
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown}");
    assert!(shown.contains("a?[2J?"), "{shown}");
}

fn any_key() -> impl Strategy<Value = KeyEvent> {
    let bound: Vec<KeyEvent> = KEYS.iter().flat_map(|binding| binding.keys).map(|key| key.event()).collect();
    prop_oneof![
        prop::sample::select(bound),
        any::<char>().prop_map(|c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_keys_at_any_size_draw_something(
        keys in prop::collection::vec(any_key(), 0..20),
        width in 1_u16..220,
        height in 1_u16..70,
        seconds in 0_u64..14,
        color: bool,
        blocks: bool,
        waiting: bool,
    ) {
        let mut app = app_after(Theme { color, blocks }, info(), seconds, full);
        for key in keys {
            app.key(key);
        }
        app.waiting(waiting.then(|| "nothing to watch".into()));
        let buffer = drawn(&app, width, height);
        prop_assert!(buffer.content().iter().any(|cell| cell.symbol() != " "));
        prop_assert!(color || buffer.content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    }

    #[test]
    fn bad_news_is_in_the_first_lines_at_any_size(width in 16_u16..220, height in 1_u16..70) {
        let shown = screen(&app_after(COLOR, info(), 9, full), width, height);
        prop_assert!(shown.lines().take(3).any(|line| line.contains("DROPPING")), "{}", shown);
    }
}

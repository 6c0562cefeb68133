//! The screen in each of its states, fed as a source would feed it.

mod behaviour;
mod screens;

use std::collections::BTreeMap;
use std::time::Duration;

use ctwatch_ebpf::{AF_INET, AF_INET6, Counters, Event, FlowType, Group};
use jiff::tz::TimeZone;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Modifier;

use super::app::{App, Outcome, Settings};
use super::{Theme, draw};
use crate::model::live::{Baseline, Dump};
use crate::model::ranking::{By, Losses, Top};
use crate::model::trace::{self, Detail, Record};
use crate::model::{Cost, Sample, SourceInfo, SourceKind, Table, Tracker};
use crate::view::tests::{SECOND, START, counters, flow, machine};

const INIT: u32 = 4_026_531_840;
const BLUE: u32 = 4_026_532_201;
const COLOR: Theme = Theme { color: true, blocks: true };

fn info() -> SourceInfo {
    SourceInfo { kind: SourceKind::Fexit, why: None, unknown: BTreeMap::new() }
}

fn app_with(theme: Theme, info: SourceInfo) -> App {
    App::new(Settings { machine: machine(), zone: TimeZone::UTC, theme }, info, Duration::from_secs(1))
}

/// The state of a machine at a second.
fn at(second: u64, count: u64, rows: Vec<(FlowType, Counters)>) -> Sample {
    let table =
        |netns, name: &str, count| Table { netns, name: name.into(), count: Some(count), max: Some(262_144) };
    Sample {
        wall_ns: START + i128::from(second * SECOND),
        mono_ns: second * SECOND,
        rows: rows.into_iter().collect(),
        tables: vec![table(INIT, "init", count), table(BLUE, "blue", 12)],
        cost: Some(Cost { run_ns: second * 2_124_200, runs: second * 16_340 }),
        own_ns: Some(90_000_000 + second * 640_000),
        ..Sample::default()
    }
}

fn calm(second: u64) -> Sample {
    let n = second;
    at(
        second,
        4_210 + n % 2,
        vec![
            (
                flow(INIT, AF_INET, 6),
                counters(&[
                    (Event::Insert, 212 * n),
                    (Event::DeleteTimeout, 200 * n),
                    (Event::DeleteClosed, 11 * n),
                ]),
            ),
            (
                flow(INIT, AF_INET, 17),
                counters(&[(Event::Insert, 40 * n + n * n), (Event::DeleteTimeout, 40 * n)]),
            ),
            (flow(INIT, AF_INET6, 58), counters(&[(Event::Insert, n / 3)])),
        ],
    )
}

fn filling(second: u64) -> Sample {
    let mut sample = calm(second);
    sample.tables[0].count = Some(220_000 + 900 * second);
    sample
}

/// Full from the third second on.
fn full(second: u64) -> Sample {
    let over = second.saturating_sub(3);
    let mut sample = at(
        second,
        262_144 - 9_000 * 3_u64.saturating_sub(second),
        vec![
            (
                flow(INIT, AF_INET, 6),
                counters(&[(Event::Insert, 212 * second), (Event::DeleteEarlyDrop, 4 * over)]),
            ),
            (
                flow(INIT, AF_INET, 17),
                counters(&[
                    (Event::Insert, 8_120 * second),
                    (Event::ClashResolve, 3 * second),
                    (Event::DropTableFull, 97 * over),
                    (Event::DeleteTimeout, 7_396 * over),
                    (Event::DeleteEarlyDrop, 412 * over),
                ]),
            ),
            (flow(BLUE, AF_INET, 17), counters(&[(Event::Insert, 3 * second)])),
        ],
    );
    let top = |proto, key: &str, insert, early_drop, drop| Top {
        by: By::Dport,
        netns: INIT,
        family: AF_INET,
        proto,
        key: key.into(),
        insert,
        early_drop,
        drop,
        invalid: 0,
    };
    sample.top = Some(vec![
        top(6, "443", 200 * second, 4 * over, 0),
        top(17, "6881", 8_001 * second, 400 * over, 95 * over),
    ]);
    let tuple = |proto, sport| trace::Flow {
        family: AF_INET,
        proto,
        src: [10, 0, 0, 1].into(),
        dst: [10, 0, 0, 2].into(),
        detail: Detail::Ports(sport, 6881),
        zone: 0,
    };
    let loss = |name, event, proto, sport, newcomer| Record {
        wall_ns: sample.wall_ns,
        name,
        event,
        netns: INIT,
        flow: tuple(proto, sport),
        assured: false,
        replied: true,
        age: None,
        newcomer,
        entry: None,
        invalid: None,
        certainty: trace::Certainty::default(),
        cpu: Some(0),
        comm: Some("dhtd".into()),
    };
    let sport = u16::try_from(1000 + second).unwrap();
    let events = vec![
        loss(Group::Drop, Event::DropTableFull, 17, sport, None),
        loss(Group::EarlyDrop, Event::DeleteEarlyDrop, 6, sport, Some(tuple(17, sport + 1))),
    ];
    sample.losses = Some(Losses { events, more: 500 * u64::from(second > 3) });
    sample.lost = over;
    sample
}

fn feed(
    app: &mut App,
    tracker: &mut Tracker,
    seconds: std::ops::RangeInclusive<u64>,
    state: fn(u64) -> Sample,
) {
    let info = app.shown().info.clone();
    for second in seconds {
        app.report(tracker.advance(state(second)), &info);
    }
}

fn app_after(theme: Theme, info: SourceInfo, seconds: u64, state: fn(u64) -> Sample) -> App {
    let mut app = app_with(theme, info);
    feed(&mut app, &mut Tracker::new(0), 1..=seconds, state);
    app
}

fn press(app: &mut App, keys: &[KeyCode]) -> Outcome {
    keys.iter().fold(Outcome::Draw, |_, code| app.key(KeyEvent::new(*code, KeyModifiers::NONE)))
}

fn typed(text: &str) -> Vec<KeyCode> {
    text.chars().map(KeyCode::Char).collect()
}

fn drawn(app: &App, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app)).unwrap();
    terminal.backend().buffer().clone()
}

/// The screen as text, with what is shown inverse between `[` and `]`.
fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let mut inverse = false;
        let mut line = String::new();
        for x in 0..buffer.area.width {
            let cell = &buffer[(x, y)];
            let now = cell.modifier.contains(Modifier::REVERSED);
            if now != inverse {
                line.push(if now { '[' } else { ']' });
                inverse = now;
            }
            line.push_str(cell.symbol());
        }
        if inverse {
            line.push(']');
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn screen(app: &App, width: u16, height: u16) -> String {
    text(&drawn(app, width, height))
}

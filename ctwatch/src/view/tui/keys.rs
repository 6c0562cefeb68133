//! The one key map: what keys do, what the help screen says and what the last line shows.

use std::fmt;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::app::Control;

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// Hold the screen still, or let it go on.
    Pause,
    /// Sort by the next column.
    SortNext,
    /// Sort by the column before.
    SortBack,
    /// Show the next panel.
    PanelNext,
    /// Show the panel before.
    PanelBack,
    /// Choose the row above.
    Up,
    /// Choose the row below.
    Down,
    /// Scroll the panel up.
    PageUp,
    /// Scroll the panel down.
    PageDown,
    /// A shorter interval.
    Shorter,
    /// A longer interval.
    Longer,
    /// Type a filter.
    Filter,
    /// Leave help, or show everything again.
    Back,
    /// Begin totals, peaks and histories anew.
    Reset,
    /// Show the help screen, or hide it.
    Help,
    /// Draw everything again.
    Redraw,
    /// Give the terminal back to the shell for a while.
    Suspend,
    /// Play a recording otherwise.
    Replay(Control),
    /// Type a time to go to.
    JumpTo,
    /// Take the line as typed.
    Accept,
    /// Leave it as it was.
    Cancel,
    /// Delete the last character.
    Erase,
    /// Delete the whole line.
    EraseAll,
}

/// One key, with Ctrl held or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    code: KeyCode,
    ctrl: bool,
}

#[cfg(test)]
impl Key {
    /// As the terminal would tell it.
    pub(super) fn event(self) -> KeyEvent {
        KeyEvent::new(self.code, if self.ctrl { KeyModifiers::CONTROL } else { KeyModifiers::NONE })
    }
}

const fn key(code: KeyCode) -> Key {
    Key { code, ctrl: false }
}

const fn char(c: char) -> Key {
    key(KeyCode::Char(c))
}

const fn ctrl(c: char) -> Key {
    Key { code: KeyCode::Char(c), ctrl: true }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            KeyCode::Char(' ') => out.write_str("Space"),
            KeyCode::Char(c) if self.ctrl => write!(out, "Ctrl-{}", c.to_ascii_uppercase()),
            KeyCode::Char(c) => write!(out, "{c}"),
            KeyCode::BackTab => out.write_str("Shift-Tab"),
            KeyCode::PageUp => out.write_str("PgUp"),
            KeyCode::PageDown => out.write_str("PgDn"),
            KeyCode::F(number) => write!(out, "F{number}"),
            code => write!(out, "{code:?}"),
        }
    }
}

/// Where a key has its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the screen.
    Screen,
    /// On the screen of a recording, before those of the screen.
    Replay,
    /// While a filter or a time is typed; every other character is text there.
    Filter,
}

/// Keys and what they do.
#[derive(Debug)]
pub struct Binding {
    /// Where.
    pub place: Place,
    /// Any of these.
    pub keys: &'static [Key],
    /// What happens.
    pub action: Action,
    /// What the help screen says.
    pub help: &'static str,
    /// What the last line says, where it is worth a place there.
    pub short: Option<&'static str>,
}

const fn screen(
    keys: &'static [Key],
    action: Action,
    short: Option<&'static str>,
    help: &'static str,
) -> Binding {
    Binding { place: Place::Screen, keys, action, help, short }
}

const fn replay(
    keys: &'static [Key],
    action: Action,
    short: Option<&'static str>,
    help: &'static str,
) -> Binding {
    Binding { place: Place::Replay, keys, action, help, short }
}

const fn filter(keys: &'static [Key], action: Action, help: &'static str) -> Binding {
    Binding { place: Place::Filter, keys, action, help, short: None }
}

/// Every key there is.
pub const KEYS: &[Binding] = &[
    screen(&[char('q'), ctrl('c')], Action::Quit, Some("quit"), "quit and print the totals"),
    screen(&[char('?'), char('h'), key(KeyCode::F(1))], Action::Help, Some("help"), "this help, and back"),
    screen(&[char('p'), char(' ')], Action::Pause, Some("pause"), "hold the screen, or go on"),
    screen(&[char('s')], Action::SortNext, Some("sort"), "sort by the next column"),
    screen(&[char('S')], Action::SortBack, None, "sort by the one before"),
    screen(&[key(KeyCode::Tab)], Action::PanelNext, Some("panel"), "the next panel"),
    screen(&[key(KeyCode::BackTab)], Action::PanelBack, None, "the panel before"),
    screen(&[key(KeyCode::Up), char('k')], Action::Up, None, "choose the row above"),
    screen(&[key(KeyCode::Down), char('j')], Action::Down, None, "choose the row below"),
    screen(&[key(KeyCode::PageUp)], Action::PageUp, None, "scroll the panel up"),
    screen(&[key(KeyCode::PageDown)], Action::PageDown, None, "scroll the panel down"),
    screen(&[char('-')], Action::Shorter, Some("fast"), "a shorter interval"),
    screen(&[char('+'), char('=')], Action::Longer, Some("slow"), "a longer interval"),
    screen(&[char('/')], Action::Filter, Some("filter"), "filter what is shown"),
    screen(&[key(KeyCode::Esc)], Action::Back, None, "end help, clear the filter"),
    screen(&[char('r')], Action::Reset, Some("reset"), "totals and peaks anew"),
    screen(&[ctrl('l')], Action::Redraw, None, "draw everything again"),
    screen(&[ctrl('z')], Action::Suspend, None, "to the shell; fg returns"),
    replay(&[char(' '), char('p')], Action::Replay(Control::Play), Some("play"), "play, or hold"),
    replay(&[key(KeyCode::Right), char('.')], Action::Replay(Control::StepOn), Some("step"), "one report on"),
    replay(&[key(KeyCode::Left), char(',')], Action::Replay(Control::StepBack), None, "one report back"),
    replay(&[char('n')], Action::Replay(Control::NextLoss), Some("loss"), "to the next report with a loss"),
    replay(&[char('t')], Action::JumpTo, Some("time"), "type a time to go to"),
    replay(&[char('+'), char('=')], Action::Replay(Control::Faster), Some("faster"), "play faster"),
    replay(&[char('-')], Action::Replay(Control::Slower), Some("slower"), "play slower"),
    replay(&[key(KeyCode::Home), char('g')], Action::Replay(Control::Begin), None, "to the first report"),
    replay(&[key(KeyCode::End), char('G')], Action::Replay(Control::End), None, "to the last report"),
    filter(&[key(KeyCode::Enter)], Action::Accept, "take the filter"),
    filter(&[key(KeyCode::Esc)], Action::Cancel, "leave it as it was"),
    filter(&[key(KeyCode::Backspace), ctrl('h')], Action::Erase, "delete a character"),
    filter(&[ctrl('u')], Action::EraseAll, "delete the whole line"),
    filter(&[ctrl('c')], Action::Quit, "quit"),
];

/// The keys that mean something in a place, those that go before first.
pub fn in_force(place: Place) -> impl Iterator<Item = &'static Binding> {
    let of = |place| KEYS.iter().filter(move |binding| binding.place == place);
    let beside = (place == Place::Replay).then(|| of(Place::Screen).filter(|binding| !is_hidden(binding)));
    of(place).chain(beside.into_iter().flatten())
}

/// Whether a key of the screen has another meaning over a recording. What it would do has none there.
fn is_hidden(binding: &Binding) -> bool {
    matches!(binding.action, Action::Pause | Action::Shorter | Action::Longer)
}

/// What a pressed key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// One of the map's actions.
    Act(Action),
    /// A character of the filter.
    Text(char),
}

/// Looks a key up; a released key means nothing.
pub fn meaning(place: Place, event: KeyEvent) -> Option<Meaning> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    let ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
    let pressed = Key { code: event.code, ctrl };
    let bound = in_force(place).find(|binding| binding.keys.contains(&pressed));
    match (bound, event.code) {
        (Some(binding), _) => Some(Meaning::Act(binding.action)),
        (None, KeyCode::Char(c)) if place == Place::Filter && !ctrl && !c.is_control() => {
            Some(Meaning::Text(c))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_key_means_two_things_in_one_place() {
        for place in [Place::Screen, Place::Replay, Place::Filter] {
            let mut seen: Vec<Key> = Vec::new();
            for key in in_force(place).flat_map(|binding| binding.keys) {
                assert!(!seen.contains(key), "{key} twice");
                seen.push(*key);
            }
        }
    }

    #[test]
    fn every_key_of_the_map_does_what_it_says() {
        for binding in KEYS {
            for key in binding.keys {
                assert_eq!(meaning(binding.place, key.event()), Some(Meaning::Act(binding.action)), "{key}");
            }
        }
    }

    #[test]
    fn a_released_key_means_nothing() {
        let mut event = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        event.kind = KeyEventKind::Release;
        assert_eq!(meaning(Place::Screen, event), None);
    }

    proptest! {
        #[test]
        fn while_typing_every_plain_character_is_text(c: char) {
            prop_assume!(!c.is_control());
            let event = KeyEvent::new(KeyCode::Char(c), KeyModifiers::SHIFT);
            prop_assert_eq!(meaning(Place::Filter, event), Some(Meaning::Text(c)));
        }
    }
}

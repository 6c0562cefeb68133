//! How things look. Without colour, trouble stands out by inverse, bold, words and marks alone.

use ratatui::style::{Color, Modifier, Style};

use crate::model::verdict::Level;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Whether colours are wanted.
    pub color: bool,
    /// Whether block characters can be shown; else ASCII stands for them.
    pub blocks: bool,
}

impl Theme {
    /// The banner.
    pub const fn banner(self, level: Level) -> Style {
        match (level, self.color) {
            (Level::Calm, true) => Style::new().fg(Color::Green),
            (Level::Calm, false) => Style::new(),
            (Level::Warning, true) => {
                Style::new().fg(Color::Black).bg(Color::Yellow).add_modifier(Modifier::BOLD)
            }
            (Level::Critical, true) => {
                Style::new().fg(Color::White).bg(Color::Red).add_modifier(Modifier::BOLD)
            }
            (_, false) => Style::new().add_modifier(Modifier::REVERSED).add_modifier(Modifier::BOLD),
        }
    }

    /// A number that is bad news.
    pub const fn bad(self, level: Level) -> Style {
        let style = match (level, self.color) {
            (Level::Calm, _) => return Style::new(),
            (Level::Warning, true) => Style::new().fg(Color::Yellow),
            (Level::Critical, true) => Style::new().fg(Color::Red),
            (Level::Critical, false) => Style::new().add_modifier(Modifier::REVERSED),
            (Level::Warning, false) => Style::new(),
        };
        style.add_modifier(Modifier::BOLD)
    }

    /// The filled part of a gauge.
    pub const fn gauge(self, level: Level) -> Style {
        match (level, self.color) {
            (Level::Calm, true) => Style::new().fg(Color::Green),
            (Level::Warning, true) => Style::new().fg(Color::Yellow),
            (Level::Critical, true) => Style::new().fg(Color::Red),
            (Level::Calm, false) => Style::new(),
            (_, false) => Style::new().add_modifier(Modifier::BOLD),
        }
    }

    /// Text of the second rank.
    pub const fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// Headings and keys.
    pub const fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// A state that the user has put the screen in.
    pub const fn mode(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED).add_modifier(Modifier::BOLD)
    }

    /// Heights of a run, lowest first; the first stands for nothing at all.
    pub const fn steps(self) -> [char; 9] {
        if self.blocks {
            [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        } else {
            [' ', '_', '.', '-', ':', '=', '+', '*', '#']
        }
    }

    /// A gauge of so many cells: its filled part, given in eighths of a cell, and the rest.
    pub fn bar(self, eighths: usize, cells: usize) -> (String, String) {
        let (whole, part) = (eighths / 8, eighths % 8);
        if !self.blocks {
            return ("#".repeat(whole), ".".repeat(cells - whole));
        }
        let mut filled = "█".repeat(whole);
        filled.extend(['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get(part.wrapping_sub(1)));
        let rest = cells - whole - usize::from(part > 0);
        (filled, "░".repeat(rest))
    }

    /// The line that parts panels.
    pub const fn rule(self) -> char {
        if self.blocks { '─' } else { '-' }
    }

    /// Stands between the two ends of a flow.
    pub const fn arrow(self) -> &'static str {
        if self.blocks { "→" } else { "->" }
    }

    /// Marks the chosen row.
    pub const fn chosen(self) -> char {
        if self.blocks { '▸' } else { '>' }
    }
}

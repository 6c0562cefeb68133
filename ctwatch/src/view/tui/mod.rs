//! The full-screen view: state and key map without a terminal, then drawing on whatever ratatui draws on.

mod app;
mod columns;
mod detail;
mod draw;
mod gauge;
pub mod keys;
mod panels;
mod text;
mod theme;
mod watched;

pub use app::{App, Control, Outcome, Playing, Settings};
pub use draw::draw;
pub use theme::Theme;

#[cfg(test)]
mod tests;

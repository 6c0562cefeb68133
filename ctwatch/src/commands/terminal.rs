//! The terminal of the full-screen views: its mode, its keys, and what is drawn to it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use ratatui::backend::Backend;
use ratatui::crossterm::event::{self, Event, KeyEvent};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use ratatui::layout::{Rect, Size};
use ratatui::{Terminal, TerminalOptions, Viewport};
use tokio::io::AsyncWrite;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::running;
use crate::model::live::Dump;
use crate::view::tui::{self, App};

/// Keys typed ahead of the screen; more wait in the terminal.
pub(super) const KEYS_AHEAD: usize = 16;

/// What the terminal tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Key(KeyEvent),
    Resized,
    /// What the tables held a moment ago.
    Counted(Dump),
    /// Continued after a stop: a shell may have changed the terminal meanwhile.
    Continued,
}

/// The largest screen that is drawn to. Each place costs memory, and a program can give its terminal any size up to 65,535
/// by 65,535.
const MOST_COLUMNS: u16 = 500;
const MOST_ROWS: u16 = 200;

/// The part of a terminal of this size that is drawn to. A serial line has no size of its own (0 by 0) until somebody sets
/// it: then the one that every terminal has.
fn drawn(size: Size) -> Rect {
    if size.width == 0 || size.height == 0 {
        return Rect::new(0, 0, 80, 24);
    }
    Rect::new(0, 0, size.width.min(MOST_COLUMNS), size.height.min(MOST_ROWS))
}

pub(super) fn terminal<B: Backend>(backend: B) -> Result<Terminal<B>, B::Error> {
    let viewport = Viewport::Fixed(drawn(backend.size()?));
    Terminal::with_options(backend, TerminalOptions { viewport })
}

/// Draws the screen, anew where the terminal's size has changed.
pub(super) fn draw<B: Backend>(terminal: &mut Terminal<B>, app: &App) -> Result<(), B::Error> {
    let area = drawn(terminal.size()?);
    if area != terminal.get_frame().area() {
        terminal.resize(area)?;
    }
    terminal.draw(|frame| tui::draw(frame, app)).map(drop)
}

/// Reads the terminal on a thread of its own: it ends with the process, since a read cannot be called off.
pub(super) fn read_keys(tell: mpsc::Sender<Told>) {
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let told = match event {
                Event::Key(key) => Told::Key(key),
                Event::Resize(..) => Told::Resized,
                _ => continue,
            };
            if tell.blocking_send(told).is_err() {
                break;
            }
        }
    });
}

pub(super) fn tell_continued(tell: mpsc::Sender<Told>) -> anyhow::Result<()> {
    let kind = SignalKind::from_raw(nix::sys::signal::Signal::SIGCONT as i32);
    let mut continued = signal(kind).context("cannot handle SIGCONT")?;
    tokio::spawn(async move {
        while continued.recv().await.is_some() && tell.send(Told::Continued).await.is_ok() {}
    });
    Ok(())
}

/// What ratatui has drawn and the terminal has not got yet. Written by the loop, which can still be stopped while a
/// terminal takes nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending(Rc<RefCell<Vec<u8>>>);

impl io::Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the terminal in raw mode and on its other screen; dropping it, in a panic too, gives the terminal back.
pub(super) struct Guard {
    /// Whether the terminal takes nothing: then only its mode is set back, which waits for nobody.
    stuck: bool,
}

impl Guard {
    pub(super) fn enter() -> anyhow::Result<Self> {
        let guard = Self { stuck: false };
        enter()?;
        // The message of a panic would be drawn over, or be lost with the other screen.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            before(panic);
        }));
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.stuck {
            let _ = disable_raw_mode();
        } else {
            leave();
        }
    }
}

/// Whether the terminal is on its other screen. Leaving that twice would put the cursor back to where it was when it was
/// entered, over what was written since.
static ENTERED: AtomicBool = AtomicBool::new(false);

fn enter() -> anyhow::Result<()> {
    enable_raw_mode().context("cannot set the terminal to raw mode")?;
    ENTERED.store(true, Ordering::Relaxed);
    execute!(io::stdout(), EnterAlternateScreen, cursor::Hide).context("cannot write to the terminal")
}

fn leave() {
    // Nothing can be done where this fails: the terminal is gone.
    let _ = disable_raw_mode();
    if !ENTERED.swap(false, Ordering::Relaxed) {
        return;
    }
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
}

/// Where the screen goes.
pub(super) trait Surface {
    /// Brings what was drawn to the terminal; false where nobody sees it any more.
    async fn show(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<bool>;

    /// Hands the terminal to the shell until continued.
    fn suspend(&mut self) -> anyhow::Result<()>;

    /// Takes the terminal back after a stop.
    fn resume(&mut self) -> anyhow::Result<()>;
}

pub(super) struct Tty<W> {
    pub(super) pending: Pending,
    pub(super) out: W,
    pub(super) guard: Guard,
}

impl<W: AsyncWrite + Unpin> Surface for Tty<W> {
    async fn show(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<bool> {
        let bytes = std::mem::take(&mut *self.pending.0.borrow_mut());
        match running::write(&mut self.out, stop, &bytes).await {
            Some(Ok(())) => Ok(true),
            // SIGHUP is on its way, or was not meant for us.
            Some(Err(error)) if super::nobody_reads(&error) => Ok(false),
            Some(Err(error)) => Err(error).context("cannot write to the terminal"),
            None => {
                self.guard.stuck = true;
                Ok(false)
            }
        }
    }

    fn suspend(&mut self) -> anyhow::Result<()> {
        leave();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTSTP).context("cannot stop")
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        enter()
    }
}

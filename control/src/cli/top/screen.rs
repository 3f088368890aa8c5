//! The terminal while it shows our screen. It is restored when the screen is dropped, and after a panic in any thread.

use std::io::{self, Stdout, stdout};
use std::process::exit;

use crossterm::cursor::{Hide, Show};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::backend::CrosstermBackend;
use ratatui::{Frame, Terminal};

/// The exit code after a panic, which is Rust's own.
const PANICKED: i32 = 101;

/// A terminal in raw mode that shows its alternate screen.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    _raw: Raw,
}

/// Restores the terminal when dropped.
struct Raw;

impl Screen {
    /// Takes over the terminal of standard input and output.
    ///
    /// # Errors
    /// There is none, or its size is unknown. It has been restored.
    pub fn open() -> io::Result<Self> {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // The message that follows must be readable on the restored screen. Whichever thread panicked, the others
            // end as well: without it they would show something untrue.
            give_back();
            hook(panic);
            exit(PANICKED);
        }));
        enable_raw_mode()?;
        let raw = Raw;
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        Ok(Self { terminal: Terminal::new(CrosstermBackend::new(stdout()))?, _raw: raw })
    }

    /// Shows what `draw` draws, at the present size of the terminal.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        give_back();
    }
}

/// Errors are ignored: a terminal that is gone needs no restoring.
fn give_back() {
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

//! The screen in a real terminal when a thread panics.

use std::process::Command;

use super::screen::Screen;
use terminal::Terminal;

// The keys and sizes are for other tests.
#[allow(dead_code, missing_docs)]
#[path = "../../../tests/support/terminal.rs"]
mod terminal;

/// Tells this test program, run again in a terminal, where to panic.
const PANIC_IN: &str = "PENSTOCK_TEST_PANIC_IN";
const MESSAGE: &str = "as the test wants it";

#[test]
fn a_panic_of_any_thread_gives_the_terminal_back() {
    for place in ["the thread that draws", "another one"] {
        let mut command = Command::new(std::env::current_exe().expect("cannot find our own program file"));
        command.args(["--exact", "cli::top::tests::panics_where_it_is_told", "--nocapture"]).env(PANIC_IN, place);
        // A backtrace would push the message off the screen.
        command.env("RUST_BACKTRACE", "0");
        let mut terminal = Terminal::start(command, 80, 24);
        terminal.until("the screen is drawn", |shown| shown.contains("press a key"));
        assert!(terminal.is_taken());
        terminal.press("x");
        let ended = terminal.wait();
        assert_eq!(ended.code(), Some(101), "{place}");
        assert!(terminal.is_given_back(), "{place}: {}", terminal.contents());
        assert!(terminal.contents().contains(MESSAGE), "{place}: {}", terminal.contents());
    }
}

/// What the test above starts.
#[test]
fn panics_where_it_is_told() {
    let Ok(place) = std::env::var(PANIC_IN) else { return };
    let mut screen = Screen::open().expect("a terminal");
    screen.draw(|frame| frame.render_widget("press a key", frame.area())).expect("it is there");
    crossterm::event::read().expect("a key");
    let panics = || -> () { panic!("{MESSAGE}") };
    if place == "another one" {
        let _ = std::thread::spawn(panics).join();
        // If the panic came back here, this thread would go on.
        loop {
            std::thread::park();
        }
    }
    panics();
}

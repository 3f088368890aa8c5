//! `top`: a running gateway, watched in a terminal.
//!
//! The main thread owns view and screen, and three threads tell it what happens: one asks the gateway, one reads keys,
//! one waits for signals. So keys are handled at once, even while the gateway is silent. Everything shown is from the
//! gateway's last answer; nothing is computed from one answer to the next.

mod screen;
mod view;

use std::io::{IsTerminal, stdin, stdout};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossterm::event;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Gateway;
use crate::control_socket::{self, Answer, Command};
use crate::history::{History, Wanted};
use crate::profile::Name;
use crate::status::Status;

use screen::Screen;
use view::{Next, View};

/// How often the gateway is asked.
const EVERY: Duration = Duration::from_secs(1);

/// The gateway's answers.
struct Answered {
    status: Status,
    /// `None` if the gateway is older than this command.
    history: Option<History>,
}

/// What the main thread is told.
enum Event {
    /// A key, or another size of the terminal.
    Terminal(event::Event),
    /// The terminal is gone.
    Lost(std::io::Error),
    /// A signal to end.
    Signal,
    /// The gateway's answer, or why there is none.
    Answer(Result<Box<Answered>>),
}

pub(super) fn top(profile: &Path, name: Option<Name>) -> Result<()> {
    let gateway = match name {
        Some(name) => Gateway { directory: control_socket::directory(), name },
        None => Gateway::of(profile)?,
    };
    if !stdin().is_terminal() || !stdout().is_terminal() {
        bail!("this needs a terminal; `penstock status` does not");
    }
    let mut view = View::new(gateway.name.to_string());
    view.take(Ok(Box::new(ask(&gateway, view.wanted())?)));

    let (events, happened) = channel();
    let (wants, wanted) = channel();
    hear_signals(events.clone())?;
    let mut screen = Screen::open().context("the terminal")?;
    let first = view.wanted();
    let (answers, keys) = (events.clone(), events);
    std::thread::spawn(move || keep_asking(&gateway, first, &wanted, &answers));
    std::thread::spawn(move || read_keys(&keys));
    loop {
        screen.draw(|frame| view.draw(frame)).context("the terminal")?;
        match happened.recv()? {
            Event::Signal => return Ok(()),
            Event::Lost(error) => return Err(error).context("the terminal"),
            Event::Answer(answer) => view.take(answer),
            Event::Terminal(event::Event::Key(key)) => match view.press(key) {
                Next::Stay => {}
                Next::Ask => wants.send(view.wanted())?,
                Next::End => return Ok(()),
            },
            // Another size; drawing notices it.
            Event::Terminal(_) => {}
        }
    }
}

fn ask(gateway: &Gateway, wanted: Wanted) -> Result<Answered> {
    let Answer::Status(status) = gateway.ask(Command::Status)? else {
        bail!("{} gave an unexpected answer", gateway.name)
    };
    let history = match gateway.ask(Command::History(wanted)) {
        Ok(Answer::History(history)) => Some(*history),
        _ => None,
    };
    Ok(Answered { status: *status, history })
}

/// Asks once a second, and at once when something else is wanted.
fn keep_asking(gateway: &Gateway, mut wanted: Wanted, wants: &Receiver<Wanted>, events: &Sender<Event>) {
    let mut asked = Instant::now();
    loop {
        match wants.recv_timeout(EVERY.saturating_sub(asked.elapsed())) {
            Ok(other) => wanted = other,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        asked = Instant::now();
        if events.send(Event::Answer(ask(gateway, wanted).map(Box::new))).is_err() {
            return;
        }
    }
}

fn read_keys(events: &Sender<Event>) {
    loop {
        let (event, lost) = match event::read() {
            Ok(event) => (Event::Terminal(event), false),
            Err(error) => (Event::Lost(error), true),
        };
        if events.send(event).is_err() || lost {
            return;
        }
    }
}

fn hear_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot handle signals")?;
    std::thread::spawn(move || signals.forever().take(1).for_each(|_| drop(events.send(Event::Signal))));
    Ok(())
}

#[cfg(test)]
mod tests;

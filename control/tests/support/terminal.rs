//! A pseudo-terminal with a program in it, and what the program shows there.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// How long a program may take to show something, or to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// The terminal's side. Dropping it kills the program.
pub struct Terminal {
    keyboard: File,
    child: Child,
    shown: Arc<Mutex<vt100::Parser>>,
    /// The terminal's settings before the program.
    before: Termios,
}

impl Terminal {
    /// Starts a program in a terminal of its own. To have the signals of a terminal, run it with `setsid --ctty`.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a pseudo-terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("it is ours");
        let slave: OwnedFd = ioctl_tiocgptpeer(&master, flags).expect("its other side");
        set_size(&master, columns, rows);
        let before = tcgetattr(&slave).expect("its settings");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let child = command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color").spawn();
        // Only the program keeps the other side open.
        drop(command);
        let child = child.expect("the program starts");

        let shown = Arc::new(Mutex::new(vt100::Parser::new(at_least_one(rows), at_least_one(columns), 0)));
        let (screen, mut output) = (Arc::clone(&shown), File::from(master.try_clone().expect("a descriptor")));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The program's end shows as an error here.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                screen.lock().expect("no panic").process(&bytes[..count]);
            }
        });
        Self { keyboard: File::from(master), child, shown, before }
    }

    /// The text of the screen.
    pub fn contents(&self) -> String {
        self.shown.lock().expect("no panic").screen().contents()
    }

    /// Waits until the screen's text satisfies a condition, and returns it.
    #[track_caller]
    pub fn until(&mut self, what: &str, like: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let contents = self.contents();
            if like(&contents) {
                return contents;
            }
            let ended = self.child.try_wait().expect("own child");
            assert!(ended.is_none() && Instant::now() < deadline, "{what}: {ended:?}\n{contents}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Makes the window larger or smaller.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.shown.lock().expect("no panic").set_size(at_least_one(rows), at_least_one(columns));
        set_size(&self.keyboard, columns, rows);
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits for the end of the program and of its output.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().expect("own child");
            // The reading thread has released it when it has read everything.
            if let Some(ended) = ended.filter(|_| Arc::strong_count(&self.shown) == 1) {
                return ended;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.contents());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether a program has the whole screen, gets keys one by one, and has hidden the cursor.
    pub fn is_taken(&self) -> bool {
        let shown = self.shown.lock().expect("no panic");
        shown.screen().alternate_screen() && shown.screen().hide_cursor() && !self.has_old_settings()
    }

    /// Whether the terminal's settings are those from before.
    pub fn is_given_back(&self) -> bool {
        let shown = self.shown.lock().expect("no panic");
        !shown.screen().alternate_screen() && !shown.screen().hide_cursor() && self.has_old_settings()
    }

    fn has_old_settings(&self) -> bool {
        let now = tcgetattr(&self.keyboard).expect("its settings");
        let modes = |t: &Termios| (t.input_modes, t.output_modes, t.control_modes, t.local_modes);
        modes(&now) == modes(&self.before)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: impl AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("it takes another size");
}

fn at_least_one(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap_or(NonZeroU16::MIN)
}

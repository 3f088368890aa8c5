//! Whether anything arrives at all. Where frames are not copied, binding has left cards in a state in which they neither
//! received nor counted anything, not even the kernel's own frames, so that no comparison of counters shows it: a driver
//! finds nothing to fill its ring with when a socket is bound, and does not look again. Attaching the program again
//! restarts such a card.

use penstock_dataplane::clock::Millis;

/// How long nothing may arrive until the card is restarted.
const RESTART_AFTER: Millis = Millis(5_000);
/// How long nothing may arrive after that, and how many handshakes have to be started meanwhile.
const PATIENCE: Millis = Millis(10_000);
const CALLS: u64 = 3;

/// What has been counted at an interface, and what was tried through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Frames that the kernel has counted.
    pub counted: u64,
    /// Frames that the program was shown.
    pub shown: u64,
    /// Handshakes that were started.
    pub calls: u64,
}

/// What has to be done about silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The card is to be restarted.
    Restart,
    /// That has not helped: this many handshakes were started in vain.
    Copy { calls: u64 },
}

/// Waits for the first frame after the ports were bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence {
    /// Since when nothing has arrived, and what had been counted by then.
    since: Option<(Millis, Arrivals)>,
    restarted: bool,
    over: bool,
}

impl Silence {
    /// Nothing is known about the time since the last counters.
    pub fn forgive(&mut self) {
        self.since = None;
    }

    /// `shown` are the frames that the program had been shown when the ports were bound.
    pub fn handle(&mut self, now: Millis, shown: u64, arrivals: Arrivals) -> Option<Need> {
        let (since, first) = *self.since.get_or_insert((now, arrivals));
        self.over |= arrivals.shown > shown || arrivals.counted > first.counted;
        let (time, calls) = (now.since(since), arrivals.calls.saturating_sub(first.calls));
        if self.over {
            None
        } else if self.restarted {
            (time >= PATIENCE && calls >= CALLS).then_some(Need::Copy { calls })
        } else {
            (time >= RESTART_AFTER).then(|| {
                (self.restarted, self.since) = (true, Some((now, arrivals)));
                Need::Restart
            })
        }
    }
}

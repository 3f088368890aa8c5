//! `penstock top` in a real terminal, with gateways under traffic.

use std::process::ExitStatus;

use crate::support::*;
use rustix::process::Signal;

/// The bars of the charts, except the empty one.
const BARS: [char; 8] =
    ['\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}'];

/// A way to end it, and its name.
type End = (&'static str, fn(&mut Terminal));

fn top(site: &Site, gateway: &Gateway) -> Terminal {
    let mut command = site.gateway.command("setsid");
    command.arg("--ctty").arg(penstock_binary().expect("checked by ready()")).args(["top", gateway.name()]);
    Terminal::start(command, 80, 24)
}

/// The line of the screen that begins with this.
fn line(shown: &str, start: &str) -> String {
    shown.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default().to_owned()
}

/// Whether it shows more than the last second.
fn has_past(line: &str) -> bool {
    line.matches(BARS).count() > 1
}

/// Past traffic is shown at once, changes are shown as they happen, and no size is too small.
#[test]
fn it_shows_what_was_and_what_is() {
    if !ready(&["setsid"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let target = topology.b.hosts()[0];
    assert!(ping(&topology.a.host, target, &["-i", "0.01", "-c", "300"]).all_answered());

    let mut terminal = top(&topology.a, &a);
    let shown = terminal.until("the peer is shown", |shown| shown.contains("at 192.0.2.2:"));
    for place in ["received", "sent", "peer-0"] {
        assert!(has_past(&line(&shown, place)), "{place} has no past:\n{shown}");
    }
    assert!(line(&shown, a.name()).contains("healthy"), "{shown}");
    assert!(line(&shown, "peer-0").contains(" direct "), "{shown}");
    assert!(shown.contains("peer-0 is reached directly"), "{shown}");
    assert!(terminal.is_taken());

    for (columns, rows) in [(40, 12), (10, 3), (1, 1), (200, 60), (80, 24)] {
        terminal.resize(columns, rows);
        // With a single cell, the only requirement is that the program survives.
        let least = usize::from(rows - 1).min(2);
        terminal.until("it is drawn again", |shown| shown.trim_end().lines().count() >= least);
    }
    terminal.until("the keys are there again", |shown| line(shown, "q end").contains("busiest first"));
    // A key is not lost either when it comes together with another size.
    for (round, seconds) in [10, 60, 1].into_iter().cycle().take(31).enumerate() {
        terminal.resize(80, if round % 2 == 0 { 23 } else { 24 });
        terminal.press("t");
        terminal.until("another scale", |shown| line(shown, a.name()).trim_end().ends_with(&format!(" {seconds} s")));
    }

    topology.a.gateway.ip("link set wan0 down\n");
    terminal
        .until("the problem", |shown| line(shown, a.name()).contains("forwards nothing") && shown.contains("! wan0"));
    topology.a.gateway.ip("link set wan0 up\n");
    terminal.until("it is well again", |shown| line(shown, a.name()).contains("healthy"));

    a.process.terminate();
    terminal.until("the gateway is gone", |shown| line(shown, a.name()).contains("is not running"));
    a.restart();
    terminal.until("the gateway is back", |shown| line(shown, a.name()).contains("healthy"));
}

/// However it ends, the terminal is restored.
#[test]
fn it_gives_the_terminal_back() {
    if !ready(&["setsid"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, _b) = pair(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let ends: [End; 5] = [
        ("q", |terminal| terminal.press("q")),
        ("Esc", |terminal| terminal.press("\u{1b}")),
        ("Ctrl-C", |terminal| terminal.press("\u{3}")),
        ("SIGTERM", |terminal| terminal.signal(Signal::TERM)),
        ("SIGHUP", |terminal| terminal.signal(Signal::HUP)),
    ];
    for (name, end) in ends {
        let mut terminal = top(&topology.a, &a);
        terminal.until("it is drawn", |shown| shown.contains("q end"));
        assert!(terminal.is_taken(), "{name}");
        end(&mut terminal);
        let ended: ExitStatus = terminal.wait();
        assert!(ended.success() && terminal.is_given_back(), "{name}: {ended}\n{}", terminal.contents());
    }

    let refused = a.command(&["top"]);
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && says.contains("this needs a terminal"), "{says}");

    a.process.terminate();
    let mut terminal = top(&topology.a, &a);
    assert_eq!(terminal.wait().code(), Some(1));
    assert!(terminal.is_given_back() && terminal.contents().contains("is not running"), "{}", terminal.contents());
}

use super::*;

use crossterm::event::KeyEvent;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use crate::history::PeerTraffic;
use crate::status::sample;

/// What the view shows on a terminal of this size.
fn screen(view: &mut View, columns: u16, rows: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    let lines = cells.chunks(columns.into()).map(|line| line.concat().trim_end().to_owned() + "\n");
    lines.collect()
}

fn press(view: &mut View, code: KeyCode) -> Next {
    view.press(KeyEvent::from(code))
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

/// Berlin, which is direct, Cadiz, which is relayed and busier, and Oslo, which is silent.
fn view() -> View {
    let mut status = sample();
    let berlin = PeerStatus { public_key: key(1), ..status.peers[0].clone() };
    let cadiz = PeerStatus {
        name: "cadiz".into(),
        public_key: key(2),
        path: PathKind::Relay,
        relay: Some("coordinator".into()),
        reason: Some("UDP is blocked here".into()),
        ..berlin.clone()
    };
    let oslo =
        PeerStatus { name: "oslo".into(), public_key: key(3), path: PathKind::None, reason: None, ..berlin.clone() };
    status.peers = vec![berlin, cadiz, oslo];
    let traffic = |rates: [f32; 4]| Traffic { received: rates.to_vec(), sent: vec![0.0; 4] };
    let peer = |number, rates| PeerTraffic { public_key: key(number), traffic: traffic(rates) };
    let history = History {
        seconds: 1,
        total: traffic([0.0, 125e6, 0.0, 250e6]),
        dropped: vec![0.0, 0.0, 0.0, 4.0],
        load: vec![0.0, 0.5, 0.0, 1.0],
        peers: vec![peer(1, [0.0, 50e3, 0.0, 100e3]), peer(2, [0.0, 0.0, 125e6, 250e6])],
        drops: BTreeMap::from([("replayed".into(), 4.0)]),
        loads: vec![1.0, 0.04],
    };
    let mut view = View::new("amsterdam".into());
    view.take(Ok(Box::new(Answered { status, history: Some(history) })));
    view
}

#[test]
fn a_screen_of_80_by_24_shows_all_of_it() {
    let shown = screen(&mut view(), 80, 24);
    let lines: Vec<&str> = shown.lines().collect();
    let line = |start: &str| *lines.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{shown}"));
    assert_eq!(line(" amsterdam"), " amsterdam  Penstock 0.1.0  degraded, problems: 1  a column is 1 s");
    assert_eq!(line(" port"), " port 47100  WAN xdp  LAN tun  NAT unknown  coordinator connected");
    assert!(line(" received").contains("2.0 Gbit/s") && line(" sent").contains("0 bit/s"), "{shown}");
    assert!(line(" busiest worker").contains("100 %") && line(" busiest worker").ends_with("\u{2584} \u{2588}"));
    assert_eq!(line("  workers"), "  workers: 100 %  4 %");
    assert!(line(" dropped").contains("4 /s") && line(" dropped").ends_with('\u{2588}'), "{shown}");
    assert_eq!(line("  by reason"), "  by reason: replayed 3 (+4/s)");
    assert_eq!(line(" ! "), " ! eth1: there is no interface eth1");
    let berlin = ["berlin", "direct", "1.5 ms", "800.0 kbit/s", "0 bit/s", "\u{2584} \u{2588}"];
    let [name, path, trip, received, sent, both] = berlin;
    assert_eq!(line(name), format!("{name:<16} {path:<15} {trip:<8} {received:<12} {sent:<12} {both:>12}"));
    assert!(line("cadiz").starts_with("cadiz            relay coordinat 1.5 ms   2.0 Gbit/s"), "{shown}");
    assert_eq!(line("oslo"), "oslo             none            1.5 ms   -            -");
    assert_eq!(line(" berlin"), " berlin is reached directly: the peer answers directly");
    assert!(line(" at 192.0.2.2:47100").contains(", aes-256-gcm, MTU 1340, path"));
    assert!(line(" q end").contains("busiest first"));
    assert_eq!(lines.len(), 24);
}

#[test]
fn every_size_is_drawn_and_the_most_important_stays() {
    for (columns, rows) in [(0, 0), (1, 1), (1, 50), (200, 1), (3, 7), (29, 12), (31, 9), (500, 100)] {
        let mut view = view();
        let shown = screen(&mut view, columns.max(1), rows.max(1));
        assert_eq!(shown.lines().count(), usize::from(rows.max(1)));
        view.answered = None;
        screen(&mut view, columns.max(1), rows.max(1));
    }
    let shown = screen(&mut view(), 80, 4);
    assert!(shown.contains("amsterdam") && shown.contains("berlin") && shown.contains("eth1"), "{shown}");
    for height in 0..60 {
        assert_eq!(sections(height, 9).values().sum::<u16>(), height);
    }
}

#[test]
fn keys_select_peers_order_them_and_change_the_scale() {
    let mut view = view();
    let selected = |view: &mut View| {
        let shown = screen(view, 80, 24);
        let line = shown.lines().find(|line| line.starts_with(' ') && line.contains(" is re")).map(str::to_owned);
        line.or_else(|| shown.contains(" oslo is not reached").then(|| "oslo".to_owned())).expect("a selected peer")
    };
    assert_eq!(press(&mut view, KeyCode::Down), Next::Stay);
    assert_eq!(selected(&mut view), " cadiz is relayed: UDP is blocked here");
    press(&mut view, KeyCode::End);
    press(&mut view, KeyCode::Down);
    assert_eq!(selected(&mut view), "oslo");
    press(&mut view, KeyCode::Char('b'));
    assert_eq!(selected(&mut view), "oslo");
    press(&mut view, KeyCode::Home);
    assert!(selected(&mut view).starts_with(" cadiz"), "the busiest is the first");
    press(&mut view, KeyCode::PageDown);
    press(&mut view, KeyCode::PageUp);
    assert!(selected(&mut view).starts_with(" cadiz"));

    let scales = [(); 3].map(|()| {
        assert_eq!(press(&mut view, KeyCode::Char('t')), Next::Ask);
        view.wanted().seconds
    });
    assert_eq!(scales, [10, 60, 1]);
    for end in [KeyEvent::from(KeyCode::Char('q')), KeyEvent::from(KeyCode::Esc), ctrl_c()] {
        assert_eq!(view.press(end), Next::End);
    }
    assert_eq!(press(&mut view, KeyCode::Char('c')), Next::Stay);
}

fn ctrl_c() -> KeyEvent {
    KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)
}

#[test]
fn a_gateway_that_does_not_answer_leaves_its_last_answer() {
    let mut view = view();
    view.take(Err(anyhow::anyhow!("amsterdam is not running")));
    let shown = screen(&mut view, 80, 24);
    assert!(shown.starts_with(" amsterdam  Penstock 0.1.0  amsterdam is not running"), "{shown}");
    assert!(shown.contains("cadiz"));
    // An answer from a gateway older than this command, and one without peers.
    let status = Status { peers: Vec::new(), ..sample() };
    view.take(Ok(Box::new(Answered { status, history: None })));
    let shown = screen(&mut view, 80, 24);
    assert!(shown.contains(" received                   -") && !shown.contains("cadiz"), "{shown}");
}

#[test]
fn names_cannot_steer_the_terminal() {
    let mut view = view();
    let mut answered = view.answered.take().unwrap();
    answered.status.peers[0].name = "a\u{1b}[2Jb\nc".into();
    view.take(Ok(answered));
    assert!(screen(&mut view, 80, 24).contains("a[2Jbc"));
}

#[test]
fn rates_are_in_bits() {
    let shown = [0.0, 100.0, 124.99, 125.0, 125e3, 2.5e9, 1e15].map(|rate| bits(Some(rate)));
    assert_eq!(
        shown,
        ["0 bit/s", "800 bit/s", "1.0 kbit/s", "1.0 kbit/s", "1.0 Mbit/s", "20.0 Gbit/s", "8000.0 Tbit/s"]
    );
    assert_eq!(bits(None), "-");
}

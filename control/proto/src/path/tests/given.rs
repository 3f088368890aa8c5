//! A peer whose address is given: only sizes are searched for, and only if it answers.

use super::*;
use crate::pmtu::TooBig;
use crate::pmtu::constants::HINT_LIFETIME;

/// What a session may cost with a peer that answers nothing.
const ASKED: usize = 6;
const STEP: Duration = Duration::from_millis(20);

/// A bench whose peer is at port 7, on a link of 1500 bytes.
fn given_bench(session: Option<u32>) -> Bench {
    let mut bench = bench();
    bench.agent.remove_peer(&bench.peer);
    bench.set_link(1500);
    bench.give_endpoint(from(7), session);
    bench
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Bench {
    fn give_endpoint(&mut self, at: SocketAddr, session: Option<u32>) {
        self.agent.set_endpoint(self.now, &self.peer, at.into(), session).unwrap();
    }

    fn mtu(&self) -> (u16, MtuSource) {
        self.agent.mtu(&self.peer).map(|mtu| (mtu.outer, mtu.source)).unwrap()
    }

    /// Sends data all the time to the peer, which answers pings and sizes up to this one; returns what was sent.
    fn busy(&mut self, span: Duration, answered: Option<u16>) -> Vec<PathTransmit> {
        let end = self.now + span;
        let mut all = Vec::new();
        while self.now < end {
            let traffic = Traffic { sent_any: true, sent_data: true, ..Traffic::default() };
            self.agent.handle_traffic(self.now, &self.peer, traffic);
            self.agent.handle_timeout(self.now);
            let sent = self.opened();
            for (sent, probe) in &sent {
                let answer = match probe {
                    Probe::Ping(ping) => Probe::Pong(Pong { transaction: ping.transaction, seen: from(9) }),
                    Probe::SizedPing(check) => Probe::SizedPong(*check),
                    other => panic!("{other:?} was not asked for"),
                };
                if answered.is_some_and(|outer| sent.bytes.len() + 28 <= usize::from(outer)) {
                    self.give(sent.to, &answer).unwrap();
                }
            }
            all.extend(sent.into_iter().map(|(sent, _)| sent));
            self.now += STEP;
        }
        all
    }
}

#[test]
fn a_plain_peer_is_asked_a_few_times_in_a_session_and_has_the_links_mtu() {
    let mut bench = given_bench(None);
    assert!(bench.busy(seconds(60), None).is_empty(), "there is no session");
    for session in 1..4 {
        bench.give_endpoint(from(7), Some(session));
        let sent = bench.busy(seconds(120), None);
        assert_eq!(sent.len(), ASKED);
        assert!(sent.iter().all(|sent| sent.to == from(7) && sent.bytes.len() == PROBE_LENGTH));
        assert_eq!(bench.mtu(), (1500, MtuSource::Link));
    }
    bench.give_endpoint(from(8), Some(3));
    let sent = bench.busy(seconds(120), None);
    assert_eq!(sent.iter().filter(|sent| sent.to == from(8)).count(), ASKED, "where it is now");
    assert_eq!(sent.len(), ASKED);
    bench.set_link(1400);
    assert_eq!(bench.mtu(), (1400, MtuSource::Link));
}

#[test]
fn a_plain_peer_has_what_routers_prove_for_a_while() {
    let mut bench = given_bench(Some(1));
    let data = [&[4, 0, 0, 0, 7, 0, 0, 0][..], &[9; 40]].concat();
    let told = TooBig { to: from(7), mtu: 1400, length: 1500, payload: &data };
    for (wrong, receiver) in [
        (told, 8),
        (TooBig { to: from(8), ..told }, 7),
        (TooBig { length: 1400, ..told }, 7),
        (TooBig { mtu: 0, ..told }, 7),
        (TooBig { payload: &data[..7], ..told }, 7),
        (TooBig { payload: &[1; 60], ..told }, 7),
        (TooBig { payload: &[], ..told }, 7),
    ] {
        bench.agent.handle_too_big(bench.now, &wrong, |_, index| index == receiver);
        assert_eq!(bench.mtu(), (1500, MtuSource::Link), "{wrong:?}");
    }
    bench.agent.handle_too_big(bench.now, &told, |_, index| index == 7);
    assert_eq!(bench.mtu(), (1400, MtuSource::Icmp));
    bench.set_link(1300);
    assert_eq!(bench.mtu(), (1300, MtuSource::Link));
    bench.set_link(1500);
    bench.busy(seconds(60), None);
    bench.give_endpoint(from(8), Some(2));
    bench.busy(seconds(60), None);
    assert_eq!(bench.mtu(), (1400, MtuSource::Icmp), "whatever becomes of the pings, and at whatever port");
    bench.run(HINT_LIFETIME);
    assert_eq!(bench.mtu(), (1500, MtuSource::Link), "with and without traffic");
    bench.agent.handle_too_big(bench.now, &TooBig { to: from(8), ..told }, |_, index| index == 7);
    assert_eq!(bench.mtu(), (1400, MtuSource::Icmp));
    bench.give_endpoint(([192, 0, 2, 2], 8).into(), Some(2));
    assert_eq!(bench.mtu(), (1500, MtuSource::Link), "of another path");
}

#[test]
fn a_peer_that_answers_has_its_path_measured_and_a_shrinking_one_recovers() {
    let mut bench = given_bench(Some(1));
    bench.busy(seconds(2), Some(1500));
    assert_eq!(bench.mtu(), (1500, MtuSource::Probed));
    bench.busy(seconds(2), Some(1410));
    let (outer, source) = bench.mtu();
    assert!((1400..=1410).contains(&outer) && source == MtuSource::Probed, "{outer}");
    // Without traffic there are no probes, until the next session.
    bench.run(seconds(5));
    assert!(bench.run(seconds(3600)).is_empty());
    bench.give_endpoint(from(7), Some(2));
    assert_eq!(bench.transmits().len(), 1);
}

#[test]
fn a_path_that_fails_keeps_its_size_and_is_not_flooded() {
    let mut bench = given_bench(Some(1));
    bench.busy(seconds(5), Some(1410));
    let before = bench.mtu();
    bench.busy(seconds(5), None);
    let sent = bench.busy(seconds(60), None);
    assert!((50..70).contains(&sent.len()), "{} pings, one a second", sent.len());
    assert!(sent.iter().all(|sent| !sent.dont_fragment), "and no sizes");
    assert_eq!(bench.mtu(), before);
    for _ in 0..100 {
        bench.busy(STEP, Some(1410));
        assert_eq!(bench.mtu(), before, "as it was");
    }
    bench.busy(seconds(2), Some(1390));
    let (outer, source) = bench.mtu();
    assert!(outer <= 1390 && source == MtuSource::Probed, "and watched as before: {outer}");
}

#[test]
fn a_peer_that_has_become_a_plain_one_has_the_links_mtu_again() {
    let mut bench = given_bench(Some(1));
    bench.busy(seconds(5), Some(1410));
    assert_eq!(bench.mtu().1, MtuSource::Probed);
    bench.give_endpoint(from(7), Some(2));
    assert_eq!(bench.mtu().1, MtuSource::Probed, "for now");
    let sent = bench.busy(seconds(120), None);
    assert_eq!(sent.iter().filter(|sent| !sent.dont_fragment).count(), ASKED);
    assert_eq!(bench.mtu(), (1500, MtuSource::Link));
    // And a Penstock again, whose pings are the first sign of it.
    bench.give(from(7), &ping(5)).unwrap();
    bench.transmits().drain(..1);
    bench.busy(seconds(5), Some(1410));
    bench.give(from(7), &ping(6)).unwrap();
    let asked = bench.opened();
    assert!(matches!(asked[..], [(_, Probe::Pong(_)), (_, Probe::Ping(_))]), "{asked:?}");
}

#[test]
fn a_ping_from_elsewhere_is_answered_and_moves_nothing() {
    let mut bench = given_bench(Some(1));
    bench.busy(seconds(2), Some(1500));
    bench.run(Duration::ZERO);
    for (number, flag) in [(1, false), (2, true)] {
        let opened = flag.then_some(7);
        let ping = Ping { transaction: number, opened, birthday: flag, selected: flag, round: 3 };
        bench.give(from(8), &Probe::Ping(ping)).unwrap();
        let sent = bench.opened();
        assert!(matches!(sent[..], [(PathTransmit { to, .. }, Probe::Pong(_))] if to == from(8)), "{sent:?}");
    }
    assert!(bench.busy(seconds(10), Some(1500)).iter().all(|sent| sent.to == from(7)));
    let events: Vec<PathEvent> = std::iter::from_fn(|| bench.agent.poll_event()).collect();
    let of_sizes = |event: &PathEvent| matches!(event, PathEvent::Mtu { .. });
    let after_removal = events.iter().skip_while(|event| !of_sizes(event));
    assert!(after_removal.clone().count() > 0 && after_removal.clone().all(of_sizes), "{events:?}");
}

#[test]
fn a_peer_that_moves_keeps_its_size_until_the_new_path_is_measured() {
    let mut bench = given_bench(Some(1));
    bench.busy(seconds(5), Some(1410));
    let (outer, _) = bench.mtu();
    bench.give_endpoint(from(8), Some(1));
    assert_eq!(bench.mtu(), (outer, MtuSource::Probed), "only the port is new");
    bench.transmits();
    let elsewhere: SocketAddr = ([192, 0, 2, 2], 7).into();
    bench.give_endpoint(elsewhere, Some(1));
    assert_eq!(bench.mtu(), (outer, MtuSource::Previous));
    assert!(bench.busy(seconds(2), Some(1500)).iter().all(|sent| sent.to == elsewhere));
    assert_eq!(bench.mtu(), (1500, MtuSource::Probed));
}

#[test]
fn probes_leave_from_the_address_that_the_peer_calls() {
    let mut bench = given_bench(Some(1));
    let local = Some([198, 51, 100, 7].into());
    let called = Endpoint { remote: from(7), local };
    bench.transmits();
    bench.agent.set_endpoint(bench.now, &bench.peer, called, Some(1)).unwrap();
    let sent = bench.busy(seconds(2), Some(1500));
    assert!(sent.len() > 8 && sent.iter().all(|sent| sent.local == local), "{sent:?}");
}

#[test]
fn peers_that_are_gone_are_not_answered() {
    let mut bench = given_bench(Some(1));
    bench.agent.retain_peers(|key| *key == bench.peer);
    assert_eq!(bench.give(from(7), &ping(1)), Ok(()));
    bench.agent.retain_peers(|_| false);
    assert_eq!(bench.give(from(7), &ping(2)), Err(ProbeReject::Sender));
    assert!(bench.agent.poll_timeout().is_none());
}

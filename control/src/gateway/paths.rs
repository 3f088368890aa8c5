//! Tells the coordinator how peers are reached, as often as it wants to know.

use std::time::{Duration, Instant};

use penstock_proto::coordination::limits::PATHS_LIMIT;
use penstock_proto::coordination::{PathKind, PathReport, Paths, Reports};
use penstock_proto::path::Path;

use super::Gateway;
use super::peers::Peer;
use crate::history::Wanted;

/// The shortest interval at which reports are sent.
const SHORTEST: Duration = Duration::from_secs(5);
/// The number of seconds over which rates are averaged.
const RATES_OVER: Wanted = Wanted { seconds: 10, points: 1 };

/// Which reports the coordinator has asked for, and when the last one was sent.
#[derive(Debug, Default)]
pub struct Reporting {
    wanted: Option<Reports>,
    last: Option<Instant>,
}

impl Reporting {
    /// The coordinator has asked; or nobody asks any more, because the connection is gone.
    pub fn ask(&mut self, wanted: Option<Reports>) {
        *self = Self { wanted, last: None };
    }

    fn is_due(&self, now: Instant) -> bool {
        let Some(Reports { every }) = self.wanted else { return false };
        let every = Duration::from_secs(every.into()).max(SHORTEST);
        self.last.is_none_or(|last| now >= last + every)
    }
}

/// Sends the coordinator a report, if one is due.
pub fn send_report(gateway: &mut Gateway, now: Instant) {
    let Some(overlay) = gateway.overlay.as_mut().filter(|overlay| overlay.reporting.is_due(now)) else { return };
    overlay.reporting.last = Some(now);
    let overlay = &*overlay;
    let rates = gateway.history.answer(&RATES_OVER).peers;
    let latest = |points: &[f32]| points.last().map_or(0, |rate| *rate as u64);
    let report = |peer: &Peer| {
        let found = peer.found?;
        let (path, relay) = match found.path {
            Path::Direct { .. } => (PathKind::Direct, None),
            Path::Relay { .. } => (PathKind::Relay, overlay.relay_of(peer)),
            Path::None => (PathKind::None, None),
        };
        let traffic = rates.iter().find(|rate| rate.public_key == peer.public_key).map(|rate| &rate.traffic);
        let round_trip = overlay.traversal.round_trip(&peer.public_key.into());
        Some(PathReport {
            peer: (*peer.public_key.as_bytes()).into(),
            path,
            relay: relay.and_then(|name| name.parse().ok()),
            reason: found.reason.to_string(),
            round_trip: round_trip.map(|time| u32::try_from(time.as_micros()).unwrap_or(u32::MAX)),
            received: traffic.map_or(0, |traffic| latest(&traffic.received)),
            sent: traffic.map_or(0, |traffic| latest(&traffic.sent)),
        })
    };
    let mut paths: Vec<PathReport> = gateway.handshakes.peers.iter().filter_map(report).collect();
    paths.sort_by_key(|path| std::cmp::Reverse(path.received.saturating_add(path.sent)));
    paths.truncate(PATHS_LIMIT);
    overlay.client.report(Paths { paths });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_sent_only_on_request_and_not_more_often() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut reporting = Reporting::default();
        assert!(!reporting.is_due(start));
        reporting.ask(Some(Reports { every: 10 }));
        assert!(reporting.is_due(start), "at once");
        reporting.last = Some(start);
        assert!(!reporting.is_due(at(9)) && reporting.is_due(at(10)));
        reporting.ask(Some(Reports { every: 0 }));
        reporting.last = Some(start);
        assert!(!reporting.is_due(at(4)) && reporting.is_due(at(5)), "a coordinator cannot ask for more");
        reporting.ask(None);
        assert!(!reporting.is_due(at(60)));
    }
}

//! Leases and dates, with clocks that stop, jump and lie.

use std::time::Duration;

use penstock_proto::trust::{
    DocumentRefusal, LeaseLength, LeaseStanding, Lessor, PeerReason, Serial, UnixTime, Validity,
};

use super::overlay::{DAY, Gateway, Overlay, START, grant, key, peer, signing_key};

const WEEK: Duration = Duration::from_secs(7 * 86_400);

fn pair(length: LeaseLength) -> (Overlay, Gateway) {
    let mut overlay = Overlay::new(length);
    overlay.approve(1, &[]);
    overlay.approve(2, &["10.2.0.0/16"]);
    let mut gateway = Gateway::new(1, &overlay);
    assert!(gateway.learn(&overlay.told()).refused.is_empty());
    (overlay, gateway)
}

const END: UnixTime = UnixTime(START.0 + 30 * 86_400);

/// A site 2 that ends after 30 days. The gateway has not been told anything yet.
fn dated(length: LeaseLength, from: Option<UnixTime>) -> (Overlay, Gateway) {
    let mut overlay = Overlay::new(length);
    overlay.approve(1, &[]);
    let mut site = grant(2, &[]);
    site.validity = Validity::new(from, Some(END)).unwrap();
    overlay.authority.approve(START, site).unwrap();
    let gateway = Gateway::new(1, &overlay);
    (overlay, gateway)
}

/// The standing of site 2.
fn standing(gateway: &mut Gateway) -> Result<LeaseStanding, PeerReason> {
    let admission = gateway.admit([peer(2, &[])]);
    match admission.peers.get(&key(2)) {
        Some(admitted) => Ok(admitted.lease),
        None => Err(admission.refused[&key(2)]),
    }
}

#[test]
fn a_lease_warns_at_half_and_ends() {
    let (_, mut gateway) = pair(LeaseLength::DEFAULT);
    let mut seen = vec![standing(&mut gateway)];
    while let Some(next) = gateway.verifier.next_change(gateway.now()) {
        gateway.run(next - Duration::from_nanos(1));
        assert_eq!(
            std::mem::discriminant(&standing(&mut gateway)),
            std::mem::discriminant(seen.last().unwrap()),
            "nothing changes before it is said to"
        );
        gateway.run(Duration::from_nanos(1));
        seen.push(standing(&mut gateway));
    }
    let half = WEEK / 2;
    let (fresh, half) = (LeaseStanding::Fresh { left: WEEK }, LeaseStanding::Half { left: half });
    assert_eq!(seen, [Ok(fresh), Ok(half), Err(PeerReason::LeaseEnded)]);
}

#[test]
fn a_renewal_begins_anew_and_a_repetition_does_not() {
    let (mut overlay, mut gateway) = pair(LeaseLength::DEFAULT);
    let first = overlay.told();
    gateway.learn(&first);
    gateway.run(6 * DAY);
    assert!(!gateway.learn(&first).changed);
    assert_eq!(standing(&mut gateway), Ok(LeaseStanding::Half { left: DAY }));
    overlay.now.0 += 6 * 86_400;
    gateway.learn(&overlay.told());
    assert_eq!(gateway.learn(&first).refused, [DocumentRefusal::Old; 2], "both leases");
    gateway.run(WEEK);
    gateway.learn(&first);
    assert_eq!(standing(&mut gateway), Err(PeerReason::LeaseEnded));
}

#[test]
fn never_is_never() {
    let (_, mut gateway) = pair(LeaseLength::Never);
    gateway.run(4_000 * DAY);
    assert_eq!(standing(&mut gateway), Ok(LeaseStanding::Never));
    assert_eq!(gateway.verifier.next_change(gateway.now()), None);
}

#[test]
fn the_authority_limits_what_a_coordinator_may_promise() {
    let (mut overlay, mut gateway) = pair(LeaseLength::Never);
    let certificate = overlay.authority.certify(START, overlay.lessor.key(), LeaseLength::from(3_600)).unwrap();
    gateway.learn(&certificate);
    assert_eq!(standing(&mut gateway), Ok(LeaseStanding::Fresh { left: Duration::from_secs(3_600) }));
    gateway.run(Duration::from_secs(3_600));
    assert_eq!(standing(&mut gateway), Err(PeerReason::LeaseEnded));
}

#[test]
fn another_lease_key_ends_the_leases_of_the_first() {
    let (mut overlay, mut gateway) = pair(LeaseLength::DEFAULT);
    let stolen = overlay.told();
    let mut lessor = Lessor::new(signing_key(4), LeaseLength::DEFAULT, Serial(0));
    let certificate = overlay.authority.certify(START, lessor.key(), LeaseLength::DEFAULT).unwrap();
    gateway.learn(&certificate);
    assert_eq!(standing(&mut gateway), Err(PeerReason::Unleased));
    assert!(gateway.learn(&stolen).refused.contains(&DocumentRefusal::Signature));
    assert_eq!(standing(&mut gateway), Err(PeerReason::Unleased));
    gateway.learn(&[lessor.lease(START, key(2))]);
    assert!(standing(&mut gateway).is_ok());
}

#[test]
fn a_jump_of_the_clock_alone_ends_nothing() {
    let (mut overlay, mut gateway) = dated(LeaseLength::DEFAULT, None);
    gateway.learn(&overlay.told());
    for jump in [UnixTime(0), UnixTime(START.0 + 3_000 * 86_400), UnixTime(u64::MAX), START] {
        gateway.wall = jump;
        assert!(standing(&mut gateway).is_ok(), "{jump:?}");
        gateway.restart(Duration::ZERO);
        gateway.wall = jump;
        gateway.learn(&overlay.told());
        assert!(standing(&mut gateway).is_ok(), "{jump:?}, after a restart");
    }
}

#[test]
fn a_coordinator_that_lies_about_the_date_ends_nothing() {
    let (mut overlay, mut gateway) = dated(LeaseLength::DEFAULT, None);
    overlay.now = UnixTime(START.0 + 3_000 * 86_400);
    gateway.learn(&overlay.told());
    assert!(standing(&mut gateway).is_ok());
}

#[test]
fn a_statement_begins_and_ends() {
    let from = UnixTime(START.0 + 3_600);
    let (mut overlay, mut gateway) = dated(LeaseLength::Never, Some(from));
    gateway.learn(&overlay.told());
    let mut seen = vec![standing(&mut gateway)];
    let mut ran = Duration::ZERO;
    while let Some(next) = gateway.verifier.next_change(gateway.now()) {
        gateway.run(next);
        ran += next;
        seen.push(standing(&mut gateway));
    }
    assert_eq!(seen, [Err(PeerReason::NotYet), Ok(LeaseStanding::Never), Err(PeerReason::Ended)]);
    assert_eq!(ran, 30 * DAY);
    // With its own clock back in the past, as after a start without a battery, the gateway still knows better.
    gateway.restart(Duration::ZERO);
    gateway.wall = UnixTime(0);
    assert_eq!(standing(&mut gateway), Err(PeerReason::Ended));
    assert!(Validity::new(Some(END), Some(from)).is_err());
}

#[test]
fn leases_count_the_hours_that_a_gateway_runs() {
    let (_, mut gateway) = pair(LeaseLength::DEFAULT);
    for _ in 0..3 {
        gateway.run(2 * DAY);
        gateway.restart(30 * DAY);
    }
    assert_eq!(standing(&mut gateway), Ok(LeaseStanding::Half { left: DAY }));
    gateway.run(DAY);
    assert_eq!(standing(&mut gateway), Err(PeerReason::LeaseEnded));
}

#[test]
fn a_lease_of_nobody_is_refused() {
    let (mut overlay, mut gateway) = pair(LeaseLength::DEFAULT);
    let lease = overlay.lessor.lease(START, key(3));
    assert_eq!(gateway.learn(&[lease]).refused, [DocumentRefusal::Unstated(key(3))]);
    let mut fresh = Gateway::new(1, &overlay);
    let lease = overlay.lessor.lease(START, key(2));
    assert_eq!(fresh.learn(&[lease]).refused, [DocumentRefusal::Uncertified]);
}

#[test]
fn renewals_come_well_before_the_warning() {
    assert_eq!(LeaseLength::DEFAULT.duration(), Some(WEEK));
    assert_eq!(LeaseLength::DEFAULT.renewal(), WEEK / 8);
    assert_eq!(LeaseLength::Never.renewal(), DAY);
    assert!(LeaseLength::Never > LeaseLength::from(u32::MAX));
}

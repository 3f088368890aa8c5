//! Between the coordinator and the other parts: what it says about other sites becomes peers, what it says about this
//! site becomes its address.

use std::time::Instant;

use super::overlay::{Input, Outcome, Overlay};
use super::{Gateway, wanted};

/// Takes an input for the overlay.
pub fn handle_input(gateway: &mut Gateway, now: Instant, input: Input) {
    let Some(overlay) = &mut gateway.overlay else { return };
    match overlay.handle_input(now, input) {
        Outcome::Nothing => {}
        Outcome::Map => apply(gateway, now),
        Outcome::Servers => {
            apply(gateway, now);
            gateway.due.ground = true;
        }
        Outcome::Address => take_address(gateway),
    }
}

/// Makes peers of the coordinator's map.
pub fn apply(gateway: &mut Gateway, now: Instant) {
    if let Some(overlay) = &mut gateway.overlay {
        overlay.judge(now);
        let surroundings =
            wanted::surroundings(&gateway.site, &gateway.handshakes.peers, overlay, gateway.ground.network());
        overlay.apply(now, &mut gateway.handshakes, surroundings);
    }
}

/// Takes the address that the coordinator assigns, unless the profile has one.
pub fn take_address(gateway: &mut Gateway) {
    let Some(address) = gateway.overlay.as_ref().and_then(Overlay::address) else { return };
    if !gateway.site.own_address && gateway.site.virtual_addresses != [address] {
        gateway.site.virtual_addresses = vec![address];
        gateway.due.table |=
            gateway.plane.follow_hops(gateway.ground.network(), &gateway.site.virtual_addresses, gateway.site.behind());
        gateway.due.ground = true;
    }
}

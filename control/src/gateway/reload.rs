//! Another profile for the running gateway. Each part takes up what is its own and leaves alone what is unchanged: a
//! peer with unchanged settings keeps its session and loses no packet, unless port, workers or a mode change. What `wg
//! set` changed and nobody saved is undone, as by a restart.

use std::collections::BTreeSet;
use std::time::Instant;

use super::due::Due;
use super::overlay::Overlay;
use super::peers::Peer;
use super::plane::{MARK, PORT};
use super::site::Site;
use super::standing::note_refused;
use super::unsaved::unsaved;
use super::{Gateway, bypass, configure, map, network};
use crate::control_socket::Reloaded;
use crate::ground::{Changed, Origin};
use crate::problem::Severity;
use crate::profile::{self, Endpoint, Environment, Profile};
use crate::uapi::{self, SetAllowedIp, SetPeer};

/// The subject of the problem that the profile on disk is not the one in force.
const PROFILE: &str = "profile";
/// The only field that a running gateway cannot take up.
const NAME: &str = "Name";

/// Reads the profile again and makes it the one in force.
///
/// # Errors
/// What is wrong with it, with line and column. Nothing was changed then.
pub fn reload(gateway: &mut Gateway, now: Instant) -> Result<Reloaded, String> {
    match Profile::load(&gateway.profile.path, &Environment::of_process()) {
        Ok(profile) => {
            gateway.problems.solved(PROFILE);
            Ok(take_up(gateway, now, profile))
        }
        Err(error) => {
            let sentence = format!("it cannot be reloaded, and the previous one stays in force: {error}");
            gateway.problems.note(now, PROFILE, &sentence, "fix what is named, and reload");
            Err(error.to_string())
        }
    }
}

fn take_up(gateway: &mut Gateway, now: Instant, mut profile: Profile) -> Reloaded {
    let before = gateway.plane.problems(now);
    let mut reloaded = Reloaded::default();
    keep_name(gateway, now, &mut profile, &mut reloaded);
    reloaded.changed = changed_fields(gateway, &profile);
    if gateway.site.private_key != profile.private_key {
        gateway.handshakes.set_private_key(&profile.private_key);
        gateway.guard.set_key(&profile.private_key);
    }
    if gateway.site.mark != profile.mark {
        gateway.handshakes.set_mark(now, profile.mark);
    }
    reloaded.changed.extend(follow_peers(gateway, now, &profile.peers));
    note_refused(&mut gateway.problems, now, gateway.guard.profile_changed(&profile.remote()));
    gateway.site = Site::of(&profile);
    gateway.ground.set_interest(now, gateway.site.placement(&profile.path).interest());
    gateway.plane.reload(now, &profile, gateway.ground.network());
    bypass::judge_again(gateway, now);
    gateway.handshakes.set_own_speeds(gateway.plane.speeds());
    Overlay::reload(&mut gateway.overlay, now, &profile, &mut gateway.handshakes);
    gateway.metrics.reload(now, profile.metrics);
    gateway.profile = profile;
    map::take_address(gateway);
    gateway.due.add(Due::PEERS);
    network::changed(gateway, now, &Changed::everything());
    gateway.follow_up(now);
    // An interface that was down before has nothing to do with the profile.
    let known = |subject: &str| ![PORT, MARK].contains(&subject) && before.iter().any(|p| p.subject == subject);
    let new = gateway.plane.problems(now).into_iter().filter(|problem| !known(&problem.subject));
    // A warning is about something that is in force.
    let new = new.chain(gateway.metrics.problems(now)).filter(|problem| problem.severity == Severity::Error);
    reloaded.not_applied.extend(new.map(|problem| format!("{}: {}", problem.subject, problem.sentence)));
    match reloaded.changed.as_slice() {
        [] => tracing::info!("the profile was reloaded; nothing has changed"),
        changed => tracing::info!("the profile was reloaded; changed: {}", changed.join(", ")),
    }
    reloaded
}

/// The changed fields outside `Peers`, including those that `wg set` had changed.
fn changed_fields(gateway: &Gateway, profile: &Profile) -> Vec<String> {
    let mut fields = gateway.profile.fields_that_differ(profile);
    let undone = unsaved(gateway);
    let undone = [
        ("PrivateKeyFile", undone.private_key.is_some()),
        ("LocalPort", undone.local_port.is_some()),
        ("FwMark", undone.mark.is_some()),
    ];
    for (field, _) in undone.into_iter().filter(|(_, undone)| *undone) {
        if !fields.iter().any(|known| known == field) {
            fields.push(field.to_owned());
        }
    }
    fields
}

/// The tun device, sockets, lock and files carry the name, so it stays until the next start.
fn keep_name(gateway: &mut Gateway, now: Instant, profile: &mut Profile, reloaded: &mut Reloaded) {
    if profile.name == gateway.site.name {
        gateway.problems.solved(NAME);
        return;
    }
    let sentence =
        format!("the profile says {}, but a running gateway keeps its name {}", profile.name, gateway.site.name);
    gateway.problems.note(now, NAME, &sentence, "stop the gateway under its old name, and start it again");
    reloaded.not_applied.push(format!("{NAME}: {sentence}"));
    profile.name = gateway.site.name.clone();
}

/// Makes the peers those of the profile; returns what was changed.
fn follow_peers(gateway: &mut Gateway, now: Instant, wanted: &[profile::Peer]) -> Vec<String> {
    let Gateway { handshakes, overlay, .. } = gateway;
    let mut changed = Vec::new();
    let kept: BTreeSet<_> = wanted.iter().map(|peer| peer.public_key).collect();
    // A peer of the map that the profile now names starts again as one of the profile.
    let gone = |peer: &&Peer| (peer.origin == Origin::Overlay) == kept.contains(&peer.public_key);
    let gone: Vec<_> = handshakes.peers.iter().filter(gone).map(|peer| (peer.id, peer.label())).collect();
    for (id, label) in gone {
        configure::remove(handshakes, overlay.as_mut(), id);
        changed.push(format!("peer {label} removed"));
    }
    for given in wanted {
        let Some(peer) = handshakes.peers.with_key(&given.public_key) else {
            match handshakes.add(now, given) {
                Ok(()) => changed.push(format!("peer {} added", given.name)),
                Err(error) => tracing::error!("{error:#}"),
            }
            continue;
        };
        let (id, configured) = (peer.id, peer.configured != given.endpoint);
        let (change, fields) = difference(peer, given);
        changed.extend(fields.iter().map(|field| format!("Peers.{}.{field}", given.name)));
        let Some(peer) = handshakes.peers.of_mut(id) else { continue };
        peer.origin = Origin::Profile;
        peer.name.clone_from(&given.name);
        peer.tags.clone_from(&given.tags);
        peer.configured.clone_from(&given.endpoint);
        if !fields.is_empty() {
            configure::change_peer(handshakes, now, id, change);
        }
        if configured {
            handshakes.watch_name(now, id);
        }
        handshakes.set_suite(id, given.suite);
    }
    changed
}

/// What has to change for a peer to be as configured, and the fields in which it differs.
fn difference(peer: &Peer, given: &profile::Peer) -> (SetPeer, Vec<&'static str>) {
    let mut change = SetPeer::new(given.public_key);
    let mut fields = Vec::new();
    if peer.name != given.name {
        fields.push("Name");
    }
    if peer.tags != given.tags {
        fields.push("Tags");
    }
    if peer.preshared_key != given.preshared_key {
        fields.push("PresharedKeyFile");
        change.preshared_key = given.preshared_key.clone().map_or(uapi::Change::Clear, uapi::Change::To);
    }
    if peer.configured != given.endpoint {
        fields.push("Endpoint");
        // A name is resolved again; without an endpoint the peer stays where it was last heard.
        change.endpoint = match given.endpoint {
            Some(Endpoint::Address(address)) => Some(address),
            _ => None,
        };
    }
    let wanted: BTreeSet<_> = given.allowed_ips.iter().copied().collect();
    if *peer.allowed_ips() != wanted {
        fields.push("AllowedIPs");
        let moved = |remove| move |prefix: &ipnet::IpNet| SetAllowedIp { prefix: *prefix, remove };
        change.allowed_ips.extend(peer.allowed_ips().difference(&wanted).map(moved(true)));
        change.allowed_ips.extend(wanted.difference(peer.allowed_ips()).map(moved(false)));
    }
    if peer.persistent_keepalive != given.persistent_keepalive {
        fields.push("PersistentKeepalive");
        change.persistent_keepalive = given.persistent_keepalive.map_or(uapi::Change::Clear, uapi::Change::To);
    }
    if peer.suite != given.suite {
        fields.push("Suite");
    }
    (change, fields)
}

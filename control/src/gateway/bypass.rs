//! Whether AF_XDP may carry packets, given what the kernel's packet filter and traffic control would do with them. In
//! mode `auto`, a rule that may concern the tunnel's packets leaves them to the kernel; in the other modes it is a
//! problem in `status`.
//!
//! nftables announces its changes. Traffic control, and what iptables keeps outside of nftables, are read once a
//! minute.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::task::JoinHandle;

use super::Gateway;
use super::plane::drives::{Drive, Drives};
use super::site::Site;
use crate::bypass::{Inside, Outside, Ruleset, read};
use crate::ground::Network;
use crate::netlink::Interface;

/// How long after a change the rules are read: changes come in bursts.
const READ_DELAY: Duration = Duration::from_millis(500);
/// How long after elements of a set have changed: lists of blocked addresses do so all the time.
const ELEMENTS_DELAY: Duration = Duration::from_secs(2);
/// How often they are read without a change.
const READ_EVERY: Duration = Duration::from_secs(60);
/// How long after a change of prefixes or addresses the rules are judged again.
const JUDGE_DELAY: Duration = Duration::from_secs(1);

/// Rules by the interface on which AF_XDP would bypass them.
pub type Bypassed = BTreeMap<String, String>;

/// The rules as last read.
#[derive(Debug, Default)]
pub struct Bypass {
    /// `None` while no interface may be driven by AF_XDP.
    ruleset: Option<Ruleset>,
    reading: Option<JoinHandle<Ruleset>>,
    /// The interfaces for which the rules were last judged, and the tunnel's.
    interfaces: Vec<Interface>,
    read_at: Option<Instant>,
    judge_at: Option<Instant>,
}

impl Bypass {
    /// Reads the rules if they matter to these interfaces, and tells each interface which ones it would bypass.
    pub fn start(now: Instant, drives: &mut Drives, site: &Site, remote: &BTreeSet<IpNet>, network: &Network) -> Self {
        let mut bypass = Self::default();
        bypass.begin(now, drives, site, network);
        if let Some(ruleset) = &bypass.ruleset {
            drives.set_bypassed(&judge(ruleset, drives, site, remote, network, 0));
        }
        bypass
    }

    /// Reads the rules if that has become necessary.
    fn begin(&mut self, now: Instant, drives: &Drives, site: &Site, network: &Network) {
        if self.ruleset.is_none() && drives.heed_rules() {
            self.ruleset = Some(read(&interfaces(drives, site, network)));
            self.read_at = Some(now + READ_EVERY);
        }
    }

    /// Rules have changed.
    pub fn note_rules(&mut self, now: Instant) {
        if self.ruleset.is_some() {
            self.read_at = self.read_at.map(|at| at.min(now + READ_DELAY));
        }
    }

    /// Elements of sets have changed.
    pub fn note_elements(&mut self, now: Instant) {
        if self.ruleset.as_ref().is_some_and(Ruleset::looks_into_sets) {
            self.read_at = self.read_at.map(|at| at.min(now + ELEMENTS_DELAY));
        }
    }

    /// Prefixes, addresses or interfaces have changed.
    pub fn note_prefixes(&mut self, now: Instant) {
        if self.ruleset.is_some() {
            self.judge_at.get_or_insert(now + JUDGE_DELAY);
        }
    }

    /// When [`handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.reads_at(), self.judge_at].into_iter().flatten().min()
    }

    /// When to read the rules. Not while they are being read, which may have begun before they changed.
    fn reads_at(&self) -> Option<Instant> {
        self.read_at.filter(|_| self.reading.is_none())
    }

    /// The rules, whenever they have been read again. Cancel safe.
    pub async fn next(&mut self) -> Ruleset {
        loop {
            let Some(reading) = &mut self.reading else { std::future::pending().await };
            let read = reading.await;
            self.reading = None;
            if let Ok(ruleset) = read {
                return ruleset;
            }
        }
    }
}

/// Does what is due.
pub fn handle_timeout(gateway: &mut Gateway, now: Instant) {
    let Gateway { bypass, plane, ground, site, .. } = gateway;
    if bypass.reads_at().is_some_and(|at| at <= now) {
        bypass.read_at = Some(now + READ_EVERY);
        if plane.drives().heed_rules() {
            let interfaces = interfaces(plane.drives(), site, ground.network());
            bypass.reading = Some(tokio::task::spawn_blocking(move || read(&interfaces)));
        }
    }
    if bypass.judge_at.is_some_and(|at| at <= now) {
        judge_again(gateway, now);
    }
}

/// Takes rules that were read again.
pub fn take(gateway: &mut Gateway, now: Instant, ruleset: Ruleset) {
    if gateway.bypass.ruleset.as_ref() != Some(&ruleset) {
        gateway.bypass.ruleset = Some(ruleset);
        judge_again(gateway, now);
    }
}

/// Follows changes of the gateway's own interfaces; others may come and go all the time and change nothing here.
pub fn follow_interfaces(gateway: &mut Gateway, now: Instant) {
    if interfaces(gateway.plane.drives(), &gateway.site, gateway.ground.network()) != gateway.bypass.interfaces {
        judge_again(gateway, now);
        // An interface brings its own traffic control.
        gateway.bypass.note_rules(now);
    }
}

/// To be called before ports are made for other interfaces or modes.
pub fn judge_again(gateway: &mut Gateway, now: Instant) {
    let Gateway { bypass, plane, ground, site, handshakes, .. } = gateway;
    let network = ground.network();
    bypass.judge_at = None;
    bypass.interfaces = interfaces(plane.drives(), site, network);
    bypass.begin(now, plane.drives(), site, network);
    let Some(ruleset) = &bypass.ruleset else { return };
    let remote = handshakes.peers.remote();
    plane.set_bypassed(&judge(ruleset, plane.drives(), site, &remote, network, plane.local_port()));
}

/// The rules that AF_XDP on these interfaces would bypass.
fn judge(
    ruleset: &Ruleset,
    drives: &Drives,
    site: &Site,
    remote: &BTreeSet<IpNet>,
    network: &Network,
    port: u16,
) -> Bypassed {
    let own = network.of_site(&site.subnets, &drives.lan_indices());
    let lans = drives.lan.iter().filter_map(|Drive { name, .. }| {
        let inside = Inside { lan: name, tunnel: site.name.as_str(), own: &own, remote };
        Some((name.clone(), ruleset.concerns_lan(&inside)?))
    });
    let mut bypassed: Bypassed = lans.collect();
    let addresses = drives.wan.index().into_iter().flat_map(|wan| network.addresses_of(wan));
    let outside = Outside {
        wan: drives.wan.name.clone(),
        port,
        addresses: addresses.map(|address| address.address.into()).collect(),
    };
    bypassed.extend(ruleset.concerns_wan(&outside).map(|rule| (outside.wan.clone(), rule)));
    bypassed
}

/// The interfaces whose traffic control AF_XDP may bypass. The tunnel's is one: packets that the LAN's ring takes do
/// not pass through it.
fn interfaces(drives: &Drives, site: &Site, network: &Network) -> Vec<Interface> {
    let lan = drives.lan.iter().map(|drive| drive.name.as_str());
    let names = [drives.wan.name.as_str(), site.name.as_str()].into_iter().chain(lan);
    names.filter_map(|name| network.named(name)).cloned().collect()
}

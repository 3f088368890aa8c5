//! Which of the subnets that sites offer come into force.

use std::net::IpAddr;

use ipnet::IpNet;
use penstock_proto::coordination::{CandidateKind, Name, SiteNumber, Waiting};
use penstock_proto::trust::{Decision, Elsewhere, Offer, Server, Subnets, SubnetsError, WaitReason, is_private};

use super::state::State;
use crate::site::{Site, SiteState};

/// Subnets that are not in force, with the reasons.
pub type WaitingSubnets = Vec<(IpNet, WaitReason)>;

impl State {
    /// Decides on a site's offer, given what is granted to it.
    pub fn decide(&self, site: &Site, granted: Option<&Subnets>) -> Decision {
        let own = self.number(&site.key).unwrap_or(SiteNumber::MAX);
        let rivals = site.subnets.iter().flat_map(|subnet| self.owners().rivals(subnet, own));
        let others = rivals.map(|(subnet, owner)| (subnet, self.site_of(owner).name.clone()));
        let offer = Offer { subnets: &site.subnets, in_force: &site.in_force, granted };
        Elsewhere::new(others, self.forbidden(own)).decide(offer)
    }

    /// Which subnets of a site's offer are in force by an administrator's grant, whatever was in force before.
    pub fn put_in_force(&self, site: &Site) -> Vec<IpNet> {
        let anew = Site { in_force: Vec::new(), ..site.clone() };
        self.decide(&anew, site.granted.as_ref()).in_force
    }

    /// What a site may offer once it is approved without naming subnets: what it may already, and those subnets of its
    /// offer that need no grant, or that the enrolment key of a waiting site allows.
    pub fn grant(&self, site: &Site) -> Result<Subnets, SubnetsError> {
        let (allowed, kept) = match site.state {
            SiteState::Pending => (site.granted.as_ref(), None),
            _ => (None, site.granted.as_ref()),
        };
        let first = Site { in_force: Vec::new(), ..site.clone() };
        let offered = self.decide(&first, allowed).in_force;
        Subnets::new(kept.into_iter().flat_map(|kept| kept.iter().copied()).chain(offered))
    }

    /// Which subnets of a site's offer are not in force, and why.
    pub fn waiting(&self, site: &Site) -> WaitingSubnets {
        if site.subnets.iter().all(|subnet| site.in_force.contains(subnet)) {
            return Vec::new();
        }
        let mut waiting = self.decide(site, site.granted.as_ref()).waiting;
        // The reason why a grant is needed says more than that there is none.
        let plainly = self.decide(site, None).waiting;
        for (subnet, reason) in waiting.iter_mut().filter(|(_, reason)| *reason == WaitReason::NotGranted) {
            if let Some((_, why)) = plainly.iter().find(|(other, _)| other == subnet) {
                *reason = why.clone();
            }
        }
        // These would be in force if they were offered for the first time now: the obstacle is gone.
        if site.state == SiteState::Approved {
            for subnet in site.subnets.iter().filter(|subnet| !site.in_force.contains(subnet)) {
                if waiting.iter().all(|(other, _)| other != subnet) {
                    waiting.push((*subnet, WaitReason::NotGranted));
                }
            }
        }
        waiting
    }

    /// What waits, in words for the site itself, which must not learn more about another site than it may know.
    pub(super) fn told_waiting(&self, site: &Site, waiting: &WaitingSubnets) -> Vec<Waiting> {
        let visible = |name: &Name| {
            let other = self.sites().find(|other| other.name == *name && other.key != site.key);
            let number = other.and_then(|other| self.number(&other.key));
            number.is_some_and(|number| self.links().would_join(site, number))
        };
        let reason = |reason: &WaitReason| match reason {
            WaitReason::Overlap(_, name) if !visible(name) => "it overlaps a subnet of another site".into(),
            WaitReason::Holds(_, Server::Endpoint) => "it holds the outer address of another site".into(),
            reason => reason.to_string(),
        };
        waiting.iter().map(|(subnet, why)| Waiting { subnet: *subnet, reason: reason(why) }).collect()
    }

    /// Private addresses that must not be routed into a tunnel. Public ones need no check here, since without a grant
    /// no public prefix is in force. Addresses of a site's own interfaces do not count: they may be behind a NAT, where
    /// they belong to nobody else.
    fn forbidden(&self, own: SiteNumber) -> Vec<(IpAddr, Server)> {
        let outer = self.candidates(own).filter(|candidate| candidate.kind != CandidateKind::Host);
        let endpoints = outer.map(|candidate| (candidate.address.ip().to_canonical(), Server::Endpoint));
        let servers = self.servers();
        let relays = servers.relays.iter().flat_map(|relay| &relay.udp).map(|udp| (udp.ip(), Server::Relay));
        let stun = servers.stun_servers.iter().map(|stun| (stun.ip(), Server::Stun));
        let coordinator = servers.coordinator.iter().map(|address| (*address, Server::Coordinator));
        let all = coordinator.chain(relays).chain(stun).chain(endpoints);
        all.filter(|(address, _)| is_private(&IpNet::from(*address))).collect()
    }
}

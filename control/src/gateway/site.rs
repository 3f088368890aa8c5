//! This site's identity and what belongs to it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::plane::Behind;
use crate::ground::Placement;
use crate::key::PrivateKey;
use crate::profile::{LocalPort, Name, Profile};

/// This site.
#[derive(Clone, Debug)]
pub struct Site {
    /// The gateway's name, which is also that of its tun device.
    pub name: Name,
    /// Its private key.
    pub private_key: PrivateKey,
    /// Whether the profile gives the UDP port.
    pub pinned: bool,
    /// The gateway's own addresses in the tunnel.
    pub virtual_addresses: Vec<IpAddr>,
    /// Whether they come from the profile; otherwise the coordinator assigns one.
    pub own_address: bool,
    /// The WAN interface.
    pub wan: String,
    /// The LAN interfaces.
    pub lan: BTreeSet<String>,
    /// This site's subnets.
    pub subnets: BTreeSet<IpNet>,
    /// The prefixes under which the other sites know the subnets.
    pub shown: BTreeSet<IpNet>,
    /// The prefixes within which a coordinator may give prefixes to other sites; `None`: private ones.
    pub accept: Option<Vec<IpNet>>,
    /// Whether packets from the tunnel may go on to networks other than this site's.
    pub transit: bool,
    /// The routing table of the tunnel.
    pub table: u32,
    /// The firewall mark of outer traffic.
    pub mark: u32,
}

impl Site {
    /// The site of this profile.
    pub fn of(profile: &Profile) -> Self {
        Self {
            name: profile.name.clone(),
            private_key: profile.private_key.clone(),
            pinned: profile.local_port != LocalPort::Random,
            virtual_addresses: profile.virtual_addresses.clone(),
            own_address: !profile.virtual_addresses.is_empty(),
            wan: profile.wan.interface.clone(),
            lan: profile.lan.interfaces.iter().cloned().collect(),
            subnets: profile.lan.subnets.iter().copied().collect(),
            shown: profile.lan.shown.values().copied().collect(),
            accept: profile.accept.clone(),
            transit: profile.transit,
            table: profile.table,
            mark: profile.mark,
        }
    }

    /// Where the guard of this site, which has its profile in this file, is to stand.
    pub fn placement(&self, profile: &Path) -> Placement {
        Placement {
            profile: profile.to_owned(),
            table: self.table,
            mark: self.mark,
            wan: self.wan.clone(),
            lan: self.lan.clone(),
            local: self.subnets.clone(),
            transit: self.transit,
        }
    }

    /// What can be reached through the tunnel on this side.
    pub fn behind(&self) -> Behind<'_> {
        if self.transit { Behind::Anything } else { Behind::Subnets(&self.subnets) }
    }
}

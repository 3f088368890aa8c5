//! A router that maps ports: miniupnpd in a site's NAT.

use std::fs;
use std::path::PathBuf;

use super::super::{PATIENCE, eventually};
use super::Site;
use penstock_netns::{Process, unique};

/// The protocols in which it can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub pcp: bool,
    pub nat_pmp: bool,
    pub upnp_igd: bool,
}

impl Offer {
    pub const ALL: Self = Self { pcp: true, nat_pmp: true, upnp_igd: true };
    pub const PCP: Self = Self { pcp: true, nat_pmp: false, upnp_igd: false };
    pub const NAT_PMP: Self = Self { pcp: false, nat_pmp: true, upnp_igd: false };
    pub const UPNP_IGD: Self = Self { pcp: false, nat_pmp: false, upnp_igd: true };
}

/// A running miniupnpd. Suitable for a site whose NAT does not filter what is mapped: a symmetric one.
pub struct MappingServer<'a> {
    site: &'a Site,
    offer: Offer,
    configuration: PathBuf,
    process: Process,
}

impl<'a> MappingServer<'a> {
    pub fn start(site: &'a Site, offer: Offer) -> Self {
        // It offers PCP and NAT-PMP together; they differ in the first byte (RFC 6887, section 9).
        let deaf = |version: u8, spoken: bool| {
            if spoken { String::new() } else { format!("udp dport 5351 @th,64,8 {version} drop;") }
        };
        let rules = format!(
            "table inet upnp {{
                 chain miniupnpd {{ }}
                 chain prerouting_miniupnpd {{ }}
                 chain postrouting_miniupnpd {{ }}
                 chain forward {{ type filter hook forward priority -5; jump miniupnpd; }}
                 chain prerouting {{ type nat hook prerouting priority -105; jump prerouting_miniupnpd; }}
                 chain postrouting {{ type nat hook postrouting priority 95; jump postrouting_miniupnpd; }}
                 chain input {{ type filter hook input priority 0; {} {} }}
             }}",
            deaf(2, offer.pcp),
            deaf(0, offer.nat_pmp),
        );
        site.nat.nft(&rules);
        let yes = |on| if on { "yes" } else { "no" };
        let configuration = site.scratch.join("miniupnpd.conf");
        let text = format!(
            "ext_ifname=wan\nlistening_ip={}/24\nport=0\nenable_natpmp={}\nenable_upnp={}\nsecure_mode=yes\n\
             min_lifetime=2\nmax_lifetime=86400\nclean_ruleset_interval=0\n\
             uuid=7d3d0a10-0000-4000-8000-00000000000{}\n\
             upnp_table_name=upnp\nupnp_nat_table_name=upnp\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            site.router(),
            yes(offer.pcp || offer.nat_pmp),
            yes(offer.upnp_igd),
            site.number % 10,
        );
        fs::write(&configuration, text).expect("configuration");
        let process = Self::spawn(site, offer, &configuration);
        Self { site, offer, configuration, process }
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, without its earlier state.
    pub fn restart(&mut self) {
        for chain in ["miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"] {
            self.site.nat.run(&["nft", "flush", "chain", "inet", "upnp", chain]);
        }
        self.process = Self::spawn(self.site, self.offer, &self.configuration);
    }

    /// The mappings in the kernel, one per line.
    pub fn mappings(&self) -> Vec<String> {
        let text = self.site.nat.run(&["nft", "list", "chain", "inet", "upnp", "prerouting_miniupnpd"]);
        text.lines().filter(|line| line.contains("dnat")).map(|line| line.trim().to_owned()).collect()
    }

    fn spawn(site: &Site, offer: Offer, configuration: &std::path::Path) -> Process {
        let pid = site.scratch.join("miniupnpd.pid");
        // Left by one that was killed; it would be mistaken for a running one.
        let _ = fs::remove_file(&pid);
        let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
        let words = ["miniupnpd", "-d", "-f", &path(configuration), "-P", &path(&pid)];
        let process = site.nat.spawn(&words, &site.scratch.join(format!("miniupnpd-{}.log", unique())));
        let listens = |wanted: bool, words: &str| !wanted || process.log().contains(words);
        eventually(PATIENCE, "miniupnpd listens", || {
            listens(offer.upnp_igd, "HTTP listening") && listens(offer.pcp || offer.nat_pmp, "Listening for NAT-PMP")
        });
        process
    }
}

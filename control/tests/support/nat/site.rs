//! A site: host, gateway, NAT.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::super::{PATIENCE, eventually};
use super::rules::Nat;
use super::{Kind, UdpTimeouts};
use penstock_netns::{Namespace, Process};

/// Where the proxy of a site listens.
pub const PROXY_PORT: u16 = 3128;

/// A site behind a NAT that can be changed while everything runs.
pub struct Site {
    pub number: u8,
    pub host: Namespace,
    pub gateway: Namespace,
    pub nat: Namespace,
    pub scratch: PathBuf,
    state: Mutex<State>,
}

struct State {
    nat: Nat,
    proxy: Option<Process>,
}

impl Site {
    pub(super) fn new(internet: &Namespace, scratch: &Path, kind: Kind, number: u8, dual_stack: bool) -> Self {
        assert!((1..=250).contains(&number), "a site's number");
        let n = number;
        let [host, gateway, nat] = ["host", "gateway", "nat"].map(|role| Namespace::new(&format!("{n}-{role}")));
        let scratch = scratch.join(format!("site-{n}"));
        fs::create_dir_all(&scratch).expect("scratch directory");
        let config = Nat {
            kind,
            external: Ipv4Addr::new(11, n, 0, 2),
            timeouts: UdpTimeouts::default(),
            moved: None,
            hairpin: false,
            cut: vec![],
        };
        let state = Mutex::new(State { nat: config, proxy: None });
        let site = Self { number, host, gateway, nat, scratch, state };
        let (host, nat) = (site.host.name(), site.nat.name());
        site.gateway.ip(&format!(
            "link add lan0 type veth peer name eth0 netns {host}\n\
             link add wan0 type veth peer name lan netns {nat}\n\
             addr add 10.{n}.1.1/24 dev lan0\n\
             link set lan0 up\n\
             link set wan0 up\n"
        ));
        site.host.ip(&format!("addr add 10.{n}.1.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.{n}.1.1\n"));
        internet.ip(&format!(
            "link add site{n} type veth peer name wan netns {nat}\n\
             addr add 11.{n}.0.1/24 dev site{n}\n\
             link set site{n} up\n\
             route add 11.{n}.1.0/24 via 11.{n}.0.2 dev site{n} onlink\n"
        ));
        site.nat.ip(&format!(
            "addr add 11.{n}.0.2/24 dev wan\n\
             addr add 10.{n}.0.1/24 dev lan\n\
             addr add 11.{n}.1.1/24 dev lan\n\
             link set wan up\n\
             link set lan up\n\
             route add default via 11.{n}.0.1\n"
        ));
        for router in [&site.gateway, &site.nat] {
            router.sysctl("net/ipv4/ip_forward", "1");
            router.sysctl("net/ipv6/conf/all/forwarding", "1");
        }
        if dual_stack {
            site.address_ipv6(internet);
        }
        site.address_wan();
        site.apply();
        site
    }

    fn address_ipv6(&self, internet: &Namespace) {
        let n = self.number;
        internet.ip(&format!(
            "addr add 2001:db8:{n:x}::1/64 dev site{n} nodad\n\
             route add 2001:db8:{n:x}:1::/64 via 2001:db8:{n:x}::2 dev site{n}\n"
        ));
        self.nat.ip(&format!(
            "addr add 2001:db8:{n:x}::2/64 dev wan nodad\n\
             addr add 2001:db8:{n:x}:1::1/64 dev lan nodad\n\
             route add default via 2001:db8:{n:x}::1\n"
        ));
        self.gateway.ip(&format!(
            "addr add {}/64 dev wan0 nodad\nroute add default via 2001:db8:{n:x}:1::1\n",
            self.global_ipv6()
        ));
    }

    pub fn kind(&self) -> Kind {
        self.state().nat.kind
    }

    /// The gateway's own address on its WAN interface.
    pub fn wan(&self) -> Ipv4Addr {
        wan(self.number, self.kind())
    }

    /// The gateway's router: the inside of the NAT.
    pub fn router(&self) -> Ipv4Addr {
        let wan = self.wan().octets();
        Ipv4Addr::new(wan[0], wan[1], wan[2], 1)
    }

    /// The address that others see: the NAT's, or the gateway's where there is no NAT.
    pub fn public(&self) -> Ipv4Addr {
        let state = self.state();
        if state.nat.kind == Kind::None { wan(self.number, Kind::None) } else { state.nat.external }
    }

    /// The gateway's IPv6 address in a dual-stack laboratory.
    pub fn global_ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 1, 0, 0, 0, 2)
    }

    /// The host behind the gateway.
    pub fn host_address(&self) -> IpAddr {
        Ipv4Addr::new(10, self.number, 1, 2).into()
    }

    /// The network behind the gateway.
    pub fn subnet(&self) -> String {
        format!("10.{}.1.0/24", self.number)
    }

    /// Where the proxy of a [`Kind::ProxyOnly`] site listens.
    pub fn proxy(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::new(10, self.number, 0, 1).into(), PROXY_PORT)
    }

    /// Replaces the NAT by one of another kind, which knows nothing. To or from [`Kind::None`] the gateway's address
    /// changes.
    pub fn set_kind(&self, kind: Kind) {
        let old = self.wan();
        {
            let mut state = self.state();
            state.nat.kind = kind;
            state.nat.moved = None;
        }
        if self.wan() != old {
            // The routes through the old address are removed with it.
            self.gateway.ip(&format!("addr del {old}/24 dev wan0\n"));
            self.address_wan();
        }
        self.apply();
        self.flush();
    }

    /// Sets how long the NAT remembers UDP flows. Mappings are forgotten.
    pub fn set_udp_timeouts(&self, timeouts: UdpTimeouts) {
        self.state().nat.timeouts = timeouts;
        self.apply();
        self.flush();
    }

    /// Sets whether a full cone lets the inside reach itself by its external address.
    pub fn set_hairpin(&self, hairpin: bool) {
        self.state().nat.hairpin = hairpin;
        self.apply();
    }

    /// Forgets all flows, mappings and permissions, like a router that restarts.
    pub fn flush(&self) {
        for list in ["map", "set"] {
            let name = if list == "map" { "mappings" } else { "permitted" };
            // Only some kinds have them.
            let _ = self.nat.attempt(&["nft", "flush", list, "ip", "lab", name]);
        }
        self.nat.run(&["conntrack", "-F"]);
    }

    /// From now on the gateway's UDP port `port` appears outside as another one, as after a NAT has rebound; returns
    /// that port. For a symmetric NAT, [`Self::flush`] has this effect.
    pub fn rebind(&self, port: u16) -> u16 {
        let outside = {
            let mut state = self.state();
            assert_ne!(state.nat.kind, Kind::Symmetric, "it has no one port for all destinations");
            let old = state.nat.moved.filter(|moved| moved.0 == port).map_or(port, |moved| moved.1);
            let outside = if old >= 60_000 { old - 20_000 } else { old + 1 };
            state.nat.moved = Some((port, outside));
            outside
        };
        self.apply();
        self.flush();
        outside
    }

    /// Drops all UDP to and from a remote address, and nothing else.
    pub fn cut(&self, remote: Ipv4Addr) {
        self.state().nat.cut.push(remote);
        self.apply();
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.state().nat.cut.clear();
        self.apply();
    }

    /// Gives the NAT another external address, and returns it; flows of the old one are dead. Not for [`Kind::None`].
    pub fn change_external_address(&self) -> Ipv4Addr {
        let (old, new) = {
            let mut state = self.state();
            assert_ne!(state.nat.kind, Kind::None, "the gateway's own address is the external one");
            let old = state.nat.external;
            let host = if old.octets()[3] < 250 { old.octets()[3] + 1 } else { 3 };
            state.nat.external = Ipv4Addr::new(11, self.number, 0, host);
            (old, state.nat.external)
        };
        self.nat.ip(&format!(
            "addr del {old}/24 dev wan\n\
             addr add {new}/24 dev wan\n\
             route add default via 11.{}.0.1\n",
            self.number
        ));
        self.apply();
        self.flush();
        new
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn address_wan(&self) {
        self.gateway.ip(&format!("addr add {}/24 dev wan0\nroute add default via {}\n", self.wan(), self.router()));
    }

    fn apply(&self) {
        let mut state = self.state();
        let file = self.scratch.join("nat.nft");
        fs::write(&file, state.nat.ruleset()).expect("rules");
        self.nat.run(&["nft", "-f", file.to_str().expect("UTF-8")]);
        let UdpTimeouts { unreplied, stream } = state.nat.timeouts;
        for (name, time) in [("nf_conntrack_udp_timeout", unreplied), ("nf_conntrack_udp_timeout_stream", stream)] {
            self.nat.sysctl(&format!("net/netfilter/{name}"), &time.as_secs().max(1).to_string());
        }
        let wants_proxy = state.nat.kind == Kind::ProxyOnly;
        if wants_proxy && state.proxy.is_none() {
            state.proxy = Some(self.start_proxy());
        } else if !wants_proxy {
            state.proxy = None;
        }
    }

    /// A proxy that accepts CONNECT to any port, without resolving names.
    fn start_proxy(&self) -> Process {
        let file = self.scratch.join("tinyproxy.conf");
        let listen = self.proxy().ip();
        let text = format!("Port {PROXY_PORT}\nListen {listen}\nTimeout 600\nMaxClients 50\nLogLevel Connect\n");
        fs::write(&file, text).expect("configuration");
        let words = ["tinyproxy", "-d", "-c", file.to_str().expect("UTF-8")];
        let process = self.nat.spawn(&words, &self.scratch.join("tinyproxy.log"));
        let address = self.proxy();
        eventually(PATIENCE, "the proxy listens", || {
            self.nat.enter(|| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok())
        });
        process
    }
}

fn wan(number: u8, kind: Kind) -> Ipv4Addr {
    if kind == Kind::None { Ipv4Addr::new(11, number, 1, 2) } else { Ipv4Addr::new(10, number, 0, 2) }
}

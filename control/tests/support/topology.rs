//! Two sites and what is between them.
//!
//! ```text
//!   site A                                                              site B
//!   host ──────── gateway ────────────── middle ────────────── gateway ──────── host
//!   eth0      lan0      wan0                              wan0      lan0      eth0
//!   10.101.0.2    .1      192.0.2.1                192.0.2.2     10.102.0.1     .2
//!   fd00:101::2  ::1    2001:db8::1              2001:db8::2    fd00:102::1    ::2
//!
//!   middle   Cable    nothing: one veth pair
//!            Switch   a bridge br0 (ports a0, b0) at 192.0.2.66, 2001:db8::66: the place of a
//!                     tapper or an attacker. It is also the only place where a capture sees what
//!                     AF_XDP sends and receives.
//!            Nat      A's wan0 is 10.0.0.1 and 2001:db8:a::1, its router 10.0.0.254 and 2001:db8:a::254 (a0)
//!                     masquerades as 192.0.2.254 and 2001:db8::254 (b0)
//! ```
//!
//! In a laboratory machine that has network cards (`scripts/lab`), they are the ends of A's LAN and, with a cable as
//! the middle, of the WAN.
//!
//! The gateways' default routes point at each other, so packets that a gateway does not catch go to the WAN in the
//! clear, as they would at a real site.

use super::{PATIENCE, eventually, ping};
use penstock_netns::{Namespace, unique};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The gateways' port, on both sides.
pub const PORT: u16 = 47100;
/// What the addresses of a laboratory machine's cards begin with; their numbers follow.
const CARDS: &str = "02:1a:b0:00:00:0";
/// B's addresses on the WAN, to which A's default routes lead.
const B_WAN: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// The IP version of the outer packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    Cable,
    Switch,
    /// Each gateway's WAN is a separate link, with only the router on it.
    Router,
    Nat,
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub middle: Middle,
    /// Receive and transmit queues of every interface.
    pub queues: u32,
    pub mtu: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { middle: Middle::Cable, queues: 1, mtu: 1500 }
    }
}

impl Options {
    pub fn switch() -> Self {
        Self { middle: Middle::Switch, ..Self::default() }
    }

    pub fn router() -> Self {
        Self { middle: Middle::Router, ..Self::default() }
    }

    pub fn nat() -> Self {
        Self { middle: Middle::Nat, ..Self::default() }
    }
}

/// A host and a gateway. `number` is 1 for A and 2 for B and appears in every address.
pub struct Site {
    pub number: u8,
    pub host: Namespace,
    pub gateway: Namespace,
    pub wan4: Ipv4Addr,
    pub wan6: Ipv6Addr,
    pub scratch: PathBuf,
}

pub struct Topology {
    pub a: Site,
    pub b: Site,
    /// The switch or the NAT, if there is one.
    pub middle: Option<Namespace>,
    pub options: Options,
    scratch: PathBuf,
}

impl Topology {
    pub fn new(options: Options) -> Self {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lab-{}-{}", std::process::id(), unique()));
        std::fs::create_dir_all(&scratch).expect("scratch directory");
        let mut a = Site::new(1, "a", &scratch, options);
        let b = Site::new(2, "b", &scratch, options);
        let middle = match options.middle {
            Middle::Cable => {
                cable([1, 3], &a.gateway, "wan0", &b.gateway, "wan0", options);
                None
            }
            Middle::Switch => Some(switch(&a, &b, options)),
            Middle::Router => Some(router(&a, &b, options)),
            Middle::Nat => {
                a.wan4 = Ipv4Addr::new(10, 0, 0, 1);
                a.wan6 = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 1);
                Some(nat(&a, &b, options))
            }
        };
        match options.middle {
            Middle::Nat => {
                a.address_wan(["10.0.0.254", "2001:db8:a::254"]);
                b.address_wan(["192.0.2.254", "2001:db8::254"]);
            }
            // Done, together with the router.
            Middle::Router => {}
            Middle::Cable | Middle::Switch => {
                a.address_wan(B_WAN);
                b.address_wan(["192.0.2.1", "2001:db8::1"]);
            }
        }
        Self { a, b, middle, options, scratch }
    }

    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A's WAN, a card that has left its namespace, is put back there.
    pub fn plug_wan_again(&self) {
        plug(1, &self.a.gateway, "wan0", self.options.mtu);
        self.address_wan_again();
    }

    /// The same for A's LAN.
    pub fn plug_lan_again(&self) {
        plug(2, &self.a.gateway, "lan0", self.options.mtu);
        self.a.address_lan();
    }

    /// A's WAN has its addresses and routes again, and is up.
    pub fn address_wan_again(&self) {
        self.a.address_wan(B_WAN);
    }

    pub fn middle(&self) -> &Namespace {
        self.middle.as_ref().expect("a topology with a middle")
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if has_cards() {
            unplug([&self.a.host, &self.a.gateway, &self.b.gateway]);
        }
        let keep = std::thread::panicking() && std::env::var_os("PENSTOCK_TEST_KEEP").is_some();
        if !keep {
            let _ = std::fs::remove_dir_all(&self.scratch);
        }
    }
}

impl Site {
    fn new(number: u8, letter: &str, scratch: &Path, options: Options) -> Self {
        let host = Namespace::new(&format!("{letter}-host"));
        let gateway = Namespace::new(&format!("{letter}-gateway"));
        let site = Self {
            number,
            host,
            gateway,
            wan4: Ipv4Addr::new(192, 0, 2, number),
            wan6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()),
            scratch: scratch.to_owned(),
        };
        if number == 1 {
            cable([2, 4], &site.gateway, "lan0", &site.host, "eth0", options);
        } else {
            veth(&site.gateway, "lan0", &site.host, "eth0", options);
        }
        site.gateway.sysctl("net/ipv4/ip_forward", "1");
        site.gateway.sysctl("net/ipv6/conf/all/forwarding", "1");
        site.address_lan();
        site.address_host();
        site
    }

    pub fn address_host(&self) {
        let number = self.number;
        self.host.ip(&format!(
            "addr add 10.10{number}.0.2/24 dev eth0\n\
             addr add fd00:10{number}::2/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 10.10{number}.0.1\n\
             route add default via fd00:10{number}::1\n"
        ));
    }

    pub fn address_lan(&self) {
        let number = self.number;
        self.gateway.ip(&format!(
            "addr add 10.10{number}.0.1/24 dev lan0\n\
             addr add fd00:10{number}::1/64 dev lan0 nodad\n\
             link set lan0 up\n"
        ));
    }

    fn address_wan(&self, [router4, router6]: [&str; 2]) {
        self.gateway.ip(&format!(
            "addr replace {}/24 dev wan0\n\
             addr replace {}/64 dev wan0 nodad\n\
             link set wan0 up\n\
             route replace default via {router4}\n\
             route replace default via {router6}\n",
            self.wan4, self.wan6
        ));
    }

    pub fn host4(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 100 + self.number, 0, 2))
    }

    pub fn host6(&self) -> IpAddr {
        let net = if self.number == 1 { 0x101 } else { 0x102 };
        IpAddr::V6(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, 2))
    }

    /// The host's inner addresses, both versions.
    pub fn hosts(&self) -> [IpAddr; 2] {
        [self.host4(), self.host6()]
    }

    pub fn subnets(&self) -> Vec<String> {
        vec![format!("10.10{}.0.0/24", self.number), format!("fd00:10{}::/64", self.number)]
    }

    /// The address of the gateway's tunnel device.
    pub fn virtual_address(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(100, 64, 0, self.number))
    }

    /// What the other site routes here: the subnets and the gateway's own address.
    pub fn allowed_ips(&self) -> Vec<String> {
        let mut all = self.subnets();
        all.push(format!("{}/32", self.virtual_address()));
        all
    }

    pub fn endpoint(&self, outer: Outer) -> SocketAddr {
        match outer {
            Outer::V4 => SocketAddr::new(self.wan4.into(), PORT),
            Outer::V6 => SocketAddr::new(self.wan6.into(), PORT),
        }
    }

    /// Whether `address` belongs inside this site, and so never in clear on the WAN.
    pub fn is_inside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.octets()[..2] == [10, 100 + self.number],
            IpAddr::V6(v6) => v6.segments()[..2] == [0xfd00, 0x100 + u16::from(self.number)],
        }
    }
}

/// Puts a bridge between a site's host and its gateway, in the gateway's namespace, as when virtual machines share the
/// LAN: `lan0` is then a veth whose other end is the bridge's port `lan0b`, and the host's cable is its port `port0`.
/// If the kernel has `br_netfilter`, bridged packets pass the packet filter. Returns when the host can be reached: the
/// kernel may take more than a second to tell the bridge that its port has a carrier.
pub fn bridge_lan(site: &Site, bridge: &str) {
    site.gateway.ip(&format!(
        "link set lan0 down\n\
         addr flush dev lan0\n\
         link set lan0 name port0\n\
         link add br0 type bridge forward_delay 0 mcast_snooping 0 {bridge}\n\
         link add lan0 type veth peer name lan0b\n\
         link set port0 master br0 up\n\
         link set lan0b master br0 up\n\
         link set br0 up\n"
    ));
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let _ = site.gateway.try_sysctl(&format!("net/bridge/{name}"), "1");
    }
    site.address_lan();
    eventually(PATIENCE, "the bridge forwards", || {
        site.hosts().into_iter().all(|host| ping(&site.gateway, host, &["-c", "1"]).all_answered())
    });
}

/// Whether this is a laboratory machine with cards.
pub fn has_cards() -> bool {
    std::env::var_os("PENSTOCK_LAB_CARD").is_some_and(|card| !card.is_empty())
}

/// A veth pair or, where there are cards, the two with these numbers.
fn cable(cards: [u8; 2], left: &Namespace, left_name: &str, right: &Namespace, right_name: &str, options: Options) {
    if has_cards() {
        plug(cards[0], left, left_name, options.mtu);
        plug(cards[1], right, right_name, options.mtu);
    } else {
        veth(left, left_name, right, right_name, options);
    }
}

/// Moves a card into a namespace.
fn plug(card: u8, namespace: &Namespace, name: &str, mtu: u32) {
    let address = format!("{CARDS}{card}");
    let find = || {
        let interfaces = std::fs::read_dir("/sys/class/net").expect("interfaces").flatten();
        let is_it =
            |path: &PathBuf| std::fs::read_to_string(path.join("address")).is_ok_and(|text| text.trim() == address);
        interfaces.map(|entry| entry.path()).find(is_it)
    };
    let mut found = None;
    eventually(3 * PATIENCE, &format!("card {card} is free"), || {
        found = find();
        found.is_some()
    });
    let found = found.expect("just seen");
    let interface = found.file_name().expect("a name").to_str().expect("UTF-8");
    let output = std::process::Command::new("ip")
        .args(["link", "set", "dev", interface, "down", "mtu", &mtu.to_string()])
        .args(["netns", namespace.name(), "name", name])
        .output()
        .expect("ip starts");
    assert!(output.status.success(), "{interface}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Takes the cards that are in these namespaces back to where [`plug`] finds them. The kernel does so when a namespace
/// goes, but that may be minutes after it was deleted: a TCP socket that was closed with data that nobody takes any
/// more tries eight times to send it, for 110 s, and holds its namespace meanwhile.
fn unplug(namespaces: [&Namespace; 3]) {
    for namespace in namespaces {
        let links: serde_json::Value = serde_json::from_str(&namespace.ip_show("-d -j link show")).unwrap_or_default();
        for link in links.as_array().into_iter().flatten() {
            let text = |field: &str| link[field].as_str().unwrap_or_default();
            // A device above a card may have its address.
            let Some(card) = text("address").strip_prefix(CARDS).filter(|_| link["linkinfo"].is_null()) else {
                continue;
            };
            let name = format!("card{card}");
            // What is left is the kernel's to take back, and this may run during a panic.
            namespace.attempt(&["ip", "link", "set", "dev", text("ifname"), "down", "name", &name, "netns", "1"]);
        }
    }
}

/// A veth pair across two namespaces, both ends down.
fn veth(left: &Namespace, left_name: &str, right: &Namespace, right_name: &str, options: Options) {
    let Options { queues, mtu, .. } = options;
    left.ip(&format!(
        "link add {left_name} mtu {mtu} numrxqueues {queues} numtxqueues {queues} type veth \
         peer name {right_name} mtu {mtu} numrxqueues {queues} numtxqueues {queues} netns {}\n",
        right.name()
    ));
}

fn switch(a: &Site, b: &Site, options: Options) -> Namespace {
    let switch = Namespace::new("switch");
    veth(&a.gateway, "wan0", &switch, "a0", options);
    veth(&b.gateway, "wan0", &switch, "b0", options);
    switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
         link set a0 master br0 up\n\
         link set b0 master br0 up\n\
         addr add 192.0.2.66/24 dev br0\n\
         addr add 2001:db8::66/64 dev br0 nodad\n\
         link set br0 up\n");
    switch
}

/// A router between two links, "a0" and "b0".
fn router(a: &Site, b: &Site, options: Options) -> Namespace {
    let router = Namespace::new("router");
    router.sysctl("net/ipv4/ip_forward", "1");
    router.sysctl("net/ipv6/conf/all/forwarding", "1");
    for (site, interface) in [(a, "a0"), (b, "b0")] {
        veth(&site.gateway, "wan0", &router, interface, options);
        let (wan4, wan6, n) = (site.wan4, site.wan6, 250 + site.number);
        router.ip(&format!(
            "addr add 192.0.2.{n}/32 dev {interface}\n\
             addr add 2001:db8::{n}/128 dev {interface} nodad\n\
             link set {interface} up\n\
             route add {wan4}/32 dev {interface}\n\
             route add {wan6}/128 dev {interface}\n"
        ));
        site.gateway.ip(&format!(
            "addr add {wan4}/32 dev wan0\n\
             addr add {wan6}/128 dev wan0 nodad\n\
             link set wan0 up\n\
             route add 192.0.2.{n}/32 dev wan0\n\
             route add 2001:db8::{n}/128 dev wan0\n\
             route add default via 192.0.2.{n} src {wan4}\n\
             route add default via 2001:db8::{n} src {wan6}\n"
        ));
    }
    router
}

fn nat(a: &Site, b: &Site, options: Options) -> Namespace {
    let nat = Namespace::new("nat");
    veth(&a.gateway, "wan0", &nat, "a0", options);
    veth(&b.gateway, "wan0", &nat, "b0", options);
    nat.ip("addr add 10.0.0.254/24 dev a0\n\
         addr add 192.0.2.254/24 dev b0\n\
         addr add 2001:db8:a::254/64 dev a0 nodad\n\
         addr add 2001:db8::254/64 dev b0 nodad\n\
         link set a0 up\n\
         link set b0 up\n");
    nat.sysctl("net/ipv4/ip_forward", "1");
    nat.sysctl("net/ipv6/conf/all/forwarding", "1");
    nat.nft(
        "table inet nat { chain post { type nat hook postrouting priority 100; \
         oifname \"b0\" masquerade; }; }",
    );
    nat
}

//! The steering program of a running gateway, with one of our sockets in place of its own.

use aya::maps::{Map, MapData, MapInfo, XskMap};
use aya::programs::loaded_programs;
use penstock_dataplane::frame::Pool;
use penstock_dataplane::ports::xdp::{Binding, Checksums, RING, XdpPort};
use penstock_netns::Namespace;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;

/// Attaches an XDP program that no gateway knows, as `ip link` does in this mode (`xdpdrv`, `xdpgeneric`).
pub fn attach_foreign_program(namespace: &Namespace, interface: &str, mode: &str) {
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/steer/penstock-steer.o");
    namespace.run(&["ip", "link", "set", "dev", interface, mode, "obj", object, "sec", "xdp"]);
}

/// An AF_XDP socket of another interface. Frames that a program redirects to it are lost, as on a bond or with another
/// namespace's memory, and the kernel counts nothing.
pub struct Swallower {
    port: XdpPort,
    _pool: Pool,
    _namespace: Namespace,
}

impl Swallower {
    pub fn new() -> Self {
        let namespace = Namespace::new("swallower");
        namespace.ip("link add s0 type veth peer name s1\nlink set s0 up\nlink set s1 up\n");
        let (port, pool) = namespace.enter(|| {
            let frames = NonZeroU32::new(4 * RING).expect("some");
            let mut pool = Pool::umem(frames, RING).expect("memory");
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let ifindex = rustix::net::netdevice::name_to_index(&socket, "s0").expect("just made");
            let at = Binding { interface: "s0", ifindex, queue: 0, copy: true };
            (XdpPort::lan(&mut pool, &at, Checksums::Complete).expect("a port"), pool)
        });
        Self { port, _pool: pool, _namespace: namespace }
    }

    /// Replaces the gateway's socket on queue 0 of an interface.
    pub fn take_over(&self, namespace: &Namespace, interface: &str) {
        let mut sockets = sockets(program(namespace, interface));
        sockets.set(0, self.port.socket().as_raw_fd(), 0).expect("the map takes it");
    }
}

/// The id of the program on an interface.
pub fn program(namespace: &Namespace, interface: &str) -> u32 {
    let text = namespace.ip_show(&format!("-j -d link show dev {interface}"));
    let links: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let id = links[0]["xdp"]["prog"]["id"].as_u64().unwrap_or_else(|| panic!("no program on {interface}: {text}"));
    id as u32
}

fn sockets(program: u32) -> XskMap<MapData> {
    let info = loaded_programs().flatten().find(|info| info.id() == program).expect("it is loaded");
    let ids = info.map_ids().expect("its maps").unwrap_or_default();
    let is_it = |id: &u32| MapInfo::from_id(*id).is_ok_and(|map| map.name_as_str() == Some("SOCKETS"));
    let id = ids.into_iter().find(is_it).expect("it has a map of sockets");
    XskMap::try_from(Map::XskMap(MapData::from_id(id).expect("the map"))).expect("an XSKMAP")
}

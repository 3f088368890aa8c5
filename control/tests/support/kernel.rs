//! The kernel's WireGuard, where there is one.

use super::gateway::{GatewayConfig, write_secret};
use super::topology::Site;
use penstock_netns::Namespace;
use std::net::SocketAddr;

/// A WireGuard interface of the kernel, deleted with its guard. The kind in its configuration does not matter.
pub struct KernelWireguard {
    pub config: GatewayConfig,
    namespace: Namespace,
    file: String,
}

impl KernelWireguard {
    /// Whether this kernel has it. Loads the module.
    pub fn is_there() -> bool {
        let namespace = Namespace::new("has-wireguard");
        namespace.attempt(&["ip", "link", "add", "wg0", "type", "wireguard"]).0
    }

    pub fn start(site: &Site, config: GatewayConfig) -> Self {
        let file = site.scratch.join(format!("{}.conf", config.name));
        write_secret(&file, &config.wg_conf());
        let file = file.to_str().expect("UTF-8").to_owned();
        let gateway = Self { config, namespace: site.gateway.clone(), file };
        gateway.create();
        gateway
    }

    fn create(&self) {
        let name = &self.config.name;
        self.namespace.ip(&format!("link add {name} type wireguard\n"));
        self.wg(&["setconf", name, &self.file]);
        self.namespace.ip(&self.config.addresses_and_routes());
    }

    /// Simulates a reboot: all sessions are gone.
    pub fn restart(&self) {
        self.namespace.ip(&format!("link del {}\n", self.config.name));
        self.create();
    }

    pub fn public_key(&self) -> String {
        self.config.public_key()
    }

    /// Where it sends to `peer`.
    pub fn endpoint(&self, peer: &str) -> Option<SocketAddr> {
        let endpoints = self.wg(&["show", &self.config.name, "endpoints"]);
        endpoints.lines().find_map(|line| line.strip_prefix(peer)?.trim().parse().ok())
    }

    /// The kernel's `wg` names belong to a namespace.
    fn wg(&self, arguments: &[&str]) -> String {
        self.namespace.run(&[&["wg"], arguments].concat())
    }
}

impl Drop for KernelWireguard {
    fn drop(&mut self) {
        self.namespace.attempt(&["ip", "link", "del", &self.config.name]);
    }
}

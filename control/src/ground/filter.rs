//! The packet filter: the guard's third layer, in a table of the gateway's own.
//!
//! ```text
//!   forward      from LAN or tun, to a guarded prefix, by another interface          drop
//!   forward      from the tun device by anything but it or a LAN, without transit   drop
//!   forward      from a bridge to the same bridge                                    accept
//!   forward      from another interface, with a source in a guarded prefix           drop
//!   input        the same, except for outer packets and neighbour discovery          drop
//!   prerouting   outer packets get the mark, where an outer address is guarded, so that
//!                a strict reverse path filter takes them
//! ```
//! Outer packets are known by their socket, which has the mark: the answers of a coordinator are accepted wherever it is.
//!
//! Prefixes are elements of interval sets, so a packet costs one look-up however many there are. A default route is
//! only in the outward set: as a source it would refuse everything.
//!
//! Where `br_netfilter` is loaded, frames between the ports of a bridge pass the forward chain too. A gateway whose LAN or
//! WAN interface is a veth to a bridge of the same machine meets its own packets there. What comes in by a bridge and
//! leaves by it stays on one link, where its sender could have reached the receiver without this machine.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;

use ipnet::IpNet;

use crate::netlink::FILTER_PREFIX;
use crate::profile::Name;
use crate::tool;

/// The contents of a gateway's packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The gateway's name, which is also that of its tun device.
    pub name: Name,
    /// The interfaces between which packets of guarded prefixes may travel: the tun device, the LAN's, and the tun
    /// devices of other gateways.
    pub inside: BTreeSet<String>,
    /// The bridges of this machine.
    pub bridges: BTreeSet<String>,
    /// Whether packets from the tunnel may leave through these interfaces only.
    pub confined: bool,
    /// Destinations that may be reached only through the tun device or a LAN, none inside another.
    pub outward: BTreeSet<IpNet>,
    /// Sources that may come only from the tun device or a LAN, none inside another.
    pub inward: BTreeSet<IpNet>,
    /// The tunnel's port, where outer packets are accepted even with a source in a guarded prefix.
    pub local_port: Option<u16>,
    /// The mark of the gateway's outer sockets, whose packets are accepted too.
    pub mark: u32,
    /// Whether incoming outer packets get the mark.
    pub restores_mark: bool,
}

impl Filter {
    /// The commands for `nft -f` that install it in one step, whatever was there.
    #[must_use]
    pub fn script(&self) -> String {
        let table = table(&self.name);
        let inside = quoted(self.inside.iter());
        let trusted = quoted(self.inside.iter().chain(&["lo".to_owned()]));
        let mark = self.mark;
        let mut text = String::new();
        // The table is created first, so that there is one to delete.
        let _ = writeln!(text, "table inet {table} {{\n}}\ndelete table inet {table}\ntable inet {table} {{");
        for (set, prefixes) in [("outward", &self.outward), ("inward", &self.inward)] {
            for (version, kind, v4) in [("4", "ipv4_addr", true), ("6", "ipv6_addr", false)] {
                let elements: Vec<String> =
                    prefixes.iter().filter(|p| p.addr().is_ipv4() == v4).map(ToString::to_string).collect();
                let _ = writeln!(text, " set {set}{version} {{\n  type {kind}\n  flags interval");
                if !elements.is_empty() {
                    let _ = writeln!(text, "  elements = {{ {} }}", elements.join(", "));
                }
                text.push_str(" }\n");
            }
        }
        let outward = format!("iifname {{ {inside} }} oifname != {{ {inside} }}");
        let inward = format!("iifname != {{ {trusted} }}");
        let from_tunnel = match self.confined {
            true => format!("iifname \"{}\" oifname != {{ {inside} }} drop\n  ", self.name),
            false => String::new(),
        };
        let within_bridge = match self.bridges.is_empty() {
            true => String::new(),
            false => {
                let pairs: Vec<_> = self.bridges.iter().map(|name| format!("\"{name}\" . \"{name}\"")).collect();
                format!("iifname . oifname {{ {} }} accept\n  ", pairs.join(", "))
            }
        };
        let _ = writeln!(
            text,
            " chain forward {{\n  type filter hook forward priority filter; policy accept;\n  \
             {outward} ip daddr @outward4 drop\n  {outward} ip6 daddr @outward6 drop\n  {from_tunnel}\
             {within_bridge}{inward} ip saddr @inward4 drop\n  {inward} ip6 saddr @inward6 drop\n }}"
        );
        let _ = writeln!(text, " chain input {{\n  type filter hook input priority filter; policy accept;");
        if let Some(port) = self.local_port {
            let _ = writeln!(text, "  udp dport {port} accept");
        }
        let _ = writeln!(
            text,
            "  {inward} socket mark {mark} accept\n  \
             icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept\n  \
             {inward} ip saddr @inward4 drop\n  {inward} ip6 saddr @inward6 drop\n }}"
        );
        if self.restores_mark {
            let _ = writeln!(text, " chain restore {{\n  type filter hook prerouting priority mangle; policy accept;");
            if let Some(port) = self.local_port {
                let _ = writeln!(text, "  {inward} udp dport {port} meta mark set {mark}");
            }
            let _ = writeln!(text, "  {inward} socket mark {mark} meta mark set {mark}\n }}");
        }
        text.push_str("}\n");
        text
    }

    /// Installs it.
    ///
    /// # Errors
    /// There is no nft, or it reports an error, which is in the sentence.
    pub(super) fn install(&self) -> io::Result<()> {
        // nft would interpret these characters, the kernel does not.
        if let Some(name) = self.inside.union(&self.bridges).find(|name| name.contains(['"', '\\', '*'])) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("nft cannot name the interface {name}")));
        }
        tool::run("nft", &["-f", "-"], &self.script()).map(drop)
    }
}

/// Removes the filter of the gateway of this name, if it exists.
///
/// # Errors
/// There is no nft, or it reports an error.
pub(super) fn remove(name: &Name) -> io::Result<()> {
    let table = table(name);
    tool::run("nft", &["-f", "-"], &format!("table inet {table} {{\n}}\ndelete table inet {table}\n")).map(drop)
}

/// How nft prints the filter of the gateway of this name, without what differs from one run to the next; `None` if it
/// does not exist.
///
/// # Errors
/// There is no nft, or its output is not understood.
pub(super) fn print(name: &Name) -> io::Result<Option<serde_json::Value>> {
    let table = table(name);
    let text = match tool::run("nft", &["-j", "list", "table", "inet", &table], "") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(e),
        Err(_) => return Ok(None),
        Ok(text) => text,
    };
    let mut printed: serde_json::Value = serde_json::from_slice(&text)?;
    forget_handles(&mut printed);
    Ok(Some(printed))
}

/// Removes handles, which grow with every change and mean nothing.
fn forget_handles(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.remove("handle");
            fields.remove("metainfo");
            fields.values_mut().for_each(forget_handles);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(forget_handles),
        _ => {}
    }
}

fn table(name: &Name) -> String {
    format!("{FILTER_PREFIX}{name}")
}

fn quoted<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

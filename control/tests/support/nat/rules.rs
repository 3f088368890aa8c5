//! The nftables rules for each kind of NAT.
//!
//! A *cone* is a map from external port to internal endpoint, which every outgoing packet renews; a packet from outside
//! is translated by it, whoever sent it. The forward chain decides what then passes. Cones drop what is not translated
//! before connection tracking sees it; plain masquerade does not, which is why an early packet from a peer makes it
//! choose another port.

use super::{Kind, UdpTimeouts};
use std::fmt::Write;
use std::net::Ipv4Addr;

/// The configuration of a NAT.
#[derive(Clone, Debug)]
pub struct Nat {
    pub kind: Kind,
    /// The external address.
    pub external: Ipv4Addr,
    pub timeouts: UdpTimeouts,
    /// An internal port that appears outside as a different one.
    pub moved: Option<(u16, u16)>,
    /// Whether a full cone lets the inside reach itself by the external address.
    pub hairpin: bool,
    /// Remote addresses to and from which UDP is dropped.
    pub cut: Vec<Ipv4Addr>,
}

impl Nat {
    /// The whole ruleset, which replaces the previous one.
    pub fn ruleset(&self) -> String {
        let mut rules = String::from("table ip lab\ndelete table ip lab\ntable ip lab {\n");
        self.cut(&mut rules);
        match self.kind {
            Kind::None => {}
            Kind::FullCone | Kind::AddressRestricted | Kind::PortRestricted => self.cone(&mut rules),
            Kind::Symmetric => self.masquerade(&mut rules, " random"),
            Kind::Masquerade => self.masquerade(&mut rules, ""),
            Kind::UdpBlocked => {
                self.masquerade(&mut rules, "");
                rules.push_str("chain forward { type filter hook forward priority 0; meta l4proto udp drop; }\n");
            }
            Kind::ProxyOnly => {
                self.masquerade(&mut rules, "");
                rules.push_str("chain forward { type filter hook forward priority 0; policy drop; }\n");
            }
        }
        rules.push_str("}\n");
        rules
    }

    fn masquerade(&self, rules: &mut String, how: &str) {
        let moved = self.moved.map(|(inside, outside)| {
            format!("oifname wan meta l4proto udp udp sport {inside} masquerade to :{outside};")
        });
        let moved = moved.unwrap_or_default();
        let _ = writeln!(
            rules,
            "chain prerouting {{ type nat hook prerouting priority -100; }}
             chain postrouting {{ type nat hook postrouting priority 100;
                 {moved}
                 oifname wan masquerade{how}; }}"
        );
    }

    fn cone(&self, rules: &mut String) {
        let (external, life) = (self.external, self.timeouts.stream.as_secs());
        let renew = "update @mappings { udp sport : ip saddr . udp sport }";
        let (renew_moved, show_moved) = self.moved.map_or_else(Default::default, |(inside, outside)| {
            (
                format!(
                    "oifname wan udp sport {inside} update @mappings {{ {outside} : ip saddr . udp sport }} accept;"
                ),
                format!("oifname wan meta l4proto udp udp sport {inside} snat to {external}:{outside};"),
            )
        });
        let hairpin = self.hairpin && self.kind == Kind::FullCone;
        let (hairpin_in, hairpin_out) = if hairpin {
            (
                format!("iifname lan ip daddr {external} meta l4proto udp dnat ip to udp dport map @mappings;"),
                format!("iifname lan oifname lan meta l4proto udp snat to {external};"),
            )
        } else {
            Default::default()
        };
        let _ = writeln!(
            rules,
            "map mappings {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout;
                 size 65535; timeout {life}s; }}
             chain renewal {{ type filter hook postrouting priority 90;
                 {renew_moved}
                 oifname wan meta l4proto udp {renew}; }}
             chain prerouting {{ type nat hook prerouting priority -100;
                 {hairpin_in}
                 iifname wan meta l4proto udp dnat ip to udp dport map @mappings; }}
             chain postrouting {{ type nat hook postrouting priority 100;
                 {show_moved}
                 {hairpin_out}
                 oifname wan snat to {external}; }}
             chain input {{ type filter hook input priority 0; iifname wan meta l4proto udp drop; }}"
        );
        let filter = match self.kind {
            Kind::AddressRestricted => format!(
                "set permitted {{ type ipv4_addr . inet_service . ipv4_addr; flags dynamic,timeout;
                     size 65535; timeout {life}s; }}
                 chain forward {{ type filter hook forward priority 0;
                     oifname wan meta l4proto udp update @permitted {{ ip saddr . udp sport . ip daddr }};
                     iifname wan meta l4proto udp ip daddr . udp dport . ip saddr @permitted accept;
                     iifname wan meta l4proto udp drop; }}\n"
            ),
            Kind::PortRestricted => "chain forward { type filter hook forward priority 0;
                     iifname wan ct state established,related accept;
                     iifname wan drop; }\n"
                .into(),
            _ => String::new(),
        };
        rules.push_str(&filter);
    }

    fn cut(&self, rules: &mut String) {
        if self.cut.is_empty() {
            return;
        }
        let list: Vec<String> = self.cut.iter().map(ToString::to_string).collect();
        let list = list.join(", ");
        // After the NAT's translation, so that the remote address appears as itself in both directions.
        let _ = writeln!(
            rules,
            "chain cuts {{ type filter hook forward priority -10;
                 meta l4proto udp ip daddr {{ {list} }} drop;
                 meta l4proto udp ip saddr {{ {list} }} drop; }}"
        );
    }
}

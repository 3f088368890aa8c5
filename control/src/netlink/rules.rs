//! Routing rules (`ip rule`): in which table a packet's route is looked up.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Nla};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, network};

/// A rule in one of the forms that a gateway uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Whether it is for IPv6.
    pub ipv6: bool,
    /// Lower priorities come first.
    pub priority: u32,
    /// Only for packets from this address.
    pub from: Option<IpAddr>,
    /// Only for packets that arrived on this interface; on `lo` for those of this host (`iif`).
    pub input: Option<String>,
    /// Only for packets without this mark (`not fwmark`).
    pub unmarked: Option<u32>,
    /// The table that it leads to; `None` for a rule that drops (`blackhole`).
    pub table: Option<u32>,
    /// Whether the table's default route does not count (`suppress_prefixlength 0`).
    pub without_default: bool,
    /// Who added it (`rtnetlink(7)`, `rtm_protocol`).
    pub protocol: u8,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = if self.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.action = if self.table.is_some() { RuleAction::ToTable } else { RuleAction::Blackhole };
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.extend(self.table.map(RuleAttribute::Table));
        attributes.extend(self.without_default.then_some(RuleAttribute::SuppressPrefixLen(0)));
        attributes.push(RuleAttribute::Protocol(RouteProtocol::from(self.protocol)));
        if let Some(from) = self.from {
            message.header.src_len = IpNet::from(from).prefix_len();
            attributes.push(RuleAttribute::Source(from));
        }
        attributes.extend(self.input.clone().map(RuleAttribute::Iifname));
        if let Some(mark) = self.unmarked {
            message.header.flags = RuleFlags::Invert;
            attributes.push(RuleAttribute::FwMark(mark));
            attributes.push(RuleAttribute::FwMask(u32::MAX));
        }
        message
    }

    /// The rule in a message; `None` if it has another form than ours.
    pub(super) fn from_message(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let table = match header.action {
            RuleAction::ToTable => Some(u32::from(header.table)),
            RuleAction::Blackhole => None,
            _ => return None,
        };
        if header.dst_len != 0 || header.tos != 0 {
            return None;
        }
        let mut rule = Self {
            ipv6: header.family == AddressFamily::Inet6,
            priority: 0,
            from: None,
            input: None,
            unmarked: None,
            table,
            without_default: false,
            protocol: 0,
        };
        let inverted = header.flags.contains(RuleFlags::Invert);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(number) => rule.table = table.and(Some(*number)),
                RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol),
                RuleAttribute::Source(from) if header.src_len == IpNet::from(*from).prefix_len() => {
                    rule.from = Some(*from);
                }
                RuleAttribute::Iifname(name) => rule.input = Some(name.clone()),
                RuleAttribute::FwMark(mark) if inverted => rule.unmarked = Some(*mark),
                RuleAttribute::FwMask(u32::MAX) => {}
                RuleAttribute::SuppressPrefixLen(0) => rule.without_default = true,
                // The kernel reports "no limit" of these with each rule.
                RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
                _ => return None,
            }
        }
        (inverted == rule.unmarked.is_some()).then_some(rule)
    }
}

/// Selects by traffic class, since Linux 6.13 (`linux/fib_rules.h`).
const FRA_DSCP: u16 = 25;

/// A rule of any form, as far as it says which packets it selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignRule {
    /// Whether it is for IPv6.
    pub ipv6: bool,
    /// Lower priorities come first.
    pub priority: u32,
    /// Who added it.
    pub protocol: u8,
    /// Only for packets from this prefix.
    pub source: Option<IpNet>,
    /// Only for packets to this prefix.
    pub destination: Option<IpNet>,
    /// Only for packets that arrived on this interface.
    pub input: Option<String>,
    /// Only for packets of sockets bound to this interface, or of an L3 master device.
    pub bound: bool,
    /// Only for packets with this mark.
    pub mark: Option<u32>,
    /// Only for packets of one traffic class.
    pub by_class: bool,
    /// Whether it selects all other packets instead.
    pub inverted: bool,
    /// The table it leads to; `None` for a rule that drops, or goes on at another one.
    pub table: Option<u32>,
    /// Routes of the table with prefixes no longer than this do not count.
    pub suppressed: Option<u32>,
}

impl From<&Rule> for ForeignRule {
    fn from(rule: &Rule) -> Self {
        Self {
            ipv6: rule.ipv6,
            priority: rule.priority,
            protocol: rule.protocol,
            source: rule.from.map(IpNet::from),
            input: rule.input.clone(),
            mark: rule.unmarked,
            inverted: rule.unmarked.is_some(),
            table: rule.table,
            suppressed: rule.without_default.then_some(0),
            ..Self::default()
        }
    }
}

impl ForeignRule {
    /// The rule in a message; `None` if it decides nothing itself.
    pub(super) fn from_message(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let table = match header.action {
            RuleAction::ToTable => Some(u32::from(header.table)),
            RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit | RuleAction::Goto => None,
            _ => return None,
        };
        let ipv6 = header.family == AddressFamily::Inet6;
        let inverted = header.flags.contains(RuleFlags::Invert);
        let mut rule = Self { ipv6, inverted, table, by_class: header.tos != 0, ..Self::default() };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(number) => rule.table = table.and(Some(*number)),
                RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol),
                RuleAttribute::Source(from) => rule.source = Some(network(*from, header.src_len)),
                RuleAttribute::Destination(to) => rule.destination = Some(network(*to, header.dst_len)),
                RuleAttribute::Iifname(name) => rule.input = Some(name.clone()),
                RuleAttribute::Oifname(_) | RuleAttribute::L3MDev(true) => rule.bound = true,
                RuleAttribute::FwMark(mark) => rule.mark = Some(*mark),
                RuleAttribute::Other(attribute) if attribute.kind() == FRA_DSCP => rule.by_class = true,
                RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => rule.suppressed = Some(*length),
                _ => {}
            }
        }
        Some(rule)
    }
}

impl Netlink {
    /// All rules that decide something, whoever added them.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn every_rule(&mut self) -> io::Result<Vec<ForeignRule>> {
        self.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()), |m| match m {
            RouteNetlinkMessage::NewRule(rule) => ForeignRule::from_message(&rule),
            _ => None,
        })
    }

    /// The rules that decide something and have another form than a gateway's.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn other_rules(&mut self) -> io::Result<Vec<ForeignRule>> {
        self.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()), |m| match m {
            RouteNetlinkMessage::NewRule(rule) if Rule::from_message(&rule).is_none() => {
                ForeignRule::from_message(&rule)
            }
            _ => None,
        })
    }

    /// All rules in the forms that a gateway uses.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn rules(&mut self) -> io::Result<Vec<Rule>> {
        self.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()), |m| match m {
            RouteNetlinkMessage::NewRule(rule) => Rule::from_message(&rule),
            _ => None,
        })
    }

    /// Adds a rule; it is not an error if it already exists.
    ///
    /// # Errors
    /// The kernel's error, or it has no support for rules.
    pub fn add_rule(&mut self, rule: &Rule) -> io::Result<()> {
        match self.change(RouteNetlinkMessage::NewRule(rule.message()), NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Removes a rule; it is not an error if it is already gone.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn remove_rule(&mut self, rule: &Rule) -> io::Result<()> {
        match self.change(RouteNetlinkMessage::DelRule(rule.message()), 0) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_survives_its_message_and_a_foreign_one_is_not_taken_for_it() {
        let rule = Rule {
            ipv6: false,
            priority: 4710,
            from: None,
            input: None,
            unmarked: Some(47100),
            table: Some(47100),
            without_default: false,
            protocol: 80,
        };
        let by = |name: &str| Rule { input: Some(name.to_owned()), unmarked: None, table: Some(254), ..rule.clone() };
        let from = Rule { from: Some("192.0.2.1".parse().unwrap()), ..by("lo") };
        let confined = Rule { without_default: true, ..by("pen0") };
        let drops = Rule { table: None, ..by("pen0") };
        for rule in [rule.clone(), from, confined, drops, Rule { ipv6: true, ..rule.clone() }] {
            assert_eq!(Rule::from_message(&rule.message()), Some(rule.clone()));
            let mut foreign = rule.message();
            foreign.attributes.push(RuleAttribute::Oifname("eth0".to_owned()));
            assert_eq!(Rule::from_message(&foreign), None);
            assert_eq!(ForeignRule::from_message(&rule.message()), Some(ForeignRule::from(&rule)));
        }
        let mut all = rule.message();
        all.header.flags = RuleFlags::empty();
        assert_eq!(Rule::from_message(&all), None, "of marked packets");
    }
}

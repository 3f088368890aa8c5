//! What AF_XDP would pass by: rules of the kernel's packet filter and of its traffic control that may concern the tunnel's
//! packets.
//!
//! [`read`] asks nftables, iptables and traffic control for what they hold, as a list of [`Chain`]s; [`Ruleset::concern`]
//! walks them with a kind of [`Packets`] in hand. Of each condition it is known that it holds for all of the packets, for
//! none, or that it may hold for some: what cannot be told is taken for the last. A chain is of no concern when everything
//! in it that may take a packet lets it pass untouched.

mod iptables;
mod nft;
mod packets;
mod protocols;
mod read;
mod traffic_control;

use std::collections::BTreeMap;

use ipnet::IpNet;

use packets::{Holds, Packets};
pub use packets::{Inside, Outside};
pub use read::read;

/// Chains entered from chains, at most. The kernel has the same limit (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// Rules looked at for one answer, at most: many jumps to large chains could make them very many.
const STEPS: usize = 1_000_000;

/// Where in a packet's way a chain stands (`nft(8)`, hooks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before the route is looked up.
    Prerouting,
    /// To this host.
    Input,
    /// From one interface to another.
    Forward,
    /// From this host.
    Output,
    /// Before it leaves.
    Postrouting,
    /// As it comes from the device; of one interface if it is known.
    Ingress,
    /// As it goes to the device.
    Egress,
}

/// The beginning of a packet's way through a ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    hook: Hook,
    /// Only packets by this interface.
    device: Option<String>,
    /// Whether what no rule decides about is dropped.
    drops: bool,
}

/// Rules in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    /// Chains of one table jump to each other: "inet fw".
    table: String,
    name: String,
    /// Whether it sees IPv4 and IPv6.
    families: [bool; 2],
    base: Option<Base>,
    rules: Vec<Rule>,
}

/// A rule: what is done with the packets for which all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// Which one it is, for people.
    name: String,
    conditions: Vec<Condition>,
    action: Action,
}

/// What a packet must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    what: What,
    /// Whether it must be otherwise.
    not: bool,
}

/// A property of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// Comes by one of these interfaces; an asterisk at the end stands for anything.
    Input(Vec<String>),
    /// Leaves by one of these.
    Output(Vec<String>),
    /// Comes from one of these prefixes; of the other family it does not.
    Source(Vec<IpNet>),
    /// Goes to one of these.
    Destination(Vec<IpNet>),
    /// IPv4 or IPv6.
    Ipv6(bool),
    /// Has one of these protocols, by number.
    Protocol(Vec<u8>),
    /// Has a source port in one of these ranges, with any protocol.
    SourcePort(Vec<(u16, u16)>),
    /// Has such a destination port.
    DestinationPort(Vec<(u16, u16)>),
    /// Is of a connection in one of these states, by their names in lower case.
    Connection(Vec<String>),
    /// Is for this host.
    Local,
    /// Something else, which may hold.
    Unknown,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// Nothing.
    Continue,
    /// Lets the packet pass this base chain.
    Accept,
    /// Goes back to where the chain was entered.
    Return,
    /// Goes on in another chain, and then here.
    Jump(String),
    /// Goes on in another chain, and then where this one was entered.
    Goto(String),
    /// Something that can be noticed: drops, changes, counts, logs.
    Change,
}

/// All that may concern packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    chains: Vec<Chain>,
    /// What cannot be read, and so may be anything.
    unread: Vec<String>,
}

/// What becomes of packets in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// All of them are let pass.
    Accepted,
    /// Some or all come to the end.
    End,
    /// This rule may be noticed by some.
    Concerned(String),
}

impl Ruleset {
    /// A rule that may be noticed by packets between the LAN interface and the tunnel, as words; `None` if there is none.
    #[must_use]
    pub fn concerns_lan(&self, inside: &Inside<'_>) -> Option<String> {
        self.concern(&inside.packets())
    }

    /// The same for the tunnel's own packets on the WAN.
    #[must_use]
    pub fn concerns_wan(&self, outside: &Outside) -> Option<String> {
        self.concern(&outside.packets())
    }

    fn concern(&self, kinds: &[Packets]) -> Option<String> {
        if let Some(unread) = self.unread.first() {
            return Some(unread.clone());
        }
        let mut walk = Walk { chains: self.by_name(), steps: 0 };
        for chain in &self.chains {
            let Some(base) = &chain.base else { continue };
            for packets in kinds.iter().filter(|packets| packets.passes(base, chain.families)) {
                match walk.chain(chain, packets, 0) {
                    Fate::Concerned(rule) => return Some(rule),
                    Fate::End if base.drops => {
                        return Some(format!("the firewall's policy of chain {}, table {}", chain.name, chain.table));
                    }
                    Fate::End | Fate::Accepted => {}
                }
            }
        }
        None
    }

    fn by_name(&self) -> BTreeMap<(&str, &str), &Chain> {
        self.chains.iter().map(|chain| ((chain.table.as_str(), chain.name.as_str()), chain)).collect()
    }
}

/// A walk through the rules.
struct Walk<'a> {
    chains: BTreeMap<(&'a str, &'a str), &'a Chain>,
    steps: usize,
}

impl Walk<'_> {
    fn chain(&mut self, chain: &Chain, packets: &Packets, depth: usize) -> Fate {
        for rule in &chain.rules {
            self.steps += 1;
            if self.steps > STEPS || depth > DEPTH {
                return Fate::Concerned(format!(
                    "{}, table {}, which is too long a way to follow",
                    rule.name, chain.table
                ));
            }
            let holds = packets.hold(&rule.conditions);
            if holds == Holds::Never {
                continue;
            }
            let always = holds == Holds::Always;
            match &rule.action {
                Action::Continue => {}
                Action::Change => return Fate::Concerned(format!("{}, table {}", rule.name, chain.table)),
                Action::Accept if always => return Fate::Accepted,
                Action::Return if always => return Fate::End,
                Action::Accept | Action::Return => {}
                Action::Jump(name) | Action::Goto(name) => {
                    let to = self.chains.get(&(chain.table.as_str(), name.as_str())).copied();
                    match to.map_or(Fate::End, |to| self.chain(to, packets, depth + 1)) {
                        Fate::Accepted if always => return Fate::Accepted,
                        Fate::End if always && matches!(rule.action, Action::Goto(_)) => return Fate::End,
                        Fate::Concerned(rule) => return Fate::Concerned(rule),
                        Fate::Accepted | Fate::End => {}
                    }
                }
            }
        }
        Fate::End
    }
}

#[cfg(test)]
mod tests;

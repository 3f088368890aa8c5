//! What AF_XDP would bypass: rules of the kernel's packet filter, of IPsec and of its traffic control that may concern the
//! tunnel's packets; and what sockets do not bypass: rules that certainly drop them.
//!
//! [`read`] asks nftables, iptables, IPsec and traffic control for their rules, as a list of [`Chain`]s; [`Ruleset::concern`]
//! walks them for one kind of [`Packets`]. A condition is known to hold for all of these packets, for none, or possibly
//! for some; when it cannot be decided, the last is assumed. A chain is of no concern when everything in it that may
//! match a packet lets it pass untouched. It is a [`Barrier`] when all packets are dropped and nothing in it may accept
//! any.
//!
//! A rule that sends packets elsewhere (destination NAT, port forwarding) concerns their answers too: these have to get
//! back the address that the client used, which only the kernel knows.

mod ipsec;
mod iptables;
mod named;
mod nft;
mod packets;
mod protocols;
mod read;
mod traffic_control;

use std::collections::BTreeMap;

use ipnet::IpNet;
use penstock_dataplane::filter::Direction;

use packets::{Holds, Packets, Target};
pub use packets::{Inside, Outside};
pub use read::read;

/// The deepest nesting of chains. The kernel has the same limit (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// The most rules looked at for one answer: many jumps to large chains could multiply them.
const STEPS: usize = 1_000_000;

/// The hook of a chain in a packet's way (`nft(8)`, hooks).
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
    /// As it comes from the device; for one interface if that is known.
    Ingress,
    /// As it goes to the device.
    Egress,
}

/// A base chain's hook: the beginning of a packet's way through a ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    hook: Hook,
    /// Only for packets of this interface.
    device: Option<String>,
    /// Whether packets that no rule decides on are dropped.
    drops: bool,
}

/// A sequence of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    /// The table; chains of one table can jump to each other: "inet fw".
    table: String,
    name: String,
    /// Whether it sees IPv4, and IPv6.
    families: [bool; 2],
    base: Option<Base>,
    rules: Vec<Rule>,
}

/// A rule: what is done with the packets that meet all conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// What identifies it, for people.
    name: String,
    conditions: Vec<Condition>,
    action: Action,
}

/// A condition on packets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    what: What,
    /// Whether it is negated.
    not: bool,
}

/// A property of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// Arrives on one of these interfaces; an asterisk at the end stands for anything.
    Input(Vec<String>),
    /// Leaves through one of these.
    Output(Vec<String>),
    /// Comes from one of these prefixes; packets of the other family do not match.
    Source(Vec<IpNet>),
    /// Goes to one of these.
    Destination(Vec<IpNet>),
    /// IPv4 or IPv6.
    Ipv6(bool),
    /// Has one of these protocols, by number.
    Protocol(Vec<u8>),
    /// Has a source port in one of these ranges, whatever the protocol.
    SourcePort(Vec<(u16, u16)>),
    /// The same for the destination port.
    DestinationPort(Vec<(u16, u16)>),
    /// Belongs to a connection in one of these states, in lower case.
    Connection(Vec<String>),
    /// Is for this host.
    Local,
    /// Something else, which may or may not hold.
    Unknown,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// Nothing.
    Continue,
    /// Lets the packet pass this base chain.
    Accept,
    /// Goes back to where the chain was called from.
    Return,
    /// Continues in another chain, and then here.
    Jump(String),
    /// Continues in another chain, and then where this one was called from.
    Goto(String),
    /// Drops the packet, with or without a message to its sender.
    Drop,
    /// Leaves the decision to a program.
    Queue,
    /// Sends the packet elsewhere.
    Translate(Target),
    /// Gives the packet the address of the interface by which it leaves, and keeps its port if that is free.
    Masquerade,
    /// Something else that can be noticed: changing, counting, logging.
    Change,
}

/// All rules that may concern packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    chains: Vec<Chain>,
    /// What could not be read, and so may be anything.
    unread: Vec<String>,
    /// Whether elements of named sets were read.
    looks_into_sets: bool,
}

/// A base chain that drops all packets of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// The rule or policy that drops them, in words.
    pub rule: String,
    /// The base chain's table, with its family or program: "inet fw", "filter of iptables".
    pub table: String,
    /// The base chain's name.
    pub chain: String,
}

/// What a chain does with packets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// All of them are accepted; in a search for a barrier, possibly only some.
    Accepted,
    /// Some or all reach the end.
    End,
    /// This rule may affect some of them.
    Concerned(String),
}

impl Ruleset {
    /// A rule that may affect packets between the LAN interface and the tunnel, in words; `None` if there is none.
    #[must_use]
    pub fn concerns_lan(&self, inside: &Inside<'_>) -> Option<String> {
        self.concern(&inside.packets())
    }

    /// The same for the tunnel's own packets on the WAN.
    #[must_use]
    pub fn concerns_wan(&self, outside: &Outside) -> Option<String> {
        self.concern(&outside.packets())
    }

    /// What keeps other sites from reaching the tunnel's port.
    #[must_use]
    pub fn barrier_wan(&self, outside: &Outside) -> Option<Barrier> {
        outside.calls().iter().find_map(|packets| self.barrier(packets))
    }

    /// What keeps connections from being opened in this direction between the LAN interface and the tunnel.
    #[must_use]
    pub fn barrier_lan(&self, inside: &Inside<'_>, direction: Direction) -> Option<Barrier> {
        inside.connections(direction).iter().find_map(|packets| self.barrier(packets))
    }

    /// Whether it may differ with other elements in named sets.
    #[must_use]
    pub fn looks_into_sets(&self) -> bool {
        self.looks_into_sets
    }

    /// What could not be read.
    #[must_use]
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    fn barrier(&self, packets: &Packets) -> Option<Barrier> {
        let mut walk = Walk { chains: self.by_name(), steps: 0 };
        self.chains.iter().find_map(|chain| {
            let base = chain.base.as_ref().filter(|base| packets.passes(base, chain.families))?;
            let rule = match walk.barrier(chain, packets, 0) {
                Fate::Concerned(rule) => rule,
                Fate::End if base.drops => policy(chain),
                Fate::End | Fate::Accepted => return None,
            };
            Some(Barrier { rule, table: chain.table.clone(), chain: chain.name.clone() })
        })
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
                    Fate::End if base.drops && packets.sent_to.is_none() => return Some(policy(chain)),
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

/// The policy of a base chain, in words.
fn policy(chain: &Chain) -> String {
    format!("the firewall's policy of chain {}, table {}", chain.name, chain.table)
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
                Action::Translate(target) if packets.sent_to.as_ref().is_some_and(|to| !to.meets(target)) => {}
                Action::Masquerade if packets.have_the_address_of_their_interface() => {
                    if always {
                        return Fate::Accepted;
                    }
                }
                Action::Change | Action::Masquerade | Action::Drop | Action::Queue if packets.sent_to.is_some() => {}
                Action::Change | Action::Masquerade | Action::Drop | Action::Queue | Action::Translate(_) => {
                    return Fate::Concerned(format!("{}, table {}", rule.name, chain.table));
                }
                Action::Accept if always => return Fate::Accepted,
                Action::Return if always => return Fate::End,
                Action::Accept | Action::Return => {}
                Action::Jump(name) | Action::Goto(name) => {
                    let Some(to) = self.chains.get(&(chain.table.as_str(), name.as_str())).copied() else {
                        return Fate::Concerned(format!(
                            "{}, table {}, which leads to a chain that is not listed",
                            rule.name, chain.table
                        ));
                    };
                    match self.chain(to, packets, depth + 1) {
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

    /// Whether all packets are dropped. Where some might be accepted, they are taken to be.
    fn barrier(&mut self, chain: &Chain, packets: &Packets, depth: usize) -> Fate {
        for rule in &chain.rules {
            self.steps += 1;
            if self.steps > STEPS || depth > DEPTH {
                return Fate::Accepted;
            }
            let always = match packets.hold(&rule.conditions) {
                Holds::Never => continue,
                holds => holds == Holds::Always,
            };
            match &rule.action {
                Action::Drop if always => return Fate::Concerned(format!("{}, table {}", rule.name, chain.table)),
                Action::Return if always => return Fate::End,
                Action::Accept | Action::Queue | Action::Return => return Fate::Accepted,
                Action::Continue | Action::Change | Action::Masquerade | Action::Drop | Action::Translate(_) => {}
                Action::Jump(name) | Action::Goto(name) => {
                    let to = self.chains.get(&(chain.table.as_str(), name.as_str())).copied();
                    match to.map_or(Fate::Accepted, |to| self.barrier(to, packets, depth + 1)) {
                        Fate::Accepted => return Fate::Accepted,
                        Fate::Concerned(rule) if always => return Fate::Concerned(rule),
                        Fate::End if matches!(rule.action, Action::Goto(_)) => {
                            return if always { Fate::End } else { Fate::Accepted };
                        }
                        Fate::Concerned(_) | Fate::End => {}
                    }
                }
            }
        }
        Fate::End
    }
}

#[cfg(test)]
mod tests;

//! The firewall of the tunnel: which flows may pass between the sites and the LAN.
//!
//! ```text
//!   packet ─► classify: which flow ─► the worker's cache ─► the shared flow table ─► rules, for what begins a flow
//! ```
//! [`classify`](classify::classify) reads which flow a packet belongs to. A flow that was accepted is remembered in
//! [`Flows`], which all workers share, and its packets pass in both directions. Each worker keeps what it has seen
//! there in the current second in a [`FlowCache`], so that a packet of a busy flow takes no lock. Only a flow's first
//! packet is judged by the rules, in order; the first match decides, and without one the direction's default.
//!
//! A [`Firewall`] is immutable and a part of the table. Under a new one the flows stay, but each is judged again when
//! its next packet comes: those that the new rules accept go on, the others end there.

mod cache;
mod classify;
mod flows;
mod key;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Millis;
use crate::drop::DropReason;
use crate::inner::{ICMP, ICMPV6, Inner, TCP};
use crate::prefix::PrefixMap;

pub use cache::FlowCache;
use classify::{Class, Flags, Role, classify};
use flows::Found;
pub use flows::{FLOWS, Flows};
use key::Key;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the tunnel to the LAN or to the gateway itself.
    In = 1,
    /// From the LAN or the gateway itself into the tunnel.
    Out = 2,
}

impl Direction {
    /// The other direction.
    #[inline]
    pub fn opposite(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It passes.
    Accept,
    /// It is dropped without an answer.
    Drop,
}

/// A protocol by which rules select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
    /// The protocol with this number in the IP header.
    Number(u8),
}

/// A protocol, and its destination ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// The protocol.
    pub protocol: Protocol,
    /// The destination ports; `None`: any. Only of protocols that have ports.
    pub ports: Option<RangeInclusive<u16>>,
}

impl Service {
    #[inline]
    fn holds(&self, key: &Key, port: u16) -> bool {
        let protocol = match self.protocol {
            Protocol::Icmp => key.protocol() == if key.is_v6() { ICMPV6 } else { ICMP },
            Protocol::Number(number) => key.protocol() == number,
        };
        protocol && self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

/// A count of packets that any worker adds to.
pub type Counter = Arc<AtomicU64>;

/// A rule: packets that meet all of its conditions are accepted or dropped.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The direction of the flow's first packet; `None`: either.
    pub direction: Option<Direction>,
    /// The peers ([`crate::peer::PeerCounters::id`]), in order; `None`: any.
    pub peers: Option<Vec<u32>>,
    /// Where the first packet comes from; `None`: anywhere.
    pub sources: Option<PrefixMap<()>>,
    /// Where it goes; `None`: anywhere.
    pub destinations: Option<PrefixMap<()>>,
    /// With which protocols and to which ports; `None`: any.
    pub services: Option<Vec<Service>>,
    /// What happens to the flow.
    pub verdict: Verdict,
    /// The packets that it decided about: the first of each flow, and every one that it drops.
    pub counter: Counter,
}

/// What a peer may reach on this side, whatever the rules say. It restricts only flows that the peer begins.
#[derive(Clone, Debug)]
pub struct Restriction {
    /// These and nothing else.
    pub services: Vec<Service>,
    /// Packets that were dropped because of it.
    pub denied: Counter,
}

/// What happens where no rule decides.
#[derive(Clone, Debug)]
pub struct DefaultRule {
    /// What happens to the packet.
    pub verdict: Verdict,
    /// The packets that it decided about.
    pub counter: Counter,
}

/// What a [`Firewall`] is made of.
#[derive(Clone, Debug)]
pub struct Rules {
    /// For flows that begin in the tunnel.
    pub inward: DefaultRule,
    /// For flows that begin on the LAN.
    pub outward: DefaultRule,
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
    /// What each peer ([`crate::peer::PeerCounters::id`]) may reach. Peers that are not listed are not restricted.
    pub restrictions: HashMap<u32, Restriction>,
}

/// Rules in force, and the flows that they have accepted.
#[derive(Debug)]
pub struct Firewall {
    rules: Rules,
    flows: Arc<Flows>,
    /// Flows that another firewall accepted are judged again.
    generation: u32,
}

impl Firewall {
    /// Rules over a flow table. Flows already in it are judged again by these rules.
    pub fn new(rules: Rules, flows: Arc<Flows>) -> Self {
        let generation = flows.next_generation();
        Self { rules, flows, generation }
    }

    /// Whether a packet may pass: from the peer `peer` ([`crate::peer::PeerCounters::id`]) if it goes in, to that peer
    /// if it goes out.
    ///
    /// # Errors
    /// Why it may not.
    #[inline]
    pub fn admit(
        &self,
        cache: &mut FlowCache,
        packet: &[u8],
        inner: &Inner,
        (peer, direction): (u32, Direction),
        now: Millis,
    ) -> Result<(), DropReason> {
        if let Ok(class) = classify(packet, inner, peer, direction)
            && class.is_steady()
            && cache.knows(&class.key, &self.arrival(&class.key, direction, now))
        {
            return Ok(());
        }
        self.admit_unknown(cache, packet, inner, (peer, direction), now)
    }

    /// The same for flows that are not in the cache. It reads the packet again, so that the key of a cached flow needs
    /// no memory: writing it in pieces and comparing it as a whole stalls the processor for longer than all the rest.
    #[inline(never)]
    fn admit_unknown(
        &self,
        cache: &mut FlowCache,
        packet: &[u8],
        inner: &Inner,
        (peer, direction): (u32, Direction),
        now: Millis,
    ) -> Result<(), DropReason> {
        let class = classify(packet, inner, peer, direction)?;
        let arrival = self.arrival(&class.key, direction, now);
        self.look_up(cache, &class, &arrival, (inner, peer))
    }

    #[inline(always)]
    fn arrival(&self, key: &Key, direction: Direction, now: Millis) -> Arrival {
        let (hash, second) = (self.flows.hash(key), (now.0 / 1000) as u32);
        Arrival { hash, direction, second, generation: self.generation }
    }

    /// Decides by the flow table, and by the rules if the flow is not in it.
    fn look_up(
        &self,
        cache: &mut FlowCache,
        class: &Class,
        arrival: &Arrival,
        (inner, peer): (&Inner, u32),
    ) -> Result<(), DropReason> {
        match class.role {
            Role::LaterFragment if self.flows.holds(&class.key, arrival) => Ok(()),
            Role::LaterFragment => Err(DropReason::FilterFragment),
            Role::Error if self.flows.holds(&class.key, arrival) => Ok(()),
            Role::Error => {
                let protocol = if class.key.is_v6() { ICMPV6 } else { ICMP };
                let own = Key::new((inner.source, inner.destination), protocol, (peer, arrival.direction));
                self.judge(&own.ok_or(DropReason::FilterMalformed)?, arrival.direction)
            }
            Role::Alone => self.judge(&class.key, arrival.direction),
            Role::Begins | Role::Continues => {
                self.follow(cache, class, arrival)?;
                self.note_fragments(class, arrival);
                Ok(())
            }
        }
    }

    /// Counts a packet towards its flow, or lets it begin one.
    fn follow(&self, cache: &mut FlowCache, class: &Class, arrival: &Arrival) -> Result<(), DropReason> {
        let key = &class.key;
        let mut found = self.flows.touch(key, class.flags, arrival);
        if let Found::Stale { initiator } = found {
            if let Err(reason) = self.judge(key, initiator) {
                self.flows.refuse(key, arrival);
                return Err(reason);
            }
            self.flows.renew(key, arrival);
            found = self.flows.touch(key, class.flags, arrival);
        }
        if let Found::Known { steady } = found {
            cache.remember(key, arrival, steady);
            return Ok(());
        }
        self.judge(key, arrival.direction)?;
        if class.role == Role::Continues || self.flows.open(key, class.flags, arrival) {
            return Ok(());
        }
        Err(DropReason::FilterFull)
    }

    /// Lets later fragments pass between two hosts that have an accepted flow, even before the first one: fragments
    /// overtake each other on their way, and are useless without the first, which is judged. For TCP this is done only
    /// if there are fragments.
    fn note_fragments(&self, class: &Class, arrival: &Arrival) {
        if class.key.protocol() == TCP && !class.more_fragments {
            return;
        }
        let key = class.key.of_fragments();
        let arrival = Arrival { hash: self.flows.hash(&key), ..*arrival };
        // If there is no place for it, later fragments are dropped.
        let _ = self.flows.open(&key, Flags::default(), &arrival);
    }

    /// What the rules say about a flow that begins with a packet in this direction.
    fn judge(&self, key: &Key, direction: Direction) -> Result<(), DropReason> {
        let (verdict, counter) = self.rules.decide(key, direction);
        counter.fetch_add(1, Relaxed);
        match verdict {
            Verdict::Accept => Ok(()),
            Verdict::Drop => Err(DropReason::FilterDenied),
        }
    }
}

impl Rules {
    fn decide(&self, key: &Key, direction: Direction) -> (Verdict, &Counter) {
        let port = key.destination_port(direction);
        if direction == Direction::In
            && let Some(restriction) = self.restrictions.get(&key.peer())
            && !restriction.services.iter().any(|service| service.holds(key, port))
        {
            return (Verdict::Drop, &restriction.denied);
        }
        let (source, destination) = key.addresses(direction);
        let matches = |rule: &&Rule| {
            rule.direction.is_none_or(|wanted| wanted == direction)
                && rule.services.as_ref().is_none_or(|services| services.iter().any(|s| s.holds(key, port)))
                && rule.peers.as_ref().is_none_or(|peers| peers.binary_search(&key.peer()).is_ok())
                && within(&rule.sources, source)
                && within(&rule.destinations, destination)
        };
        match (self.rules.iter().find(matches), direction) {
            (Some(rule), _) => (rule.verdict, &rule.counter),
            (None, Direction::In) => (self.inward.verdict, &self.inward.counter),
            (None, Direction::Out) => (self.outward.verdict, &self.outward.counter),
        }
    }
}

fn within(prefixes: &Option<PrefixMap<()>>, address: IpAddr) -> bool {
    prefixes.as_ref().is_none_or(|prefixes| prefixes.lookup(address).is_some())
}

/// When and where a packet came, and the hash of its flow.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    hash: u32,
    direction: Direction,
    /// In seconds on [`Millis`]'s clock.
    second: u32,
    /// The generation of the firewall that judges it.
    generation: u32,
}

//! A reference for tests: the same filter in its simplest form, with lists that are searched from the front, and
//! packets that are described instead of parsed.

use std::net::IpAddr;

use super::{Direction, Verdict};

/// The contents of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Source and destination port, and whether SYN, ACK, FIN, RST are set.
    Tcp(u16, u16, [bool; 4]),
    Udp(u16, u16),
    /// Whether it is a request, and its identifier.
    Echo(bool, u16),
    /// An ICMP error about a packet in the other direction.
    Error(Box<Described>),
    /// Another ICMP message.
    Query,
    /// A protocol without ports.
    Gre,
    /// The first fragment of a UDP packet, with ports and identification.
    First(u16, u16, u16),
    /// A later fragment of a UDP packet.
    Later(u16),
}

/// A packet, and the peer that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) peer: u32,
    pub(super) direction: Direction,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) content: Content,
}

/// A rule. Prefixes are an address and a length.
#[derive(Clone, Debug)]
pub(super) struct ModelRule {
    pub(super) direction: Option<Direction>,
    pub(super) peer: Option<u32>,
    pub(super) source: Option<(IpAddr, u8)>,
    pub(super) destination: Option<(IpAddr, u8)>,
    /// "tcp", "udp", "icmp" or "gre", with the first and last port.
    pub(super) service: Option<(&'static str, Option<(u16, u16)>)>,
    pub(super) verdict: Verdict,
}

/// What distinguishes flows: protocol, peer, both ends, and the ports, or the identifier and which side asks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    protocol: &'static str,
    peer: u32,
    remote: IpAddr,
    local: IpAddr,
    remote_port: u16,
    local_port: u16,
    asked: Option<Direction>,
}

#[derive(Clone, Debug)]
struct Flow {
    name: Name,
    began: Described,
    last: u64,
    /// Whether both sides have sent.
    answered: bool,
    /// TCP: whether the initiator has then sent once more.
    connected: bool,
    ended_in: bool,
    ended_out: bool,
    reset: bool,
    /// The rules that accepted it.
    rules: u32,
}

/// A peer, and a protocol and ports that it may reach.
pub(super) type Reach = (u32, &'static str, Option<(u16, u16)>);

pub(super) struct Model {
    pub(super) rules: Vec<ModelRule>,
    pub(super) defaults: [Verdict; 2],
    /// What these peers may reach.
    pub(super) restricted: Vec<Reach>,
    /// To be changed whenever the rules change.
    pub(super) version: u32,
    flows: Vec<Flow>,
    /// Peer, both ends and time of the latest packets other than TCP.
    fragments: Vec<(u32, IpAddr, IpAddr, u64)>,
}

impl Described {
    fn protocol(&self) -> &'static str {
        match self.content {
            Content::Tcp(..) => "tcp",
            Content::Udp(..) | Content::First(..) | Content::Later(_) => "udp",
            Content::Gre => "gre",
            Content::Echo(..) | Content::Error(_) | Content::Query => "icmp",
        }
    }

    fn ports(&self) -> (u16, u16) {
        match self.content {
            Content::Tcp(source, destination, _)
            | Content::Udp(source, destination)
            | Content::First(source, destination, _) => (source, destination),
            _ => (0, 0),
        }
    }

    /// The flow that it belongs to, if any.
    fn name(&self) -> Option<Name> {
        let (mut from, mut to) = self.ports();
        let mut asked = None;
        match self.content {
            Content::Echo(request, identifier) => {
                (from, to) = (identifier, identifier);
                asked = Some(if request { self.direction } else { self.direction.opposite() });
            }
            Content::Error(_) | Content::Query | Content::Later(_) => return None,
            _ => {}
        }
        let (remote, local, remote_port, local_port) = match self.direction {
            Direction::In => (self.source, self.destination, from, to),
            Direction::Out => (self.destination, self.source, to, from),
        };
        Some(Name { protocol: self.protocol(), peer: self.peer, remote, local, remote_port, local_port, asked })
    }

    fn flags(&self) -> [bool; 4] {
        if let Content::Tcp(_, _, flags) = self.content { flags } else { [false; 4] }
    }
}

impl Flow {
    fn lifetime(&self) -> u64 {
        match (self.name.protocol, self.answered) {
            ("tcp", _) if self.reset => 10,
            ("tcp", _) if self.ended_in && self.ended_out => 120,
            ("tcp", true) if self.connected => 7440,
            ("tcp", true) => 60,
            ("tcp", false) => 120,
            ("udp", true) => 120,
            ("udp", false) | ("icmp", _) => 30,
            _ => 600,
        }
    }

    fn is_over(&self) -> bool {
        self.reset || (self.ended_in && self.ended_out)
    }

    fn take(&mut self, packet: &Described, now: u64) {
        let [syn, _, fin, reset] = packet.flags();
        self.last = now;
        if reset {
            self.reset = true;
            return;
        }
        if !self.is_over() {
            if packet.direction != self.began.direction {
                self.answered = true;
            } else if self.answered && !syn {
                self.connected = true;
            }
        }
        if fin {
            match packet.direction {
                Direction::In => self.ended_in = true,
                Direction::Out => self.ended_out = true,
            }
        }
    }
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            rules: Vec::new(),
            defaults: [Verdict::Drop; 2],
            restricted: Vec::new(),
            version: 0,
            flows: Vec::new(),
            fragments: Vec::new(),
        }
    }

    /// Whether a packet passes at this second.
    pub(super) fn passes(&mut self, packet: &Described, now: u64) -> bool {
        self.flows.retain(|flow| now - flow.last <= flow.lifetime());
        self.fragments.retain(|fragment| now - fragment.3 <= 120);
        let (remote, local) = match packet.direction {
            Direction::In => (packet.source, packet.destination),
            Direction::Out => (packet.destination, packet.source),
        };
        let hosts = |known: &(u32, IpAddr, IpAddr, u64)| (known.0, known.1, known.2) == (packet.peer, remote, local);
        if let Content::Later(_) = packet.content {
            return self.fragments.iter().any(hosts);
        }
        if let Content::Error(about) = &packet.content
            && packet.destination == about.source
            && packet.direction != about.direction
            && let Some(name) = about.name()
            && self.flows.iter().any(|flow| flow.name == Name { peer: packet.peer, ..name.clone() })
        {
            return true;
        }
        let passes = self.passes_alone(packet, now);
        if passes && packet.name().is_some_and(|name| name.protocol != "tcp") {
            self.fragments.retain(|known| !hosts(known));
            self.fragments.push((packet.peer, remote, local, now));
        }
        passes
    }

    fn passes_alone(&mut self, packet: &Described, now: u64) -> bool {
        let Some(name) = packet.name() else { return self.accepts(packet) };
        let [syn, ack, fin, reset] = packet.flags();
        if let Some(at) = self.flows.iter().position(|flow| flow.name == name) {
            let flow = &self.flows[at];
            let again = syn && !ack && !reset && (flow.is_over() || flow.began.direction != packet.direction);
            if !again && flow.rules != self.version && !self.accepts(&flow.began) {
                self.flows[at].last = now;
                return false;
            }
            let flow = &mut self.flows[at];
            if !again {
                flow.rules = self.version;
                flow.take(packet, now);
                return true;
            }
        }
        let accepted = self.accepts(packet);
        let begins = !fin && !reset && !matches!(packet.content, Content::Echo(false, _));
        if accepted && begins {
            self.flows.retain(|flow| flow.name != name);
            self.flows.push(Flow {
                name,
                began: packet.clone(),
                last: now,
                answered: false,
                connected: false,
                ended_in: false,
                ended_out: false,
                reset: false,
                rules: self.version,
            });
        }
        accepted
    }

    fn accepts(&self, packet: &Described) -> bool {
        let port = packet.ports().1;
        let serves = |service: &(&str, Option<(u16, u16)>)| {
            service.0 == packet.protocol() && service.1.is_none_or(|(first, last)| first <= port && port <= last)
        };
        let mut restrictions = self.restricted.iter().filter(|(peer, ..)| *peer == packet.peer).peekable();
        if packet.direction == Direction::In
            && restrictions.peek().is_some()
            && !restrictions.any(|(_, protocol, ports)| serves(&(*protocol, *ports)))
        {
            return false;
        }
        for rule in &self.rules {
            if rule.direction.is_none_or(|direction| direction == packet.direction)
                && rule.peer.is_none_or(|peer| peer == packet.peer)
                && rule.source.is_none_or(|prefix| inside(packet.source, prefix))
                && rule.destination.is_none_or(|prefix| inside(packet.destination, prefix))
                && rule.service.as_ref().is_none_or(serves)
            {
                return rule.verdict == Verdict::Accept;
            }
        }
        self.defaults[packet.direction as usize - 1] == Verdict::Accept
    }
}

/// Compares bit by bit.
fn inside(address: IpAddr, (prefix, length): (IpAddr, u8)) -> bool {
    let bits = |address: IpAddr| -> Vec<bool> {
        let bytes = match address {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
    };
    let (address, prefix) = (bits(address), bits(prefix));
    address.len() == prefix.len() && address.iter().zip(&prefix).take(length.into()).all(|(a, b)| a == b)
}

//! What is measured: the whole worker, its stages, and the AEAD alone.

/// A subject of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A turn of the worker: a batch from the LAN port to the WAN port.
    Encrypt,
    /// ring's AEAD sealing the batch: the floor under [`Subject::Encrypt`].
    RingSeal,
    /// Egress: the inner header parsed, the peer found by longest prefix, its session found alive.
    Route,
    /// Egress: TTL, MSS, and the ECN bits of the outer packet.
    Hop,
    /// Egress: the AEAD, WireGuard's header and tag written.
    Seal,
    /// A turn of the worker: a batch from the WAN port to the LAN port.
    Decrypt,
    /// ring's AEAD opening the batch: the floor under [`Subject::Decrypt`].
    RingOpen,
    /// Ingress: the session by receiver index.
    Lookup,
    /// Ingress: the AEAD, and the plaintext moved to its final position.
    Open,
    /// Ingress: the counter accepted by the replay window, whose lock is taken once per batch.
    Replay,
    /// Ingress: the inner header parsed, the source looked up among the peer's prefixes.
    AllowedIps,
    /// Ingress: ECN merged, the next hop by longest prefix, the TTL.
    NextHop,
    /// [`Subject::Encrypt`] with a firewall that knows the flow.
    FilteredEncrypt,
    /// [`Subject::Decrypt`] with a firewall that knows the flow.
    FilteredDecrypt,
    /// The firewall alone, for packets of a known flow.
    Filter,
    /// UDP, IPv4 and Ethernet headers written in front of a message, as an AF_XDP port does.
    WriteHeaders,
    /// These headers parsed.
    ReadHeaders,
}

/// A direction through the worker: the whole, the floor below it, and its stages.
pub struct Direction {
    /// The worker's turn.
    pub whole: Subject,
    /// The AEAD alone.
    pub floor: Subject,
    /// In the order in which a packet passes them.
    pub stages: &'static [Subject],
}

/// Both directions.
pub const DIRECTIONS: [Direction; 2] = [
    Direction {
        whole: Subject::Encrypt,
        floor: Subject::RingSeal,
        stages: &[Subject::Route, Subject::Hop, Subject::Seal],
    },
    Direction {
        whole: Subject::Decrypt,
        floor: Subject::RingOpen,
        stages: &[Subject::Lookup, Subject::Open, Subject::Replay, Subject::AllowedIps, Subject::NextHop],
    },
];

/// What the worker of [`DIRECTIONS`] does not have: a firewall, and the stages of AF_XDP ports.
pub const BESIDE: [Subject; 5] =
    [Subject::FilteredEncrypt, Subject::FilteredDecrypt, Subject::Filter, Subject::WriteHeaders, Subject::ReadHeaders];

impl Subject {
    /// Whether it is measured in a worker whose table has a firewall.
    pub fn is_filtered(self) -> bool {
        matches!(self, Subject::FilteredEncrypt | Subject::FilteredDecrypt | Subject::Filter)
    }

    /// Every subject, in the order of a report.
    pub fn all() -> impl Iterator<Item = Subject> {
        let directions = DIRECTIONS.iter().flat_map(|d| [d.whole, d.floor].into_iter().chain(d.stages.iter().copied()));
        directions.chain(BESIDE)
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Encrypt => "encrypt",
            Subject::RingSeal => "encrypt: ring alone",
            Subject::Route => "encrypt: route",
            Subject::Hop => "encrypt: TTL, MSS, ECN",
            Subject::Seal => "encrypt: seal",
            Subject::Decrypt => "decrypt",
            Subject::RingOpen => "decrypt: ring alone",
            Subject::Lookup => "decrypt: session lookup",
            Subject::Open => "decrypt: open",
            Subject::Replay => "decrypt: replay window",
            Subject::AllowedIps => "decrypt: allowed IPs",
            Subject::NextHop => "decrypt: ECN, next hop, TTL",
            Subject::FilteredEncrypt => "encrypt, with a firewall",
            Subject::FilteredDecrypt => "decrypt, with a firewall",
            Subject::Filter => "firewall: known flow",
            Subject::WriteHeaders => "headers written",
            Subject::ReadHeaders => "headers read",
        }
    }
}

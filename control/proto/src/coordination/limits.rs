//! The limits of the coordination protocol, on one screen. Both ends keep to them, and each end checks the other.

use std::time::Duration;

/// Longest message of a gateway, in bytes of JSON: a [`Hello`](super::Hello) with the most subnets takes about 4 kB.
pub const GATEWAY_MESSAGE_LIMIT: usize = 16 << 10;
/// Longest message of the coordinator, in bytes of JSON: a whole map of [`PEERS_LIMIT`] peers with a
/// few candidates each takes about 10 MB.
pub const COORDINATOR_MESSAGE_LIMIT: usize = 16 << 20;
/// The most peers of one gateway.
pub const PEERS_LIMIT: usize = 20_000;
/// The most subnets that a site may offer: as many as an administrator can still read.
pub const SUBNETS_LIMIT: usize = 64;
/// The most services that a policy may name.
pub const SERVICES_LIMIT: usize = 256;
/// The most candidates of a site: its addresses of both families, and what STUN and port mapping found.
pub const CANDIDATES_LIMIT: usize = 16;
/// The most relays, and the most STUN servers, in a map.
pub const SERVERS_LIMIT: usize = 16;
/// Longest name of a site or tag: a DNS label (RFC 1035, section 2.3.4).
pub const NAME_LIMIT: usize = 63;
/// The most paths that a gateway reports in one message.
pub const PATHS_LIMIT: usize = 40;
/// Longest reason of a path, in bytes.
pub const REASON_LIMIT: usize = 100;
/// Longest host name of a coordinator (RFC 1035, section 2.3.4).
pub const HOST_LIMIT: usize = 253;

/// The most signed documents in one message, about 100 kB: statements and leases are a few hundred bytes each, and
/// there is one list of revocations.
pub const DOCUMENTS_LIMIT: usize = 256;
/// The most pairs of sites in one message to a relay, about 1 MB; a row of the largest coordinator fits.
pub const ACCESS_PAIRS_LIMIT: usize = 65_536;

/// How often the coordinator pings: a NAT keeps an idle TCP connection for minutes at least (RFC 5382, REQ-5), proxies
/// often for one.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// After this long without a byte the other end is considered dead: two lost pings and some delay.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long each step before the proof may take: TLS, the upgrade, the [`Hello`](super::Hello).
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

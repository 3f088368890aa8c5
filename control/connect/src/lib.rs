//! Outbound connections to a coordinator or a relay, as gateways and relays make them.
//!
//! ```text
//!   URL ─► name ─► TCP, directly or through a proxy ─► TLS 1.3, trusted by a pin or by authorities ─► WebSocket
//! ```
//! [`open`] does all of this, with a time limit for every step. What is said over the WebSocket, and when the next
//! attempt is made, is up to the caller; [`Backoff`] says how long to wait.
//!
//! Errors say what is wrong. What can be done about it depends on who connects, so the caller adds that.
//!
//! Everything sent from here carries the firewall mark, including questions to name servers: [`Outbound`].
//!
//! Reading order: [`url`](HttpsUrl), [`trust`](Trust), [`proxy`](Proxy), [`names`](Names), [`connect`](open).

mod backoff;
mod connect;
mod destinations;
mod error;
mod mark;
mod names;
mod outbound;
mod proxy;
mod trust;
mod url;

pub use backoff::Backoff;
pub use connect::{Heard, Socket, Terms, channel_binding, heard, open, reach, tcp};
pub use destinations::{Changes, Destinations};
pub use error::ConnectError;
pub use mark::{bind_udp, connect_tcp, set_mark};
pub use names::{Answer, NameError, Names};
pub use outbound::Outbound;
pub use proxy::{Proxy, ProxyError};
pub use trust::{Changed, Trust, TrustError, fingerprint};
pub use url::{CoordinatorUrl, HttpsUrl, UrlError};

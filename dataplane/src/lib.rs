//! Penstock's data plane: ports, workers, sessions.
//!
//! The packet's way, each step a module:
//!
//! ```text
//!   steer ─► ports::{xdp,udp} ─► worker ─► ingress: session ─► open ─► replay ─► allowed IPs ─► next hop ─► ports::{xdp,tun}
//!   steer ─► ports::{xdp,tun} ─► worker ─► egress:  allowed IPs ─► session ─► seal ─► ports::{xdp,udp}
//! ```
//!
//! Between allowed IPs and the next step, in both directions, is the [`filter`], if there are rules; before session and
//! seal the [`shaper`], if there is a rate.
//! [`engine`] starts the workers. [`table`] is what control publishes to them, [`slow_path`] the queues
//! between the two. A packet lives in a [`frame`]; one that is not delivered has a [`mod@drop`] reason.
//! There is no tokio here, no netlink, and no log line per packet.

pub mod clock;
pub mod drop;
pub mod engine;
pub mod filter;
pub mod frame;
pub mod inner;
pub mod loopback;
pub mod mapping;
pub mod peer;
pub mod ports;
pub mod prefix;
pub mod replay;
pub mod session;
pub mod shaper;
pub mod slow_path;
pub mod steer;
pub mod table;
pub mod work;
pub mod worker;

mod checksum;
mod egress;
mod fair;
mod icmp;
mod ingress;
#[cfg(test)]
mod random;
mod side;
mod transport;
mod turn;

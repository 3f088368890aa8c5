//! Penstock: the gateway daemon and its command line

pub mod cli;
pub mod control_socket;
pub mod coordinator;
pub mod doctor;
pub mod endpoints;
pub mod firewall;
pub mod gateway;
pub mod ground;
pub mod icmp;
pub mod key;
mod memory;
pub mod metrics;
mod needs;
pub mod netcheck;
pub mod netlink;
pub mod port_mapping;
pub mod problem;
pub mod profile;
mod readable;
pub mod resolver;
mod sealed;
pub mod socket_file;
pub mod state;
pub mod status;
pub mod traversal;
pub mod uapi;
pub mod wg_quick;

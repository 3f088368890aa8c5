//! Penstock: the gateway daemon and its command line

pub mod cli;
pub mod control_socket;
pub mod coordinator;
pub mod gateway;
pub mod key;
pub mod netcheck;
pub mod netlink;
pub mod port_mapping;
pub mod profile;
mod readable;
pub mod resolver;
pub mod socket_file;
pub mod status;
pub mod traversal;
pub mod uapi;

//! Penstock: the gateway daemon and its command line

pub mod cli;
pub mod control_socket;
pub mod key;
pub mod profile;
pub mod socket_file;
pub mod status;
pub mod uapi;
pub mod gateway;
pub mod netlink;
mod readable;

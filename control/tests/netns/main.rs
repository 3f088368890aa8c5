//! Gateways in network namespaces, as root: one program, so that its tests share the machine and are linked once.

#[path = "../support/mod.rs"]
mod support;

mod chaos;
#[cfg(test)]
mod coordinator_client;
mod coturn;
mod crash;
mod ground;
mod hostile;
mod interop;
mod keys;
mod laboratory;
mod mapping_lifetime;
mod names;
mod nat_lab;
mod nat_matrix;
mod netcheck;
mod overlay_hostile;
mod overlay_modes;
mod pairs;
mod path_changes;
mod port_mapping;
mod relays;
mod reload;
mod selftest;
mod teardown;
mod wg_tool;

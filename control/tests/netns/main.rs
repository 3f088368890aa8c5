//! Gateways in network namespaces, as root: one program, so that its tests share the machine and are linked once.

#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod bugreport;
mod chaos;
mod coordinator_client;
mod coturn;
mod crash;
mod devices;
mod doctor;
mod firewall;
mod ground;
mod hostile;
mod interop;
mod keys;
mod laboratory;
mod mapping_lifetime;
mod metrics;
mod names;
mod nat_lab;
mod nat_matrix;
mod netcheck;
mod overlay_hostile;
mod overlay_modes;
mod overlay_trust;
mod pairs;
mod path_changes;
mod path_mtu;
mod port_mapping;
mod relays;
mod reload;
mod restarts;
mod routes;
mod scenarios;
mod selftest;
mod service;
mod start;
mod suites;
mod teardown;
mod top;
mod transit;
mod wg_quick;
mod wg_tool;

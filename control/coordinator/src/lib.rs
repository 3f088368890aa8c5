//! The coordinator: enrols sites, decides who may talk to whom, and tells each site where its peers are.
//!
//! It sees no private keys, and of the traffic only the ciphertext that its relay forwards. A gateway that cannot reach
//! it keeps the peers it has.
//!
//! ```text
//!   gateways ══ TLS 1.3 ══► server ──► connection ──┐
//!                             │ admission            ├──► registry ──► store (SQLite)
//!   command line ── Unix socket ──► admin ──────────┤       │
//!   browsers ── HTTP(S) ──► page ───┴────────────────┘       │
//!                             │                               ├ each site's own view ──► pushes
//!                             └► relay ◄── who may talk ──────┘
//!   gateways ── UDP ──► udp ──► relay, stun
//! ```
//! Who owns what: the [`registry`] owns all knowledge and is the only way to change it; a connection owns its socket
//! and the record of what it has told; [`admission`] decides who may be connected without a proof.
//!
//! Reading order: [`run`], [`server`], [`connection`], [`registry`], [`store`], [`policy`], [`addresses`]; then
//! [`udp`], [`stun`], [`relay`], [`page`].

pub mod acme;
pub mod addresses;
pub mod admin;
pub mod admission;
pub mod certificate;
pub mod cli;
pub mod config;
pub mod connection;
pub mod metrics;
pub mod owner;
pub mod page;
pub mod policy;
pub mod public;
pub mod pulse;
pub mod registry;
pub mod relay;
pub mod run;
pub mod secret;
pub mod server;
pub mod signer;
pub mod site;
pub mod store;
pub mod stun;
pub mod time;
pub mod udp;

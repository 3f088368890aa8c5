//! The coordinator: enrols sites, says who may talk to whom, and tells each where its peers are.
//!
//! It sees no traffic and no private key. A gateway that cannot reach it keeps the peers it has.

pub mod addresses;
pub mod policy;
pub mod site;
pub mod store;

//! What gateways and the coordinator say to each other, and how a gateway proves who it is.
//!
//! A connection is a WebSocket at [`PATH`] over TLS 1.3, with JSON in text frames:
//!
//! ```text
//!   gateway                                           coordinator
//!           ◄── Challenge
//!   Hello   ──►     public key, proof, subnets; an enrolment key the first time; the known map
//!           ◄── Refused, and the end; or Registration, and once approved Documents, Map or Update
//!   Reachability ──►                 whenever it changes
//!           ◄── Documents, Update, Registration  whenever they change
//!           ◄── Reports, from a coordinator that has a page for administrators
//!   Paths   ──►     then, now and again
//! ```
//! A relay on a machine of its own connects in the same way, with its own key, and gets [`Access`] instead of maps.
//!
//! Before the proof the coordinator sends nothing but the challenge. There is no clock in the protocol.
//!
//! Reading order: [`messages`](GatewayMessage), [`proof`](Challenger), [`map`](Map),
//! [`enrolment`](EnrolmentKey), [`limits`].

mod access;
mod apart;
mod encoding;
mod enrolment;
pub mod limits;
mod map;
mod messages;
mod name;
mod proof;
mod reports;
mod service;
mod site_key;

pub(crate) use encoding::Base64;

pub use access::{Access, AccessPart, SiteNumber};
pub use enrolment::{EnrolmentKey, EnrolmentKeyError, EnrolmentKeyId, Fingerprint, FingerprintError};
pub use map::{ApplyError, Digest, Known, Map, MapVersion, Peer, Relay, Update};
pub use messages::{
    Candidate, CandidateKind, CoordinatorMessage, Dependence, Documents, Enrolment, GatewayMessage, Hello, NatType,
    Reachability, Refusal, RefusalReason, Registration, RegistrationState, Waiting,
};
pub use name::{Name, NameError};
pub use proof::{Challenge, Challenger, ChannelBinding, EXPORTER_LABEL, Proof, ProofError, prove, prove_bound};
pub use reports::{PathKind, PathReport, Paths, Reports};
pub use service::{Service, ServiceError};
pub use site_key::{SiteKey, SiteKeyError};

use serde::Serialize;

/// Where the coordinator accepts connections.
pub const PATH: &str = "/v1/connect";
/// The WebSocket subprotocol (RFC 6455, section 1.9).
pub const SUBPROTOCOL: &str = "penstock.v1";

/// A text is not a valid message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is longer than the sender's limit.
    #[error("a message of {length} bytes, more than the limit of {limit}")]
    TooLong {
        /// Its length, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// It is not the JSON of a message.
    #[error("an invalid message, at line {line}, column {column}")]
    Malformed {
        /// The line with the error, from 1. The text itself is not shown, since it may contain secrets.
        line: usize,
        /// The byte within the line, from 1.
        column: usize,
    },
}

impl GatewayMessage {
    /// Parses a gateway's message.
    ///
    /// # Errors
    /// It is too long, or not valid.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        decode(text, limits::GATEWAY_MESSAGE_LIMIT)
    }

    /// The message as text.
    #[must_use]
    pub fn encode(&self) -> String {
        encode(self)
    }
}

impl CoordinatorMessage {
    /// Parses a message of the coordinator.
    ///
    /// # Errors
    /// It is too long, or not valid.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        decode(text, limits::COORDINATOR_MESSAGE_LIMIT)
    }

    /// The message as text.
    #[must_use]
    pub fn encode(&self) -> String {
        encode(self)
    }
}

fn decode<T: serde::de::DeserializeOwned>(text: &str, limit: usize) -> Result<T, DecodeError> {
    if text.len() > limit {
        return Err(DecodeError::TooLong { length: text.len(), limit });
    }
    serde_json::from_str(text).map_err(|error| DecodeError::Malformed { line: error.line(), column: error.column() })
}

fn encode(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("messages have no maps with other keys than text")
}

#[cfg(test)]
mod tests;

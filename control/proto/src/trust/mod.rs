//! Who may be a site of an overlay, what a site may offer, and what a gateway believes about it.
//!
//! ```text
//!   authority key ── signs ──► statements of sites and relays, revocations, the lease key's certificate
//!   lease key     ── signs ──► leases, which keep the statements of sites alive
//!
//!   coordinator: Elsewhere::decide ─► Authority ─► Publication ─┐
//!                                         Lessor ─► leases ─────┤ documents, beside the map
//!   gateway:                         judge ◄─ Verifier::admit ◄─┘ Verifier::learn
//! ```
//! A gateway pins the authority's key. A map is believed only as far as signed [`Document`]s confirm it;
//! `docs/trust.md` describes the threats. There is no I/O here: time and randomness are arguments, and what must
//! survive a process is [`Publication`] with two [`SigningKey`]s for a coordinator, and [`State`] for a gateway.
//!
//! # A coordinator
//! 1. At the first start: [`SigningKey::generate`] twice, [`Authority::found`], [`Lessor::new`],
//!    [`Authority::certify`]. Later: [`Authority::resume`] with the stored publication. Without the
//!    authority's key, which may be elsewhere: the publication alone, and [`Publication::add`] for every
//!    document that comes back from there.
//! 2. For each offer of a gateway: [`Elsewhere::decide`]. What is in force is announced; if the site has no
//!    statement yet it becomes the [`SiteGrant`] of [`Authority::approve`], or a request that waits for it.
//! 3. `site revoke`, `site remove`: [`Authority::revoke`]. A policy change signs nothing.
//! 4. To each gateway, with a map or an update and before anything that depends on it:
//!    [`Publication::common`], the [`statement`](Publication::statement) of the gateway itself, those of the
//!    peers and relays in its map, and a lease of each peer. To relays: [`Publication::common`].
//! 5. Every [`LeaseLength::renewal`]: a new lease of each approved site.
//!
//! # A gateway
//! 1. [`Verifier::new`] with the stored [`State`], or [`State::new`] with the pinned key if there is none or
//!    its [`root`](State::root) is another.
//! 2. Whatever comes, from the coordinator or a relay: [`Verifier::learn`]. If something changed, store the
//!    state before acting on it.
//! 3. After that, with each map, and after [`Verifier::next_change`]: [`Verifier::admit`], then of the prefixes
//!    of all admitted peers [`Surroundings::still_admit`] for those in force and [`judge`] for the others. What
//!    both let through is routed. Prefixes that are no longer in force stay blocked. Relays:
//!    [`Verifier::admit_relay`].
//!
//! Reading order: [`statement`](SiteStatement), [`document`](Document), [`authority`](Authority),
//! [`publication`](Publication), [`verifier`](Verifier), [`state`](State), `ownership`; [`judge`] and
//! [`grant`](Elsewhere) stand alone.

mod authority;
mod document;
mod encoding;
mod grant;
mod judge;
mod key;
mod ownership;
mod prefix;
mod publication;
mod state;
mod statement;
mod time;
mod verifier;

pub use authority::{Authority, AuthorityError, Lessor};
pub use document::{DOCUMENT_LIMIT, Document, DocumentError};
pub use grant::{Decision, Elsewhere, Offer, WaitReason};
pub use judge::{Judgement, PREFIXES_LIMIT, PrefixReason, RefusedPrefix, Surroundings, judge};
pub use key::{AuthorityKey, LeaseKey, PublicKeyError, SigningKey};
pub use ownership::OwnershipReason;
pub use prefix::{Server, is_overlay_address, is_private};
pub use publication::{DocumentRefusal, Publication, ROLLOVERS_LIMIT, SUBJECTS_LIMIT};
pub use state::{Increment, State};
pub use statement::{
    Contents, Lease, LeaseCertificate, REVOCATIONS_LIMIT, RelayStatement, Revocations, Rollover, Serial, SiteGrant,
    SiteStatement, Subnets, SubnetsError, TAGS_LIMIT, Tags, TooManyTags,
};
pub use time::{LeaseLength, Now, UnixTime, Validity, ValidityError};
pub use verifier::{Admission, AdmittedPeer, Learnt, LeaseStanding, PeerReason, Verifier};

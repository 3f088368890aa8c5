//! Who may be a site of an overlay, what a site may offer, and what a gateway believes of it.
//!
//! Reading order: [`judge`].

mod judge;
mod prefix;

pub use judge::{Judgement, PREFIXES_LIMIT, PrefixReason, RefusedPrefix, Surroundings, judge};
pub use prefix::{Server, is_overlay_address, is_private};

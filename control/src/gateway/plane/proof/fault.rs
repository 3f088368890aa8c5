//! What can be seen to go wrong with a port, in sentences.

use std::fmt;

use super::missed::Missed;

/// What was seen to go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Swallowed { queue: u32, frames: u64 },
    Damaged { queue: u32, messages: u64 },
    Unseen { frames: u64 },
    Silent { calls: u64 },
    Stalled { queue: u32, frames: u64 },
    Unanswered { queue: u32, messages: u64, peer: String },
    Missed(Missed),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Swallowed { queue, frames } => {
                write!(f, "of {frames} frames that the program redirected to queue {queue}'s socket none arrived there")
            }
            Self::Damaged { queue, messages } => {
                write!(f, "all of {messages} messages that came by queue {queue} were damaged")
            }
            Self::Unseen { frames } => {
                write!(f, "the kernel counts {frames} received frames, of which the program was shown none")
            }
            Self::Silent { calls } => {
                write!(
                    f,
                    "no frame at all arrived after it was bound without copies, while {calls} handshakes were begun"
                )
            }
            Self::Stalled { queue, frames } => {
                write!(f, "queue {queue} has {frames} frames to send, and has sent none of them")
            }
            Self::Unanswered { queue, messages, peer } => write!(
                f,
                "{messages} messages sent by queue {queue} were not answered, and {peer} answers handshakes, which leave \
                 by the kernel's socket"
            ),
            Self::Missed(missed) => missed.fmt(f),
        }
    }
}

impl Fault {
    /// Whether it is a fault in receiving, which generic mode may not have.
    pub fn of_receiving(&self) -> bool {
        matches!(self, Self::Swallowed { .. } | Self::Damaged { .. } | Self::Unseen { .. })
    }
}

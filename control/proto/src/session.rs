//! A peer's sessions: which exist, which one to send on, and when each ends.
//!
//! The data plane owns the keys ([`SessionKeys`] is handed out once); this is what timers and promotion need. At most
//! three sessions exist at a time, as in the kernel: *current* is the one we send on, *next* is one in which we are the
//! responder and that waits for its first authenticated packet, *previous* still receives.

use std::time::{Duration, Instant};

use crate::{Key, Suite};

/// Which side of the handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We sent the initiation; we may send at once.
    Initiator,
    /// We sent the response; we may send after the first authenticated packet.
    Responder,
}

/// Everything that the data plane needs to open and seal a session's packets.
///
/// No field may outlive `born` + 180 s; [`Event::SessionExpired`](crate::Event) says so too.
#[derive(Debug)]
pub struct SessionKeys {
    /// The receiver index in packets to us.
    pub local_index: u32,
    /// The receiver index in packets to the peer.
    pub remote_index: u32,
    /// Seals packets to the peer.
    pub send: Key,
    /// Opens packets from the peer.
    pub receive: Key,
    /// Our side of the handshake.
    pub role: Role,
    /// When the handshake was completed on our side.
    pub born: Instant,
    /// The AEAD.
    pub suite: Suite,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub local_index: u32,
    pub role: Role,
    pub suite: Suite,
    /// When our initiation was sent; for a responder the same as `born`.
    pub started: Instant,
    pub born: Instant,
}

impl Session {
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born)
    }

    /// The later session is the one to send on. But both sides may initiate at the same moment, and then two sessions
    /// come into being at once. So that both sides settle on the same one, it is the one that the side with the lower
    /// public key (`we_lead`) initiated.
    fn outranks(&self, candidate: &Self, we_lead: bool) -> bool {
        let at_once = match (self.role, candidate.role) {
            (Role::Initiator, Role::Responder) => self.overlaps(candidate),
            (Role::Responder, Role::Initiator) => candidate.overlaps(self),
            _ => false,
        };
        if at_once { we_lead == (self.role == Role::Initiator) } else { self.born > candidate.born }
    }

    /// We responded to the other one while our own initiation was pending.
    fn overlaps(&self, other: &Self) -> bool {
        (self.started..=self.born).contains(&other.born)
    }
}

/// The three places. Every method returns the sessions that end because of it.
#[derive(Default)]
pub(crate) struct Sessions {
    pub previous: Option<Session>,
    pub current: Option<Session>,
    pub next: Option<Session>,
}

/// What a session that may now be sent on has become.
pub(crate) struct Settled {
    /// It is now the current one; otherwise it only receives.
    pub promoted: bool,
    pub ended: Option<Session>,
}

impl Sessions {
    /// A session we initiated: both sides know its keys.
    pub fn initiated(&mut self, session: Session, we_lead: bool) -> Settled {
        self.settle(session, we_lead)
    }

    /// A session we responded to: it waits for the peer's first packet.
    pub fn responded(&mut self, session: Session) -> Option<Session> {
        self.next.replace(session)
    }

    /// The first authenticated packet of a session arrived. `None` if that session was not waiting for one.
    pub fn confirmed(&mut self, local_index: u32, we_lead: bool) -> Option<Settled> {
        let session = self.next.take_if(|next| next.local_index == local_index)?;
        Some(self.settle(session, we_lead))
    }

    fn settle(&mut self, session: Session, we_lead: bool) -> Settled {
        let stays = self.current.is_some_and(|current| current.outranks(&session, we_lead));
        let retired = if stays { Some(session) } else { self.current.replace(session) };
        let ended = match retired {
            Some(retired) => self.previous.replace(retired),
            None => None,
        };
        Settled { promoted: !stays, ended }
    }

    pub fn expire(&mut self, mut ended: impl FnMut(&Session) -> bool) -> [Option<Session>; 3] {
        self.places().map(|place| place.take_if(|session| ended(session)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        [&self.previous, &self.current, &self.next].into_iter().flatten()
    }

    fn places(&mut self) -> [&mut Option<Session>; 3] {
        [&mut self.previous, &mut self.current, &mut self.next]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(local_index: u32, role: Role, started: Instant, born: Instant) -> Session {
        Session { local_index, role, suite: Suite::default(), started, born }
    }

    #[test]
    fn both_sides_of_a_simultaneous_start_settle_on_the_same_session() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let settled = |we_lead: bool| {
            let mut sessions = Sessions::default();
            sessions.responded(session(2, Role::Responder, at(10), at(10)));
            assert!(sessions.initiated(session(1, Role::Initiator, at(0), at(20)), we_lead).promoted);
            assert_eq!(sessions.confirmed(2, we_lead).unwrap().promoted, !we_lead);
            assert!(sessions.confirmed(2, we_lead).is_none());
            assert_eq!(sessions.iter().count(), 2);
            sessions.current.unwrap().role
        };
        assert_eq!(settled(true), Role::Initiator);
        assert_eq!(settled(false), Role::Responder);
    }

    #[test]
    fn a_later_session_replaces_an_older_one() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for we_lead in [true, false] {
            let mut sessions = Sessions::default();
            sessions.initiated(session(1, Role::Initiator, at(0), at(20)), we_lead);
            assert!(sessions.responded(session(2, Role::Responder, at(30), at(30))).is_none());
            assert!(sessions.confirmed(2, we_lead).unwrap().promoted);
            assert_eq!(sessions.current.unwrap().local_index, 2);
            assert_eq!(sessions.previous.unwrap().local_index, 1);
        }
    }
}

//! The logged-in visitors, and the links for logging in.
//!
//! Secrets are kept only as hashes and in memory, so a restart logs everybody out. Time is an argument. A browser gets
//! its cookie at the login and never before, so an attacker cannot plant one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use ring::digest;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::pending::Pending;
use crate::store::Who;

/// How long a link can be used.
pub const LINK_LIFETIME: Duration = Duration::from_secs(300);
/// The most unused links; a further one replaces the oldest.
const LINKS_LIMIT: usize = 16;
/// The most sessions; a further one replaces the one that was idle for longest.
const SESSIONS_LIMIT: usize = 64;
/// A session ends after this long without a click.
pub const IDLE_LIMIT: Duration = Duration::from_secs(30 * 60);
/// A session ends after this long in any case.
pub const LIFETIME: Duration = Duration::from_secs(12 * 3600);

type Hash = [u8; 32];

/// 256 random bits as text that fits into a URL and a cookie.
pub type Secret = Zeroizing<String>;

/// All logged-in visitors, and unused links.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    sessions: HashMap<Hash, Session>,
    links: Pending<Link>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { sessions: HashMap::new(), links: Pending::new(LINK_LIFETIME, LINKS_LIMIT) }
    }
}

#[derive(Debug)]
struct Session {
    who: Who,
    csrf: Secret,
    begun: Instant,
    used: Instant,
    notice: Option<Notice>,
}

#[derive(Debug)]
struct Link {
    hash: Hash,
    who: Who,
}

/// The result of the last action, to be shown once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether it was done.
    pub done: bool,
    /// The result, in a sentence.
    pub sentence: String,
}

/// A logged-in visitor.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// The name in the audit.
    pub who: Who,
    /// The token that every form of this session must have.
    pub csrf: Secret,
    /// The cookie.
    pub cookie: Secret,
}

/// Why a session's cookie is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The administrator does something.
    Active,
    /// The page refreshes itself, which keeps no session alive.
    Passive,
}

impl Sessions {
    /// Makes a link; returns its secret. Whoever shows it first logs in as `who`.
    pub fn make_link(&self, now: Instant, who: Who) -> Secret {
        let secret = random();
        self.lock().links.add(now, Link { hash: hash(&secret), who });
        secret
    }

    /// Uses up a link; returns who may log in with it.
    pub fn redeem(&self, now: Instant, secret: &str) -> Option<Who> {
        let shown = hash(secret);
        self.lock().links.take(now, |link| link.hash.ct_eq(&shown).into()).map(|link| link.who)
    }

    /// Logs somebody in; returns the cookie of the new session.
    pub fn begin(&self, now: Instant, who: Who) -> Secret {
        let secret = random();
        let mut inner = self.lock();
        inner.sessions.retain(|_, session| session.is_alive(now));
        if inner.sessions.len() >= SESSIONS_LIMIT {
            let idle = inner.sessions.iter().min_by_key(|(_, session)| session.used).map(|(hash, _)| *hash);
            idle.map(|idle| inner.sessions.remove(&idle));
        }
        let session = Session { who, csrf: random(), begun: now, used: now, notice: None };
        inner.sessions.insert(hash(&secret), session);
        secret
    }

    /// The visitor with this cookie.
    pub fn find(&self, now: Instant, cookie: &str, r#use: Use) -> Option<Visitor> {
        let mut inner = self.lock();
        let session = inner.sessions.get_mut(&hash(cookie)).filter(|session| session.is_alive(now))?;
        if r#use == Use::Active {
            session.used = now;
        }
        let Session { who, csrf, .. } = &*session;
        Some(Visitor { who: who.clone(), csrf: csrf.clone(), cookie: cookie.to_owned().into() })
    }

    /// Ends a session.
    pub fn end(&self, visitor: &Visitor) {
        self.lock().sessions.remove(&hash(&visitor.cookie));
    }

    /// Keeps the result of an action for the next page.
    pub fn note(&self, visitor: &Visitor, notice: Notice) {
        if let Some(session) = self.lock().sessions.get_mut(&hash(&visitor.cookie)) {
            session.notice = Some(notice);
        }
    }

    /// Takes the result of the last action, if it was not shown yet.
    pub fn take_notice(&self, visitor: &Visitor) -> Option<Notice> {
        self.lock().sessions.get_mut(&hash(&visitor.cookie))?.notice.take()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn is_alive(&self, now: Instant) -> bool {
        now < self.used + IDLE_LIMIT && now < self.begun + LIFETIME
    }
}

impl Visitor {
    /// Whether a form belongs to this session.
    #[must_use]
    pub fn made(&self, csrf: &str) -> bool {
        self.csrf.as_bytes().ct_eq(csrf.as_bytes()).into()
    }
}

/// 256 random bits.
pub(super) fn random() -> Secret {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    rand::rng().fill(&mut bytes[..]);
    URL_SAFE_NO_PAD.encode(&bytes[..]).into()
}

pub(super) fn hash(secret: &str) -> Hash {
    let digest = digest::digest(&digest::SHA256, secret.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(number: u32) -> Who {
        Who::Page(format!("user {number}"))
    }

    #[test]
    fn a_link_is_good_once_and_for_minutes() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let link = sessions.make_link(start, who(0));
        assert_eq!(sessions.redeem(start, "something else"), None);
        assert_eq!(sessions.redeem(start, &link), Some(who(0)));
        assert_eq!(sessions.redeem(start, &link), None, "it was used");
        let link = sessions.make_link(start, who(0));
        assert_eq!(sessions.redeem(start + LINK_LIFETIME, &link), None, "it is old");
        assert_eq!(sessions.redeem(start, &link), None, "what was old once is gone");
    }

    #[test]
    fn there_are_few_links_and_the_latest_count() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let links: Vec<Secret> =
            (0..=LINKS_LIMIT).map(|number| sessions.make_link(start, who(number as u32))).collect();
        assert_eq!(sessions.redeem(start, &links[0]), None);
        assert_eq!(sessions.redeem(start, &links[1]), Some(who(1)));
        assert_eq!(sessions.redeem(start, &links[LINKS_LIMIT]), Some(who(LINKS_LIMIT as u32)));
    }

    #[test]
    fn a_session_ends_by_logout_idleness_and_age() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let cookie = sessions.begin(start, who(1));
        let found = |at: Duration, r#use| sessions.find(start + at, &cookie, r#use);
        assert_eq!(found(IDLE_LIMIT / 2, Use::Passive).unwrap().who, who(1));
        assert!(found(IDLE_LIMIT, Use::Active).is_none(), "refreshing does not keep it alive");
        let cookie = sessions.begin(start, who(1));
        let step = IDLE_LIMIT / 2;
        let mut at = Duration::ZERO;
        while at + step < LIFETIME {
            at += step;
            assert!(sessions.find(start + at, &cookie, Use::Active).is_some(), "{at:?}");
        }
        assert!(sessions.find(start + LIFETIME, &cookie, Use::Active).is_none());

        let cookie = sessions.begin(start, who(1));
        let visitor = sessions.find(start, &cookie, Use::Active).unwrap();
        assert!(visitor.made(&visitor.csrf) && !visitor.made("") && !visitor.made(&cookie));
        sessions.end(&visitor);
        assert!(sessions.find(start, &cookie, Use::Active).is_none());
        assert!(sessions.find(start, "", Use::Active).is_none());
    }

    #[test]
    fn there_are_few_sessions_and_the_idlest_makes_room() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let at = |number: usize| start + Duration::from_millis(number as u64);
        let cookies: Vec<Secret> = (0..SESSIONS_LIMIT).map(|number| sessions.begin(at(number), who(0))).collect();
        assert!(sessions.find(at(100), &cookies[0], Use::Active).is_some());
        let last = sessions.begin(at(101), who(0));
        for (cookie, there) in [(&cookies[0], true), (&cookies[1], false), (&cookies[2], true), (&last, true)] {
            assert_eq!(sessions.find(at(102), cookie, Use::Passive).is_some(), there);
        }
    }

    #[test]
    fn a_notice_is_shown_once() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let cookie = sessions.begin(start, who(0));
        let visitor = sessions.find(start, &cookie, Use::Active).unwrap();
        let notice = Notice { done: true, sentence: "it is done".into() };
        sessions.note(&visitor, notice.clone());
        assert_eq!(sessions.take_notice(&visitor), Some(notice));
        assert_eq!(sessions.take_notice(&visitor), None);
    }
}

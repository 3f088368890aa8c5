//! Which source address belongs to which site.
//!
//! A site sends its name; the relay answers with a cookie that is good for this source, this site and the present
//! generation of its binding; the site repeats its request with the cookie and with a proof made with the secret that
//! its key and the relay's share. A new source starts a new generation, so a recorded message cannot move a site back
//! to where it was. Until the proof holds, the relay keeps no state and does no curve arithmetic, and its answer is
//! shorter than the question.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use x25519_dalek::{PublicKey, StaticSecret};

use super::message::{self, BIND_LENGTH, Bind};
use super::{RelayDrop, Source};
use crate::Key;
use crate::cookie::{MacBytes, mac, mac_is};
use crate::noise::{diffie_hellman, hash};
use crate::path::SiteId;

/// How long a binding lasts unless it is renewed.
pub const BINDING_LIFETIME: Duration = Duration::from_secs(60);

const LABEL_BIND: &[u8] = b"penstock relay v1";

/// The shared secret of a site and a relay.
pub(super) struct BindKey(Key);

impl BindKey {
    /// `None` when the other's key is of low order.
    pub fn new(private_key: &StaticSecret, other: &PublicKey, site: SiteId, relay: &PublicKey) -> Option<Self> {
        let secret = diffie_hellman(private_key, other).ok()?;
        Some(Self(hash(&[LABEL_BIND, secret.as_bytes(), &site.0, relay.as_bytes()]).into()))
    }

    pub fn prove(&self, what: &[u8]) -> MacBytes {
        mac(self.0.as_bytes(), &[what])
    }

    pub fn proves(&self, what: &[u8], proof: &MacBytes) -> bool {
        mac_is(self.0.as_bytes(), &[what], proof)
    }
}

/// The bindings of a relay.
pub(super) struct Bindings {
    private_key: StaticSecret,
    public_key: PublicKey,
    cookie_secret: Key,
    /// Made when a site first shows a valid cookie, so that nobody can make the relay compute more than one.
    keys: HashMap<SiteId, BindKey>,
    bound: HashMap<SiteId, Bound>,
    sources: HashMap<Source, SiteId>,
}

struct Bound {
    source: Source,
    until: Instant,
    generation: u64,
}

impl Bindings {
    pub fn new(private_key: StaticSecret, cookie_secret: Key) -> Self {
        let public_key = PublicKey::from(&private_key);
        let (keys, bound, sources) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { private_key, public_key, cookie_secret, keys, bound, sources }
    }

    /// The site that is bound to this source.
    pub fn site_of(&self, now: Instant, source: Source) -> Option<SiteId> {
        let id = *self.sources.get(&source)?;
        self.source_of(now, id).map(|_| id)
    }

    /// Where a site is.
    pub fn source_of(&self, now: Instant, site: SiteId) -> Option<Source> {
        let bound = self.bound.get(&site).filter(|bound| bound.until > now)?;
        (self.sources.get(&bound.source) == Some(&site)).then_some(bound.source)
    }

    /// How many sites are bound.
    pub fn count(&self, now: Instant) -> usize {
        self.bound.keys().filter(|site| self.source_of(now, **site).is_some()).count()
    }

    /// Answers a bind message of the site with this key.
    pub fn handle(
        &mut self,
        now: Instant,
        from: Source,
        bind: &Bind<'_>,
        public_key: &PublicKey,
    ) -> Result<Vec<u8>, RelayDrop> {
        // From where it is already bound, a site renews with the cookie that it was bound with.
        let generation = match self.bound.get(&bind.site) {
            None => 0,
            Some(bound) if bound.source == from => bound.generation,
            Some(bound) => bound.generation + 1,
        };
        if !self.cookie(bind.site, from, generation, |key, parts| mac_is(key, parts, &bind.cookie)) {
            return Ok(message::challenge(bind.site, &self.cookie(bind.site, from, generation, mac)));
        }
        let key = match self.keys.entry(bind.site) {
            Entry::Occupied(key) => key.into_mut(),
            Entry::Vacant(place) => place.insert(
                BindKey::new(&self.private_key, public_key, bind.site, &self.public_key).ok_or(RelayDrop::BadProof)?,
            ),
        };
        if !key.proves(bind.proven, &bind.proof) {
            return Err(RelayDrop::BadProof);
        }
        let answer = message::bound(bind.site, &bind.cookie, BINDING_LIFETIME.as_secs() as u16, |what| key.prove(what));
        let bound = Bound { source: from, until: now + BINDING_LIFETIME, generation };
        if let Some(before) = self.bound.insert(bind.site, bound).filter(|before| before.source != from) {
            self.release(before.source, bind.site);
        }
        // The relay could not tell two sites with one source apart: the later one gets it.
        self.sources.insert(from, bind.site);
        Ok(answer)
    }

    /// A source is gone. Its site is not bound until it binds again.
    pub fn forget(&mut self, source: Source) {
        self.sources.remove(&source);
    }

    /// A site is gone.
    pub fn remove(&mut self, site: SiteId) {
        self.keys.remove(&site);
        if let Some(bound) = self.bound.remove(&site) {
            self.release(bound.source, site);
        }
    }

    /// A site has left a source, where another site may be by now.
    fn release(&mut self, source: Source, site: SiteId) {
        if self.sources.get(&source) == Some(&site) {
            self.sources.remove(&source);
        }
    }

    fn cookie<R>(&self, site: SiteId, source: Source, generation: u64, by: impl FnOnce(&[u8], &[&[u8]]) -> R) -> R {
        let generation = generation.to_le_bytes();
        let secret = self.cookie_secret.as_bytes();
        match source {
            Source::Udp(address) => {
                let port = address.port().to_le_bytes();
                match address.ip() {
                    IpAddr::V4(ip) => by(secret, &[&site.0, &generation, b"4", &ip.octets(), &port]),
                    IpAddr::V6(ip) => by(secret, &[&site.0, &generation, b"6", &ip.octets(), &port]),
                }
            }
            Source::Stream(number) => by(secret, &[&site.0, &generation, b"s", &number.to_le_bytes()]),
        }
    }
}

// An unproven source gets an answer shorter than its question.
const _: () = assert!(message::CHALLENGE_LENGTH < BIND_LENGTH && message::BOUND_LENGTH < BIND_LENGTH);

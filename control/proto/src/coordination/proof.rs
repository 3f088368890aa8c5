//! How a gateway proves that it has a site's private key, without revealing anything about it.
//!
//! ```text
//!   coordinator                                     gateway
//!   nonce, ephemeral key pair  ── Challenge ──►     shared = X25519(static, ephemeral)
//!                                                   key    = MAC(shared, "…key" ‖ nonce)
//!                              ◄──  Proof  ──       proof  = MAC(key, "…proof" ‖ static ‖ ephemeral
//!                                                                    ‖ nonce ‖ length ‖ host name)
//! ```
//! MAC is keyed BLAKE2s-256. A challenge can be used once. The coordinator's host name is in the transcript, so a proof
//! made for one coordinator is useless at another. No clock is involved.
//!
//! A second proof also has the TLS connection's [`ChannelBinding`] in its transcript, so that nobody in between with a
//! certificate for the same name can pass it on. It is a separate proof because a proxy that ends TLS is legitimately
//! in between; the coordinator knows which sites come through one.

use blake2::Blake2sMac;
use blake2::digest::Mac;
use blake2::digest::consts::U32;
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use x25519_dalek::{PublicKey, StaticSecret};

use super::SiteKey;
use super::encoding::Base64;
use crate::noise::{diffie_hellman, keyed_hash};
use crate::{Key, generate_private_key};

const LABEL_KEY: &[u8] = b"penstock coordination v1 key";
const LABEL_PROOF: &[u8] = b"penstock coordination v1 proof";
const LABEL_BOUND: &[u8] = b"penstock coordination v1 bound proof";
/// Label of the TLS exporter whose 32 bytes are the [`ChannelBinding`]; it has an empty context (RFC 9266,
/// section 2).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// The coordinator's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Challenge {
    /// Random.
    nonce: Base64,
    /// The coordinator's X25519 key for this connection.
    ephemeral: SiteKey,
}

/// The answer to a [`Challenge`], which only the owner of a private key can make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proof(Base64);

/// A value that both ends of a TLS connection know and neither can choose: `tls-exporter` of RFC 9266.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelBinding(pub [u8; 32]);

/// A proof is wrong, or none can be made because the other's key is of low order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proof of the private key is wrong")]
pub struct ProofError;

/// The coordinator's side of one challenge.
pub struct Challenger {
    ephemeral: StaticSecret,
    challenge: Challenge,
}

impl Challenger {
    /// A new challenge.
    pub fn new(rng: &mut impl CryptoRng) -> Self {
        let ephemeral = generate_private_key(rng);
        let mut nonce = [0; 32];
        rng.fill_bytes(&mut nonce);
        let challenge = Challenge { nonce: Base64(nonce), ephemeral: PublicKey::from(&ephemeral).into() };
        Self { ephemeral, challenge }
    }

    /// The message for the gateway.
    #[must_use]
    pub fn challenge(&self) -> &Challenge {
        &self.challenge
    }

    /// Checks the proof, in constant time. `host` is our own name as the gateway knows it.
    ///
    /// # Errors
    /// Whoever made the proof does not have the private key of `site`, or made it for another challenge
    /// or coordinator.
    pub fn verify(&self, site: &SiteKey, host: &str, proof: &Proof) -> Result<(), ProofError> {
        self.verify_by(LABEL_PROOF, site, host, &[], proof)
    }

    /// Checks the proof made by [`prove_bound`], as [`verify`](Self::verify) does for [`prove`].
    ///
    /// # Errors
    /// The same, or it was made for another TLS connection.
    pub fn verify_bound(
        &self,
        site: &SiteKey,
        host: &str,
        channel: &ChannelBinding,
        proof: &Proof,
    ) -> Result<(), ProofError> {
        self.verify_by(LABEL_BOUND, site, host, &channel.0, proof)
    }

    fn verify_by(
        &self,
        label: &[u8],
        site: &SiteKey,
        host: &str,
        channel: &[u8],
        proof: &Proof,
    ) -> Result<(), ProofError> {
        let shared = diffie_hellman(&self.ephemeral, &(*site).into()).map_err(|_| ProofError)?;
        let transcript = transcript(label, &shared, site, &self.challenge, host, channel);
        transcript.verify_slice(&proof.0.0).map_err(|_| ProofError)
    }
}

/// Answers a challenge. `host` is the name under which the gateway reached the coordinator, without the port.
///
/// # Errors
/// The coordinator's key is of low order.
pub fn prove(private: &StaticSecret, challenge: &Challenge, host: &str) -> Result<Proof, ProofError> {
    prove_by(LABEL_PROOF, private, challenge, host, &[])
}

/// Answers a challenge for one TLS connection only.
///
/// # Errors
/// The coordinator's key is of low order.
pub fn prove_bound(
    private: &StaticSecret,
    challenge: &Challenge,
    host: &str,
    channel: &ChannelBinding,
) -> Result<Proof, ProofError> {
    prove_by(LABEL_BOUND, private, challenge, host, &channel.0)
}

fn prove_by(
    label: &[u8],
    private: &StaticSecret,
    challenge: &Challenge,
    host: &str,
    channel: &[u8],
) -> Result<Proof, ProofError> {
    let site = PublicKey::from(private).into();
    let shared = diffie_hellman(private, &challenge.ephemeral.into()).map_err(|_| ProofError)?;
    let mac = transcript(label, &shared, &site, challenge, host, channel);
    Ok(Proof(Base64(mac.finalize().into_bytes().into())))
}

fn transcript(
    label: &[u8],
    shared: &Key,
    site: &SiteKey,
    challenge: &Challenge,
    host: &str,
    channel: &[u8],
) -> Blake2sMac<U32> {
    let key: [u8; 32] = keyed_hash(shared.as_bytes(), &[LABEL_KEY, &challenge.nonce.0]).finalize().into_bytes().into();
    let key = Key::from(key);
    // Host names are compared without regard to case (RFC 4343).
    let host = host.to_ascii_lowercase();
    let length = (host.len() as u64).to_be_bytes();
    let (ephemeral, nonce) = (challenge.ephemeral.as_bytes(), &challenge.nonce.0);
    let parts: [&[u8]; 7] = [label, site.as_bytes(), ephemeral, nonce, &length, host.as_bytes(), channel];
    keyed_hash(key.as_bytes(), &parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const HOST: &str = "coordinator.example.net";

    fn rng(seed: u64) -> StdRng {
        StdRng::seed_from_u64(seed)
    }

    fn site(seed: u64) -> (StaticSecret, SiteKey) {
        let private = generate_private_key(&mut rng(seed));
        let public = PublicKey::from(&private).into();
        (private, public)
    }

    #[test]
    fn the_owner_of_the_key_proves_it() {
        let (private, public) = site(1);
        let challenger = Challenger::new(&mut rng(2));
        let proof = prove(&private, challenger.challenge(), "Coordinator.Example.NET").unwrap();
        assert_eq!(challenger.verify(&public, HOST, &proof), Ok(()));
    }

    #[test]
    fn nothing_else_does() {
        let (private, public) = site(1);
        let (_, other) = site(3);
        let proof = prove(&private, Challenger::new(&mut rng(2)).challenge(), HOST).unwrap();
        let verify =
            |seed, site: &SiteKey, host: &str, proof: &Proof| Challenger::new(&mut rng(seed)).verify(site, host, proof);
        assert_eq!(verify(2, &public, HOST, &proof), Ok(()));
        assert_eq!(verify(4, &public, HOST, &proof), Err(ProofError), "another challenge");
        assert_eq!(verify(2, &other, HOST, &proof), Err(ProofError), "another site");
        assert_eq!(verify(2, &public, "evil.example.net", &proof), Err(ProofError), "another coordinator");
        for bit in 0..256 {
            let mut bent = proof.clone();
            bent.0.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(2, &public, HOST, &bent), Err(ProofError), "bit {bit}");
        }
    }

    #[test]
    fn nonce_and_ephemeral_key_both_count() {
        let (private, public) = site(1);
        let challenger = Challenger::new(&mut rng(2));
        let mut bent = challenger.challenge().clone();
        bent.nonce.0[0] ^= 1;
        let proof = prove(&private, &bent, HOST).unwrap();
        assert_eq!(challenger.verify(&public, HOST, &proof), Err(ProofError));
        let challenger = Challenger::new(&mut rng(2));
        let mut bent = challenger.challenge().clone();
        bent.ephemeral = site(5).1;
        let proof = prove(&private, &bent, HOST).unwrap();
        assert_eq!(challenger.verify(&public, HOST, &proof), Err(ProofError));
    }

    #[test]
    fn a_bound_proof_is_for_one_channel() {
        let (private, public) = site(1);
        let challenger = Challenger::new(&mut rng(2));
        let (here, elsewhere) = (ChannelBinding([1; 32]), ChannelBinding([2; 32]));
        let bound = prove_bound(&private, challenger.challenge(), HOST, &here).unwrap();
        assert_eq!(challenger.verify_bound(&public, HOST, &here, &bound), Ok(()));
        assert_eq!(challenger.verify_bound(&public, HOST, &elsewhere, &bound), Err(ProofError));
        assert_eq!(challenger.verify(&public, HOST, &bound), Err(ProofError), "neither stands for the other");
        let unbound = prove(&private, challenger.challenge(), HOST).unwrap();
        assert_eq!(challenger.verify_bound(&public, HOST, &here, &unbound), Err(ProofError));
    }

    #[test]
    fn low_order_keys_prove_nothing() {
        let (private, _) = site(1);
        let mut challenge = Challenger::new(&mut rng(2)).challenge().clone();
        challenge.ephemeral = [0; 32].into();
        assert_eq!(prove(&private, &challenge, HOST), Err(ProofError));
        // With the point zero the shared secret would be zero, which anyone knows.
        let challenger = Challenger::new(&mut rng(2));
        let zero = SiteKey::from([0; 32]);
        let forged = transcript(LABEL_PROOF, &Key::zero(), &zero, challenger.challenge(), HOST, &[]);
        let forged = forged.finalize().into_bytes();
        assert_eq!(challenger.verify(&zero, HOST, &Proof(Base64(forged.into()))), Err(ProofError));
    }
}

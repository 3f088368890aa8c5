//! ID tokens: who has logged in, according to a provider (OpenID Connect Core 1.0, section 2).
//!
//! Only RS256 and ES256 are accepted, depending on the kind of the key and not only on what the token says. Everything
//! that section 3.1.3.7 requires is checked before a claim is believed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Longest token, in bytes. One with several hundred groups would be longer.
const TOKEN_LIMIT: usize = 16 << 10;
/// How much the provider's clock may differ from ours, in seconds.
const CLOCK_TOLERANCE: u64 = 60;

/// A provider's keys (RFC 7517).
#[derive(Debug, Deserialize)]
pub struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug, Deserialize)]
struct Key {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

/// What a token has to be for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The issuer.
    pub issuer: &'a str,
    /// The client.
    pub client: &'a str,
    /// The nonce of the login.
    pub nonce: &'a str,
    /// The present time, in seconds since 1970.
    pub now: u64,
}

/// The user who has logged in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Claims {
    iss: String,
    /// The provider's permanent identifier for the user.
    pub sub: String,
    aud: Audience,
    #[serde(default)]
    azp: Option<String>,
    exp: u64,
    #[serde(default)]
    nbf: Option<u64>,
    nonce: String,
    #[serde(default)]
    email: Option<String>,
    #[serde(default)]
    email_verified: bool,
    /// The user's groups, according to the provider.
    #[serde(default)]
    pub groups: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("the ID token cannot be read")]
    Malformed,
    /// It is signed with an algorithm that is not accepted.
    #[error("the ID token is signed neither by RS256 nor by ES256")]
    Algorithm,
    /// None of the provider's keys has signed it.
    #[error("the ID token is not signed by a key of the provider")]
    Signature,
    /// It is for something else.
    #[error("the ID token is not for this login: it has another {0}")]
    Foreign(&'static str),
    /// It has expired, or is not valid yet.
    #[error("the ID token is not valid at this time: compare the clocks")]
    Time,
}

impl Claims {
    /// The e-mail address, if the provider has verified it.
    #[must_use]
    pub fn verified_email(&self) -> Option<&str> {
        self.email.as_deref().filter(|_| self.email_verified)
    }
}

/// Verifies a token.
///
/// # Errors
/// Why it is not believed.
pub fn verify(token: &str, keys: &KeySet, expected: Expected<'_>) -> Result<Claims, TokenError> {
    if token.len() > TOKEN_LIMIT {
        return Err(TokenError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let signature = decode(signature)?;
    let header: Header = read(header)?;
    if !matches!(&header.alg[..], "RS256" | "ES256") {
        return Err(TokenError::Algorithm);
    }
    if !keys.keys.iter().any(|key| key.has_signed(&header, signed.as_bytes(), &signature)) {
        return Err(TokenError::Signature);
    }
    let claims: Claims = read(payload)?;
    claims.check(expected)?;
    Ok(claims)
}

impl Claims {
    fn check(&self, expected: Expected<'_>) -> Result<(), TokenError> {
        let Expected { issuer, client, nonce, now } = expected;
        let (for_us, alone) = match &self.aud {
            Audience::One(audience) => (audience == client, true),
            Audience::Many(audiences) => (audiences.iter().any(|audience| audience == client), audiences.len() == 1),
        };
        let authorized = match &self.azp {
            Some(party) => party == client,
            None => alone,
        };
        let nonces: (&[u8], &[u8]) = (self.nonce.as_bytes(), nonce.as_bytes());
        for (is_right, what) in [
            (self.iss == issuer, "issuer"),
            (for_us && authorized, "audience"),
            (subtle::ConstantTimeEq::ct_eq(nonces.0, nonces.1).into(), "nonce"),
        ] {
            if !is_right {
                return Err(TokenError::Foreign(what));
            }
        }
        let begun = self.nbf.is_none_or(|begin| begin <= now.saturating_add(CLOCK_TOLERANCE));
        let is_good = begun && now < self.exp.saturating_add(CLOCK_TOLERANCE);
        if is_good { Ok(()) } else { Err(TokenError::Time) }
    }
}

impl Key {
    fn has_signed(&self, header: &Header, signed: &[u8], signature: &[u8]) -> bool {
        let named = match (&self.kid, &header.kid) {
            (Some(ours), Some(wanted)) => ours == wanted,
            _ => true,
        };
        if !named || self.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
            return false;
        }
        let part = |part: &Option<String>| part.as_deref().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let verified = match (&header.alg[..], &self.kty[..]) {
            ("RS256", "RSA") => part(&self.n)
                .zip(part(&self.e))
                .map(|(n, e)| RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature)),
            ("ES256", "EC") if self.crv.as_deref() == Some("P-256") => {
                part(&self.x).zip(part(&self.y)).map(|(x, y)| {
                    let point = [&[4][..], &x, &y].concat();
                    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature)
                })
            }
            _ => None,
        };
        verified.is_some_and(|verified| verified.is_ok())
    }
}

fn decode(text: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed)
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, TokenError> {
    serde_json::from_slice(&decode(text)?).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::{Value, json};

    struct Signer(EcdsaKeyPair);

    impl Signer {
        fn new() -> Self {
            let random = SystemRandom::new();
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap())
        }

        fn keys(&self) -> KeySet {
            let point = self.0.public_key().as_ref();
            let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
            let key = json!({"kty": "EC", "crv": "P-256", "kid": "one", "use": "sig", "x": x, "y": y});
            serde_json::from_value(json!({"keys": [key]})).unwrap()
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
            let signed = format!("{header}.{claims}");
            let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    }

    const EXPECTED: Expected<'_> =
        Expected { issuer: "https://id.example.net", client: "penstock", nonce: "once", now: 1_000_000 };

    fn claims() -> Value {
        json!({"iss": EXPECTED.issuer, "sub": "17", "aud": "penstock", "exp": 1_000_300, "nonce": "once",
            "email": "alice@example.net", "email_verified": true, "groups": ["noc"]})
    }

    #[test]
    fn a_token_for_this_login_tells_who_it_is() {
        let signer = Signer::new();
        let token = signer.sign(&json!({"alg": "ES256", "kid": "one"}), &claims());
        let read = verify(&token, &signer.keys(), EXPECTED).unwrap();
        assert_eq!((&read.sub[..], read.verified_email()), ("17", Some("alice@example.net")));
        let mut unverified = claims();
        unverified["email_verified"] = false.into();
        let token = signer.sign(&json!({"alg": "ES256"}), &unverified);
        assert_eq!(verify(&token, &signer.keys(), EXPECTED).unwrap().verified_email(), None);
    }

    #[test]
    fn a_token_for_anything_else_is_refused() {
        let (signer, header) = (Signer::new(), json!({"alg": "ES256", "kid": "one"}));
        for (field, value, error) in [
            ("iss", json!("https://evil.example.net"), TokenError::Foreign("issuer")),
            ("aud", json!("another"), TokenError::Foreign("audience")),
            ("aud", json!(["penstock", "another"]), TokenError::Foreign("audience")),
            ("azp", json!("another"), TokenError::Foreign("audience")),
            ("nonce", json!("twice"), TokenError::Foreign("nonce")),
            ("nonce", Value::Null, TokenError::Malformed),
            ("exp", json!(1_000_000 - CLOCK_TOLERANCE), TokenError::Time),
            ("nbf", json!(1_000_001 + CLOCK_TOLERANCE), TokenError::Time),
        ] {
            let mut claims = claims();
            claims[field] = value.clone();
            let token = signer.sign(&header, &claims);
            assert_eq!(verify(&token, &signer.keys(), EXPECTED), Err(error), "{field} {value}");
        }
    }

    #[test]
    fn a_token_that_the_provider_has_not_signed_is_refused() {
        let (signer, other) = (Signer::new(), Signer::new());
        let header = json!({"alg": "ES256", "kid": "one"});
        let token = other.sign(&header, &claims());
        assert_eq!(verify(&token, &signer.keys(), EXPECTED), Err(TokenError::Signature));
        let wrong_key = signer.sign(&json!({"alg": "ES256", "kid": "two"}), &claims());
        assert_eq!(verify(&wrong_key, &signer.keys(), EXPECTED), Err(TokenError::Signature));
        let as_rsa = signer.sign(&json!({"alg": "RS256", "kid": "one"}), &claims());
        assert_eq!(verify(&as_rsa, &signer.keys(), EXPECTED), Err(TokenError::Signature));
        for algorithm in ["none", "HS256", "ES384", ""] {
            let token = signer.sign(&json!({"alg": algorithm}), &claims());
            assert_eq!(verify(&token, &signer.keys(), EXPECTED), Err(TokenError::Algorithm), "{algorithm}");
        }
        let token = signer.sign(&header, &claims());
        let (signed, _) = token.rsplit_once('.').unwrap();
        for bent in [format!("{signed}."), signed.to_owned(), String::new(), "..".into(), "x".repeat(TOKEN_LIMIT + 1)] {
            assert!(verify(&bent, &signer.keys(), EXPECTED).is_err(), "{bent}");
        }
    }

    /// A key and a signature made with OpenSSL, since ring cannot make RSA keys.
    #[test]
    fn rs256_is_verified() {
        let key = json!({"kty": "RSA", "e": "AQAB", "n": concat!(
            "iaXDgSu2MbLgD1SoVfuJ0yRqmNG-3dVCSmBMPfxdNILxLMR3qwHB-X4dy92EUd1o64Y-KwbJMLIH7xKiRIi4Gn8PHb",
            "8D-CqkGeA-YkXL0oRO91GqdlSEq6-KRg_CArRzFEbmszc0qMyLFGNE1U1DdAmfOwvy11X18W63Dzbs6XpTjEyOfjes",
            "OYrrOr4fe0lZ7N25c-fBsZn-KL3qpMs2t8aKeufyirXyOXu-BpIf7KxeB-nVFaxXfkmLegzOHOMo-6N41IuJcB-c03",
            "LswcN1k5bGwdS2DOzm6d4P64HtfKAsqud6YnIuyDj2MfmWIMb-8dGSXOfm_Cm1pFNxYllKEQ"
        )});
        let keys: KeySet = serde_json::from_value(json!({"keys": [key]})).unwrap();
        let signed = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUubmV0In0";
        let signature = decode(concat!(
            "W9pJMzt_1d-6DLaSCGsv0-snfOpH6Y7pwHt9L3d9cEz9d5OybCk3I0eKeGSmlbRe_h6n3nk4OQ1jEDkA1DAeKEukaN",
            "eNeV798CLmqzIhTaOFMcsaRyVz0Ea9IJlCIv_ylw4qNL23ZRIqZfjNZxqrD7YsFytfgztSRWJsjql08_hTs01S-_Od",
            "fiAsrT1hSklA1cuxKKkC2PE9mGYJjhPDc_jM_KIo_K20DKEesXhsn2EFyIhyAwxQG4kjOrlYQTu2a6LSfrPfIWhtW3",
            "h6vZM15t6fYGrGtim96yuwyNrVlWH33JUaT6t9ojyzv_jnncLwgfaSM4tUd53ZLBbmGlwxGg"
        ))
        .unwrap();
        let header: Header = read(signed.split('.').next().unwrap()).unwrap();
        assert!(keys.keys[0].has_signed(&header, signed.as_bytes(), &signature));
        assert!(!keys.keys[0].has_signed(&header, signed.to_lowercase().as_bytes(), &signature));
    }
}

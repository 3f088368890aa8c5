//! Requests to the provider itself: its description, its keys, and the token for a code. Each is made over HTTPS,
//! limited in time and size.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use penstock_connect::Trust;
use rustls::ClientConfig;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::config::OidcConfig;
use super::token::KeySet;
use crate::acme::http::exchange;

/// How long each request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A provider, and our configuration for it.
#[derive(Debug)]
pub struct Provider {
    pub config: OidcConfig,
    tls: Arc<ClientConfig>,
}

/// A provider's description of itself (OpenID Connect Discovery 1.0, section 3).
#[derive(Debug, Deserialize)]
pub struct Description {
    issuer: String,
    /// Where browsers are sent.
    pub authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    /// Whether it identifies itself when it sends browsers back (RFC 9207).
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: String,
}

impl Provider {
    /// # Errors
    /// There are no certificate authorities to vouch for it.
    pub fn new(config: OidcConfig) -> Result<Self, penstock_connect::TrustError> {
        let tls = Trust::Authorities(config.ca_file.clone()).client_config()?;
        Ok(Self { config, tls })
    }

    /// Gets its description, which must name this issuer.
    pub async fn describe(&self) -> Result<Description, String> {
        let issuer = &self.config.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let description: Description = self.get(&url).await?;
        if description.issuer != *issuer {
            return Err(format!("{url} describes the issuer {:?}", description.issuer));
        }
        Ok(description)
    }

    /// Exchanges a code for an ID token.
    pub async fn redeem(
        &self,
        description: &Description,
        code: &str,
        verifier: &str,
        redirect: &str,
    ) -> Result<Zeroizing<String>, String> {
        let OidcConfig { client_id, client_secret, .. } = &self.config;
        let public = client_secret.is_none().then_some(("client_id", client_id.as_str()));
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", redirect)
            .append_pair("code_verifier", verifier)
            .extend_pairs(public)
            .finish();
        let mut request = Request::builder().method(Method::POST).uri(&description.token_endpoint);
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(secret) = client_secret {
            // RFC 6749, section 2.3.1: form-encoded first.
            let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let pair = Zeroizing::new(format!("{}:{}", encode(client_id), encode(secret)));
            let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
            let mut value = HeaderValue::from_str(&text).map_err(|error| error.to_string())?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::from(body)).map_err(|error| error.to_string())?;
        let tokens: Tokens = self.ask(request).await?;
        Ok(tokens.id_token.into())
    }

    /// Its present keys.
    pub async fn keys(&self, description: &Description) -> Result<KeySet, String> {
        self.get(&description.jwks_uri).await
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let request = Request::builder().uri(url).body(Full::default());
        self.ask(request.map_err(|error| format!("{url}: {error}"))?).await
    }

    async fn ask<T: DeserializeOwned>(&self, mut request: Request<Full<Bytes>>) -> Result<T, String> {
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        let url = request.uri().to_string();
        let answer = timeout(PATIENCE, exchange(TlsConnector::from(self.tls.clone()), request)).await;
        let answer = answer.map_err(|_| format!("{url}: no answer in {} s", PATIENCE.as_secs()))?;
        let answer = answer.map_err(|error| format!("{url}: {error}"))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("{url} answers {}", answer.status()));
        }
        let Ok(body) = answer.into_body().collect().await;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("{url}: {error}"))
    }
}

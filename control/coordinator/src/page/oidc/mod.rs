//! Login through an OpenID Connect provider: the authorization code flow with PKCE (RFC 7636), state and nonce.
//!
//! A login under way is bound to its browser by a cookie of its own. Browsers send that cookie with requests caused by
//! other sites (`SameSite=Lax`), because the provider sends the browser back; they do not do so with the session's
//! cookie. So the answer is a page that leads on, and not a redirect, which would count as caused by the provider.

pub mod config;
mod provider;
mod token;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maud::html;

use super::Page;
use super::frame::document;
use super::guard::Cookie;
use super::login::form;
use super::pending::Pending;
use super::session::{self, Secret};
use crate::store::Who;
use crate::time::now;
use config::OidcConfig;
use provider::{Description, Provider};
use token::Expected;

/// How long logging in at the provider may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// The most logins under way; a further one replaces the oldest.
const LOGINS_LIMIT: usize = 64;
/// The cookie of a login under way.
const LOGIN_COOKIE: Cookie = Cookie { name: "penstock-login", same_site: "Lax" };

/// Logins through a provider.
#[derive(Debug)]
pub struct Oidc {
    provider: Provider,
    begun: Mutex<Pending<Begun>>,
}

/// A login that is under way.
#[derive(Debug)]
struct Begun {
    state: [u8; 32],
    cookie: [u8; 32],
    nonce: Secret,
    verifier: Secret,
    description: Description,
}

impl Oidc {
    /// # Errors
    /// There are no certificate authorities to vouch for the provider.
    pub fn new(config: OidcConfig) -> Result<Self, penstock_connect::TrustError> {
        Ok(Self { provider: Provider::new(config)?, begun: Mutex::new(Pending::new(PATIENCE, LOGINS_LIMIT)) })
    }

    /// The provider's host, for people.
    pub fn host(&self) -> &str {
        let rest = self.provider.config.issuer.trim_start_matches("https://");
        rest.split(['/', ':']).next().unwrap_or(rest)
    }

    /// Starts a login: returns where the browser has to go, and the cookie for it to bring back.
    async fn begin(&self, redirect: &str) -> Result<(String, Secret), String> {
        let description = self.provider.describe().await?;
        let [state, cookie, nonce, verifier] = std::array::from_fn(|_| session::random());
        let challenge = URL_SAFE_NO_PAD.encode(session::hash(&verifier));
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs([
            ("response_type", "code"),
            ("client_id", self.provider.config.client_id.as_str()),
            ("redirect_uri", redirect),
            ("scope", "openid email"),
            ("state", state.as_str()),
            ("nonce", nonce.as_str()),
            ("code_challenge", challenge.as_str()),
            ("code_challenge_method", "S256"),
        ]);
        let endpoint = &description.authorization_endpoint;
        if !endpoint.starts_with("https://") {
            return Err(format!("the provider sends browsers to {endpoint:?}"));
        }
        let joint = if endpoint.contains('?') { '&' } else { '?' };
        let url = format!("{endpoint}{joint}{}", query.finish());
        let state = session::hash(&state);
        let begun = Begun { state, cookie: session::hash(&cookie), nonce, verifier, description };
        self.begun().add(Instant::now(), begun);
        Ok((url, cookie))
    }

    /// Ends a login, whatever the result; returns who has logged in.
    async fn end(&self, answer: &HashMap<String, String>, cookie: &str, redirect: &str) -> Result<String, String> {
        let field = |name: &str| answer.get(name).map(String::as_str);
        let (state, cookie) = (session::hash(field("state").unwrap_or_default()), session::hash(cookie));
        let begun = self.begun().take(Instant::now(), |begun| begun.state == state && begun.cookie == cookie);
        let begun = begun.ok_or("this browser has started no such login, or did so too long ago")?;
        let OidcConfig { issuer, client_id, allow, .. } = &self.provider.config;
        let named = field("iss").map(|named| named == issuer);
        if !named.unwrap_or(!begun.description.authorization_response_iss_parameter_supported) {
            return Err("the answer is another provider's".into());
        }
        if let Some(error) = field("error") {
            let error: String = error.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
            return Err(format!("the provider says {error}"));
        }
        let code = field("code").ok_or("the provider's answer has no code")?;
        let token = self.provider.redeem(&begun.description, code, &begun.verifier, redirect).await?;
        let keys = self.provider.keys(&begun.description).await?;
        let expected = Expected { issuer, client: client_id, nonce: &begun.nonce, now: now() };
        let claims = token::verify(&token, &keys, expected).map_err(|error| error.to_string())?;
        allow.name(&claims).ok_or_else(|| format!("{:?} is not allowed here", claims.sub))
    }

    fn begun(&self) -> MutexGuard<'_, Pending<Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn begin(State(page): State<Arc<Page>>, Extension(source): Extension<SocketAddr>) -> Response {
    let Some(oidc) = &page.entrance.oidc else { return StatusCode::NOT_FOUND.into_response() };
    if let Some(refusal) = page.too_many_logins(source) {
        return refusal;
    }
    match oidc.begin(&page.redirect()).await {
        Ok((url, cookie)) => {
            let cookie = page.set_cookie(LOGIN_COOKIE, &cookie, Some(PATIENCE));
            ([(header::SET_COOKIE, cookie)], Redirect::to(&url)).into_response()
        }
        Err(error) => page.failed(source, &error),
    }
}

pub(super) async fn end(
    State(page): State<Arc<Page>>,
    Extension(source): Extension<SocketAddr>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Some(oidc) = &page.entrance.oidc else { return StatusCode::NOT_FOUND.into_response() };
    if let Some(refusal) = page.too_many_logins(source) {
        return refusal;
    }
    let fields = form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes());
    let answer = fields.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let cookie = page.cookies(&headers, LOGIN_COOKIE).next().unwrap_or_default();
    let name = match oidc.end(&answer, cookie, &page.redirect()).await {
        Ok(name) => name,
        Err(error) => return page.failed(source, &error),
    };
    let session = match page.begin_session(Who::Page(name), source).await {
        Ok(session) => session,
        Err(refusal) => return refusal,
    };
    let body = html! {
        meta http-equiv="refresh" content="0;url=/";
        main.login { p { "You are logged in: " a href="/" { "to the overview" } } }
    };
    let mut response = document("Log in", body);
    response.headers_mut().append(header::SET_COOKIE, session);
    response.headers_mut().append(header::SET_COOKIE, page.set_cookie(LOGIN_COOKIE, "", Some(Duration::ZERO)));
    response
}

impl Page {
    /// The URL to which the provider sends browsers back.
    fn redirect(&self) -> String {
        format!("{}/oidc/callback", self.entrance.origins.url())
    }

    fn failed(&self, source: SocketAddr, error: &str) -> Response {
        tracing::info!("page: {source} cannot log in by the provider: {error}");
        (StatusCode::FORBIDDEN, form(self, None, Some("You cannot log in this way: the coordinator's log says why.")))
            .into_response()
    }
}

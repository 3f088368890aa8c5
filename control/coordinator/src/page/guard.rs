//! What is checked for every request: it names our host; a change comes from one of our own pages and has the session's
//! token; and it is answered within a time limit, with headers that keep other people's scripts out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};

use super::Page;
use super::origin::Origins;
use super::session::{Secret, Use, Visitor};

/// How long an answer may take, including the request's body.
const PATIENCE: Duration = Duration::from_secs(30);

/// Headers of every answer. `no-referrer` would remove the origin that forms are checked by.
const HEADERS: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; \
        base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "same-origin"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// A cookie of the page: its name, without the prefix of a secure one, and with which requests of other sites browsers
/// send it.
#[derive(Clone, Copy)]
pub(super) struct Cookie {
    pub name: &'static str,
    pub same_site: &'static str,
}

/// The cookie of a session.
pub(super) const SESSION_COOKIE: Cookie = Cookie { name: "penstock", same_site: "Strict" };

/// Runs before everything else.
pub(super) async fn guard(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let mut response = match is_allowed(&page.entrance.origins, &request) {
        Err(status) => refusal(status),
        Ok(()) => match tokio::time::timeout(PATIENCE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => refusal(StatusCode::REQUEST_TIMEOUT),
        },
    };
    let headers = response.headers_mut();
    headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

fn refusal(status: StatusCode) -> Response {
    let sentence = match status {
        StatusCode::MISDIRECTED_REQUEST => "The page cannot be reached under this name.\n",
        StatusCode::FORBIDDEN => "This did not come from a page of this session: load the page again.\n",
        StatusCode::REQUEST_TIMEOUT => "This took too long.\n",
        StatusCode::TOO_MANY_REQUESTS => "Too many tries: wait a minute.\n",
        _ => "This request cannot be read.\n",
    };
    (status, sentence).into_response()
}

fn is_allowed(origins: &Origins, request: &Request) -> Result<(), StatusCode> {
    let text = |name: HeaderName| {
        let mut values = request.headers().get_all(name).iter();
        // If there are two values, another program may have used the other one.
        values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok())
    };
    let host = text(header::HOST).unwrap_or_default();
    if !origins.is_ours(host) {
        return Err(StatusCode::MISDIRECTED_REQUEST);
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let ours = text(header::ORIGIN).is_some_and(|origin| origins.allows(host, origin));
    if reads || ours { Ok(()) } else { Err(StatusCode::FORBIDDEN) }
}

impl Page {
    /// Refuses somebody who tries to log in too often. This counts as an attempt.
    pub(super) fn too_many_logins(&self, source: SocketAddr) -> Option<Response> {
        let mut logins = self.logins.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let allowed = logins.allow_address(Instant::now(), source.ip());
        (!allowed).then(|| refusal(StatusCode::TOO_MANY_REQUESTS))
    }

    /// The prefix of a cookie's name. Browsers accept a cookie with this prefix only over HTTPS, for this host and all
    /// of its paths (RFC 6265bis, section 4.1.3.2).
    fn cookie_prefix(&self) -> &'static str {
        if self.entrance.origins.is_secure() { "__Host-" } else { "" }
    }

    /// A `Set-Cookie` header. Without an age the cookie lasts as long as the browser; one of zero deletes it.
    pub(super) fn set_cookie(&self, cookie: Cookie, secret: &str, age: Option<Duration>) -> HeaderValue {
        let (Cookie { name, same_site }, prefix) = (cookie, self.cookie_prefix());
        let secure = if self.entrance.origins.is_secure() { "; Secure" } else { "" };
        let age = age.map(|age| format!("; Max-Age={}", age.as_secs())).unwrap_or_default();
        let text = format!("{prefix}{name}={secret}; Path=/; HttpOnly; SameSite={same_site}{age}{secure}");
        HeaderValue::from_str(&text).expect("a secret is of letters, digits, - and _")
    }

    /// The values of a cookie: others may have set one of the same name for part of the host.
    pub(super) fn cookies<'a>(
        &self,
        headers: &'a HeaderMap,
        Cookie { name, .. }: Cookie,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let prefix = self.cookie_prefix();
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = cookies.flat_map(|value| value.split(';'));
        pairs.filter_map(move |pair| pair.trim().strip_prefix(prefix)?.strip_prefix(name)?.strip_prefix('='))
    }

    pub(super) fn visitor(&self, headers: &HeaderMap, r#use: Use) -> Option<Visitor> {
        self.cookies(headers, SESSION_COOKIE)
            .find_map(|secret| self.entrance.sessions.find(Instant::now(), secret, r#use))
    }
}

/// Only logged-in visitors get any further; others are sent to the login.
impl FromRequestParts<Arc<Page>> for Visitor {
    type Rejection = Redirect;

    async fn from_request_parts(parts: &mut Parts, page: &Arc<Page>) -> Result<Self, Redirect> {
        page.visitor(&parts.headers, Use::Active).ok_or_else(|| Redirect::to("/login"))
    }
}

/// A form that a visitor has filled in on a page of this session.
pub(super) struct Posted {
    pub visitor: Visitor,
    pub fields: Fields,
}

impl FromRequest<Arc<Page>> for Posted {
    type Rejection = Response;

    async fn from_request(request: Request, page: &Arc<Page>) -> Result<Self, Response> {
        let visitor = page.visitor(request.headers(), Use::Active);
        let visitor = visitor.ok_or_else(|| Redirect::to("/login").into_response())?;
        let fields = Fields::from_request(request, page).await?;
        if !visitor.made(fields.text("token")) {
            return Err(refusal(StatusCode::FORBIDDEN));
        }
        Ok(Self { visitor, fields })
    }
}

/// A form's fields, whoever sent it.
pub(super) struct Fields(Vec<(String, Secret)>);

impl Fields {
    /// A field without spaces around it; empty if it is not there.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.trim())
    }

    /// The words of a field, separated by spaces or commas.
    pub fn words<T: std::str::FromStr, C: FromIterator<T>>(&self, name: &str) -> Result<C, String> {
        let words = self.text(name).split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        words.map(|word| word.parse().map_err(|_| format!("{word:?} cannot be read"))).collect()
    }
}

impl FromRequest<Arc<Page>> for Fields {
    type Rejection = Response;

    async fn from_request(request: Request, page: &Arc<Page>) -> Result<Self, Response> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.split(';').next().is_none_or(|kind| kind.trim() != "application/x-www-form-urlencoded") {
            return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response());
        }
        let body = Bytes::from_request(request, page).await.map_err(IntoResponse::into_response)?;
        let fields = form_urlencoded::parse(&body);
        Ok(Self(fields.map(|(name, value)| (name.into_owned(), value.into_owned().into())).collect()))
    }
}

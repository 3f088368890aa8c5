//! Logging in by a link from the command line, and logging out. [`super::oidc`] is the other way in.
//!
//! The link leads to a page with a button, so that link previews, for example in a chat, do not use it up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;

use super::Page;
use super::frame::document;
use super::guard::{Fields, Posted, SESSION_COOKIE};
use crate::store::Who;

pub(super) async fn show(State(page): State<Arc<Page>>, RawQuery(query): RawQuery) -> Response {
    let link = query.as_deref().and_then(|query| {
        let mut fields = form_urlencoded::parse(query.as_bytes());
        fields.find(|(name, _)| name == "link").map(|(_, value)| value.into_owned())
    });
    form(&page, link.as_deref(), None)
}

pub(super) fn form(page: &Page, link: Option<&str>, error: Option<&str>) -> Response {
    let body = html! {
        main.login {
            h1 { "Penstock" }
            @if let Some(error) = error { p.notice.error role="status" { (error) } }
            @if let Some(link) = link {
                form method="post" action="/login" {
                    input type="hidden" name="link" value=(link);
                    button.primary { "Log in" }
                }
            } @else {
                p { "Run this on the coordinator, as root, and open the link that it prints:" }
                pre { "penstock-coordinator page-login" }
            }
            @if let Some(oidc) = &page.entrance.oidc { p { a href="/oidc" { "Log in with " (oidc.host()) } } }
        }
    };
    document("Log in", body)
}

pub(super) async fn log_in(
    State(page): State<Arc<Page>>,
    Extension(source): Extension<SocketAddr>,
    fields: Fields,
) -> Response {
    if let Some(refusal) = page.too_many_logins(source) {
        return refusal;
    }
    match page.entrance.sessions.redeem(Instant::now(), fields.text("link")) {
        Some(who) => match page.begin_session(who, source).await {
            Ok(cookie) => ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
            Err(refusal) => refusal,
        },
        None => {
            tracing::info!("page: {source} used a login link that was used already, is too old, or never existed");
            let sentence = "This link was used already, or is too old.";
            (StatusCode::FORBIDDEN, form(&page, None, Some(sentence))).into_response()
        }
    }
}

pub(super) async fn log_out(State(page): State<Arc<Page>>, posted: Posted) -> Response {
    page.entrance.sessions.end(&posted.visitor);
    ([(header::SET_COOKIE, page.set_cookie(SESSION_COOKIE, "", Some(Duration::ZERO)))], Redirect::to("/login"))
        .into_response()
}

impl Page {
    /// Starts a session once the login is in the audit; returns its `Set-Cookie` header.
    pub(super) async fn begin_session(&self, who: Who, source: SocketAddr) -> Result<HeaderValue, Response> {
        if let Err(error) = self.status.registry.note_login(&who, source).await {
            tracing::error!("page: nobody can log in: {error}");
            let sentence = format!("The login cannot be put into the audit: {error}");
            return Err((StatusCode::SERVICE_UNAVAILABLE, form(self, None, Some(&sentence))).into_response());
        }
        tracing::info!("page: {who} has logged in from {source}");
        let cookie = self.entrance.sessions.begin(Instant::now(), who);
        Ok(self.set_cookie(SESSION_COOKIE, &cookie, None))
    }
}

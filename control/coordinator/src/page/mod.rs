//! The page: what administrators see and do with a browser.
//!
//! It is served at an address of its own, and only if the configuration says so. Every change goes through the requests
//! of the command line ([`crate::admin`]), so there is one place for rules and one audit. It works without scripts: the
//! only one, a small one, refreshes the overview.
//!
//! ```text
//!   browser ── HTTP(S) ──► listen ──► guard: host, origin, headers, time ──► pages ──► admin ──► registry
//!                                        session: links, cookies, form tokens ──┘
//! ```
//! Reading order: [`origin`], [`session`], `listen`, `guard`, then one file for each page; `picture` draws the sites,
//! `sparkline` how a number has changed.

mod audit;
pub mod config;
mod frame;
mod guard;
mod keys;
mod listen;
mod login;
pub mod oidc;
pub mod origin;
mod overview;
mod pending;
mod picture;
mod policy;
pub mod session;
mod sites;
mod sparkline;
mod words;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admin::{self, Answer, Request, Status};
use crate::admission::Rates;
use crate::admission::limits::Rate;
use oidc::Oidc;
use origin::Origins;
use session::{Notice, Sessions, Visitor};

/// Login attempts from one address.
const LOGINS: Rate = Rate { burst: 10, interval: Duration::from_secs(6) };
/// Longest body of a request, except with a policy.
const BODY_LIMIT: usize = 64 << 10;
/// Longest body with a policy. At worst, a character takes three bytes in a form.
const POLICY_LIMIT: usize = 3 << 20;

/// What the command line needs to know about the page: who may come in, and its address.
#[derive(Debug)]
pub struct Entrance {
    /// The logged-in visitors.
    pub sessions: Sessions,
    /// The URLs under which browsers reach the page.
    pub origins: Origins,
    /// Logins through a provider.
    pub oidc: Option<Oidc>,
}

/// A page that is being served.
struct Page {
    status: Arc<Status>,
    entrance: Arc<Entrance>,
    logins: Mutex<Rates>,
}

/// The sentence in an unexpected answer.
fn sentence(answer: Answer) -> String {
    match answer {
        Answer::Done(sentence) | Answer::Error(sentence) => sentence,
        _ => "this cannot be shown".into(),
    }
}

/// Serves the page until dropped; over TLS if there is a certificate.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    entrance: Arc<Entrance>,
    status: Arc<Status>,
) {
    let page = Arc::new(Page { status, entrance, logins: Mutex::new(Rates::new(LOGINS)) });
    listen::serve(listener, tls, router(page)).await;
}

fn router(page: Arc<Page>) -> Router {
    Router::new()
        .route("/", get(overview::show))
        .route("/live", get(overview::live))
        .route("/sites", get(sites::show).post(sites::change))
        .route("/keys", get(keys::show).post(keys::change))
        .route("/policy", get(policy::show).post(policy::change).layer(DefaultBodyLimit::max(POLICY_LIMIT)))
        .route("/audit", get(audit::show))
        .route("/login", get(login::show).post(login::log_in))
        .route("/logout", post(login::log_out))
        .route("/oidc", get(oidc::begin))
        .route("/oidc/callback", get(oidc::end))
        .route("/page.css", get(|| async { asset("text/css; charset=utf-8", include_str!("page.css")) }))
        .route("/page.js", get(|| async { asset("text/javascript; charset=utf-8", include_str!("page.js")) }))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(page.clone(), guard::guard))
        .with_state(page)
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response()
}

impl Page {
    /// Makes a request on behalf of a visitor. A change that has started is completed, whatever happens to the browser.
    async fn ask(&self, visitor: &Visitor, request: Request) -> Answer {
        let (status, who) = (self.status.clone(), visitor.who.clone());
        let asked = tokio::spawn(async move { admin::answer(request, &who, &status).await });
        match asked.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::Error(error.to_string()),
            Err(_) => Answer::Error("the coordinator failed at this: see its log".into()),
        }
    }

    /// The same for a change: its result is shown on the next page, the one at `path`.
    async fn change(&self, visitor: &Visitor, request: Request, path: &str) -> Response {
        let answer = self.ask(visitor, request).await;
        let done = !matches!(answer, Answer::Error(_));
        self.tell(visitor, Notice { done, sentence: sentence(answer) }, path)
    }

    /// Sends a visitor to the page at `path`, which shows this notice.
    fn tell(&self, visitor: &Visitor, notice: Notice, path: &str) -> Response {
        self.entrance.sessions.note(visitor, notice);
        Redirect::to(path).into_response()
    }
}

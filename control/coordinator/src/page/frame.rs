//! What all pages have in common, and the pieces that they are made of.

use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::Page;
use super::session::{Notice, Visitor};

/// The pages, in the order of the menu.
const MENU: [(&str, &str); 5] =
    [("/", "Overview"), ("/sites", "Sites"), ("/keys", "Keys"), ("/policy", "Policy"), ("/audit", "Audit")];

impl Page {
    /// A page for a visitor, with the result of the last action.
    pub(super) fn show(&self, visitor: &Visitor, path: &str, content: Markup) -> Response {
        let notice = self.entrance.sessions.take_notice(visitor);
        let waiting = self.waiting();
        let title = MENU.iter().find(|(at, _)| *at == path).map_or("", |(_, name)| name);
        let body = html! {
            header {
                strong { "Penstock" }
                nav {
                    @for (at, name) in MENU {
                        a href=(at) aria-current=[(at == path).then_some("page")] {
                            (name)
                            @if at == "/sites" && waiting > 0 { " " span.badge { (waiting) } }
                        }
                    }
                }
                form method="post" action="/logout" {
                    (token(visitor))
                    span { (visitor.who.name()) }
                    button { "Log out" }
                }
            }
            main {
                @if let Some(Notice { done, sentence }) = &notice {
                    p role="status" class=(if *done { "notice" } else { "notice error" }) { (sentence) }
                }
                (content)
            }
        };
        document(title, body)
    }

    /// How many sites and subnets wait for an administrator.
    fn waiting(&self) -> usize {
        let registry = &self.status.registry;
        let pending = |(site, _): &(crate::site::Site, bool)| site.state == crate::site::SiteState::Pending;
        registry.sites().iter().filter(|site| pending(site)).count() + registry.subnets_waiting()
    }
}

/// A complete document.
pub(super) fn document(title: &str, body: Markup) -> Response {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Penstock: " (title) }
                link rel="stylesheet" href="/page.css";
                script src="/page.js" defer {}
            }
            body { (body) }
        }
    };
    Html(page.into_string()).into_response()
}

/// The token that proves that a form belongs to this session.
pub(super) fn token(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name="token" value=(visitor.csrf.as_str()); }
}

/// Asks for confirmation, without a script.
pub(super) fn sure(label: &str, form: Markup) -> Markup {
    html! { details.sure { summary { (label) "…" } (form) } }
}

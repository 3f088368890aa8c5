//! The policy editor: first the text, then what it would change, and only then is it put in force.
//!
//! Nothing is stored between the steps except in the forms. A form says which policy it started from; if that is no
//! longer the one in force, somebody else was quicker, and nothing is changed.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use penstock_proto::coordination::Name;

use super::Page;
use super::frame::token;
use super::guard::Posted;
use super::overview::ROWS_LIMIT;
use super::session::{Notice, Visitor};
use super::words::join;
use crate::admin::Request;
use crate::policy::Policy;
use crate::registry::{Announcement, Named, PolicyPreview};

pub(super) async fn show(State(page): State<Arc<Page>>, visitor: Visitor) -> Response {
    let policy = page.status.registry.policy();
    let content = editor(&visitor, &policy.to_text(), &policy.fingerprint(), html! {});
    page.show(&visitor, "/policy", content)
}

pub(super) async fn change(State(page): State<Arc<Page>>, Posted { visitor, fields }: Posted) -> Response {
    let (text, base) = (fields.text("policy"), fields.text("base"));
    let policy = match Policy::parse(text) {
        Ok(policy) => policy,
        Err(sentence) => {
            let found = html! { p.notice.error role="status" { "This policy is not valid: " (sentence) } };
            return page.show(&visitor, "/policy", editor(&visitor, text, base, found));
        }
    };
    if fields.text("action") == "apply" {
        let request = Request::ReplacePolicy { policy, base: base.to_owned() };
        return page.change(&visitor, request, "/policy").await;
    }
    if page.status.registry.policy().fingerprint() != base {
        let sentence = "somebody has changed the policy in the meantime: here is the one in force now".into();
        return page.tell(&visitor, Notice { done: false, sentence }, "/policy");
    }
    let preview = page.status.registry.preview_policy(policy.clone()).await;
    let found = changes(&visitor, &policy, base, &preview);
    page.show(&visitor, "/policy", editor(&visitor, text, base, found))
}

fn editor(visitor: &Visitor, text: &str, base: &str, found: Markup) -> Markup {
    html! {
        h1 { "Policy" }
        p.hint {
            "A tunnel exists only along a link. " code { "\"*\"" } " is all sites, " code { "\"tag:NAME\"" }
            " those with a tag, else a site's name."
        }
        (found)
        form method="post" action="/policy" {
            (token(visitor))
            input type="hidden" name="base" value=(base);
            textarea name="policy" rows="24" spellcheck="false" aria-label="The policy" { "\n" (text) }
            button.primary name="action" value="preview" { "Show what would change" }
        }
    }
}

fn changes(visitor: &Visitor, policy: &Policy, base: &str, preview: &PolicyPreview) -> Markup {
    html! {
        section.card {
            h2 { "What would change" }
            @if preview.is_empty() { p { "No link and no announced subnet changes." } }
            (pairs("come", "New links", &preview.come))
            (pairs("go", "Links that end, with their tunnels", &preview.go))
            (pairs("other", "Links on which other services are allowed", &preview.other))
            @if preview.announced.count > 0 {
                h3 { "Sites whose announced subnets change: " (preview.announced.count) }
                ul {
                    @for Announcement { site, before, after } in &preview.announced.first {
                        li { (site) ": " del { (join(before)) } " → " ins { (join(after)) } }
                    }
                }
                (rest(preview.announced.first.len(), preview.announced.count))
            }
            @if !preview.cut_off.is_empty() {
                h3 { "Sites that this policy cuts off: " (preview.cut_off.len()) }
                ul { @for site in preview.cut_off.iter().take(ROWS_LIMIT) { li { (site) } } }
                (rest(ROWS_LIMIT, preview.cut_off.len()))
            }
            form method="post" action="/policy" {
                (token(visitor))
                input type="hidden" name="base" value=(base);
                input type="hidden" name="policy" value=(policy.to_text());
                button.primary name="action" value="apply" { "Put this policy in force" }
            }
        }
    }
}

fn pairs(class: &str, title: &str, pairs: &Named<[Name; 2]>) -> Markup {
    html! {
        @if pairs.count > 0 {
            h3 { (title) ": " (pairs.count) }
            ul class={ "pairs " (class) } { @for [one, other] in &pairs.first { li { (one) " – " (other) } } }
            (rest(pairs.first.len(), pairs.count))
        }
    }
}

fn rest(shown: usize, count: usize) -> Markup {
    html! { @if count > shown { p.hint { "and " (count - shown) " more" } } }
}

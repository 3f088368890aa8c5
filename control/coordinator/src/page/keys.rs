//! Enrolment keys: made, shown once, and revoked.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

use super::Page;
use super::frame::{sure, token};
use super::guard::{Fields, Posted};
use super::session::{Notice, Visitor};
use super::words::{from_now, join};
use crate::admin::{Answer, Request};
use crate::store::KeyRecord;
use crate::time::rough;

const HOUR: u64 = 3600;

pub(super) async fn show(State(page): State<Arc<Page>>, visitor: Visitor) -> Response {
    page.keys(&visitor, html! {}).await
}

pub(super) async fn change(State(page): State<Arc<Page>>, Posted { visitor, fields }: Posted) -> Response {
    if fields.text("action") == "revoke" {
        return page.change(&visitor, Request::RevokeKey(fields.text("key").into()), "/keys").await;
    }
    let request = match terms(&fields) {
        Ok(request) => request,
        Err(sentence) => return page.tell(&visitor, Notice { done: false, sentence }, "/keys"),
    };
    match page.ask(&visitor, request).await {
        Answer::Key(key) => {
            let shown = html! {
                section.secret {
                    p { "The new enrolment key. It is not shown again:" }
                    pre { (key) }
                    p.hint { "On the gateway: penstock enrol, with this key." }
                }
            };
            page.keys(&visitor, shown).await.into_response()
        }
        other => page.tell(&visitor, Notice { done: false, sentence: super::sentence(other) }, "/keys"),
    }
}

fn terms(fields: &Fields) -> Result<Request, String> {
    let number = |name: &str, field: &str| {
        fields.text(field).parse::<u32>().map_err(|_| format!("{name} must be a number, 1 or more"))
    };
    let uses = number("Sites", "uses")?;
    let hours = number("Hours", "hours")?;
    let days = match fields.text("days") {
        "" => None,
        _ => Some(number("Days", "days")?),
    };
    if uses == 0 || hours == 0 || days == Some(0) {
        return Err("numbers must be 1 or more".into());
    }
    Ok(Request::CreateKey {
        uses,
        lifetime: Duration::from_secs(u64::from(hours) * HOUR),
        tags: fields.words("tags").map_err(|error| format!("Tags: {error}"))?,
        approve_manually: fields.text("manually") == "yes",
        subnets: fields.words("subnets").map_err(|error| format!("Subnets: {error}"))?,
        site_lifetime: days.map(|days| Duration::from_secs(u64::from(days) * 24 * HOUR)),
    })
}

impl Page {
    async fn keys(&self, visitor: &Visitor, shown: Markup) -> Response {
        let list = match self.ask(visitor, Request::ListKeys).await {
            Answer::Keys(keys) => table(visitor, &keys),
            other => html! { p.notice.error { (super::sentence(other)) } },
        };
        let content = html! {
            h1 { "Enrolment keys" }
            (shown)
            (form(visitor))
            (list)
        };
        self.show(visitor, "/keys", content)
    }
}

fn form(visitor: &Visitor) -> Markup {
    html! {
        form.fields method="post" action="/keys" {
            (token(visitor))
            label { "Sites that it lets in" input type="number" name="uses" value="1" min="1" required; }
            label { "Hours that the key is valid" input type="number" name="hours" value="24" min="1" required; }
            label { "Tags of those sites" input name="tags" placeholder="branch"; }
            label {
                "Prefixes of subnets that they may offer"
                input name="subnets" placeholder="private ones that no other site has";
            }
            label { "Days until they are revoked" input type="number" name="days" min="1" placeholder="never"; }
            label.check { input type="checkbox" name="manually" value="yes"; "Each of them waits for approval" }
            button.primary name="action" value="create" { "Make a key" }
        }
    }
}

fn table(visitor: &Visitor, keys: &[KeyRecord]) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th { "Key" } th { "Uses left" } th { "Expires" } th { "Approval" } th { "Tags" } th { "Subnets" }
                    th { "Sites expire" } th {}
                }
            }
            tbody {
                @for key in keys {
                    tr {
                        td { code { (key.id) } }
                        td.number { (key.uses_left) }
                        td { (from_now(key.expires)) }
                        td { (if key.approve_manually { "by hand" } else { "at once" }) }
                        td { (join(&key.tags)) }
                        td { (join(&key.subnets)) }
                        td { (key.site_lifetime.map_or("never".into(), |lifetime| format!("after {}", rough(lifetime)))) }
                        td {
                            (sure("Revoke", html! {
                                form method="post" action="/keys" {
                                    (token(visitor))
                                    input type="hidden" name="key" value=(key.id);
                                    button.danger name="action" value="revoke" { "Revoke: it lets in no more sites" }
                                }
                            }))
                        }
                    }
                }
            }
        }
    }
}

//! The page with the log of changes.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

use super::Page;
use super::session::Visitor;
use super::words::from_now;
use crate::admin::{Answer, Request};
use crate::store::AuditEntry;

/// How many of the latest entries are shown.
const ENTRIES: u32 = 200;
/// The most characters shown of a value before or after a change: a policy may have megabytes.
const VALUE_LIMIT: usize = 4000;

pub(super) async fn show(State(page): State<Arc<Page>>, visitor: Visitor) -> Response {
    let content = match page.ask(&visitor, Request::Audit { last: ENTRIES }).await {
        Answer::Audit(entries) => table(&entries),
        other => html! { p.notice.error { (super::sentence(other)) } },
    };
    page.show(&visitor, "/audit", content)
}

fn table(entries: &[AuditEntry]) -> Markup {
    html! {
        h1 { "Audit" }
        p.hint { "The latest " (ENTRIES) " changes, newest first; penstock-coordinator audit has all." }
        table {
            thead { tr { th { "No." } th { "When" } th { "Who" } th { "What" } th { "Before and after" } } }
            tbody {
                @for entry in entries.iter().rev() {
                    tr {
                        td.number { (entry.number) }
                        td { (from_now(entry.time)) }
                        td { (entry.who) }
                        td { (entry.what) }
                        td {
                            details {
                                summary { (subject(entry)) }
                                @for (label, value) in [("before", &entry.before), ("after", &entry.after)] {
                                    @if !value.is_null() { strong { (label) } pre { (text(value)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What an entry is about, if it has a name.
fn subject(entry: &AuditEntry) -> &str {
    let named = |value: &'_ Value| ["Name", "Id"].iter().any(|field| value[*field].is_string());
    let value = if named(&entry.after) { &entry.after } else { &entry.before };
    value["Name"].as_str().or(value["Id"].as_str()).unwrap_or("details")
}

fn text(value: &Value) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    match text.char_indices().nth(VALUE_LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

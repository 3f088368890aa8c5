//! The sites page: which sites wait for approval, and what can be done with each.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use ipnet::IpNet;
use maud::{Markup, html};

use super::Page;
use super::frame::{sure, token};
use super::guard::{Fields, Posted};
use super::overview::{ROWS_LIMIT, filter, search, selects};
use super::session::{Notice, Visitor};
use super::words::{from_now, join};
use crate::admin::{Answer, Request, SiteStatus};
use crate::registry::AuthorityReport;
use crate::site::SiteState;

pub(super) async fn show(State(page): State<Arc<Page>>, visitor: Visitor, RawQuery(query): RawQuery) -> Response {
    let filter = filter(query.as_deref());
    let (sites, authority) =
        (page.ask(&visitor, Request::ListSites).await, page.ask(&visitor, Request::Authority).await);
    let content = match (sites, authority) {
        (Answer::Sites(sites), Answer::Authority(authority)) => list(&visitor, &filter, &sites, &authority),
        (Answer::Sites(_), other) | (other, _) => html! { p.notice.error { (super::sentence(other)) } },
    };
    page.show(&visitor, "/sites", content)
}

pub(super) async fn change(State(page): State<Arc<Page>>, Posted { visitor, fields }: Posted) -> Response {
    match request(&fields) {
        Ok(request) => page.change(&visitor, request, "/sites").await,
        Err(sentence) => page.tell(&visitor, Notice { done: false, sentence }, "/sites"),
    }
}

fn request(fields: &Fields) -> Result<Request, String> {
    // By key, since several sites may have the same name.
    let site = fields.text("site").to_owned();
    Ok(match fields.text("action") {
        "approve" => {
            let subnets: Vec<IpNet> = fields.words("subnets").map_err(|error| format!("Subnets: {error}"))?;
            Request::Approve { site, subnets: (!subnets.is_empty()).then_some(subnets) }
        }
        "revoke" => Request::Revoke(site),
        "remove" => Request::Remove(site),
        "limit" => {
            let days = fields.text("days");
            let days = match days {
                "" => None,
                _ => Some(days.parse::<u32>().map_err(|_| format!("Days: {days:?} is not a number"))?),
            };
            let lifetime = days.map(|days| Duration::from_secs(u64::from(days) * 86_400));
            Request::Limit { site, lifetime }
        }
        other => return Err(format!("{other:?} is not an action on a site")),
    })
}

fn list(visitor: &Visitor, filter: &str, sites: &[SiteStatus], authority: &AuthorityReport) -> Markup {
    let waits = |status: &&SiteStatus| status.site.state == SiteState::Pending || !status.waiting.is_empty();
    let waiting: Vec<&SiteStatus> = sites.iter().filter(waits).collect();
    let selected: Vec<&SiteStatus> = sites.iter().filter(|status| selects(filter, &status.site)).collect();
    html! {
        h1 { "Requests" }
        @if waiting.is_empty() { p.hint { "Nothing waits for an administrator." } }
        @else if !authority.here { (elsewhere()) }
        @for status in waiting.iter().take(ROWS_LIMIT) { (card(visitor, status, authority.here)) }
        @for cut_off in sites.iter().filter_map(|status| status.cut_off.as_ref()).take(ROWS_LIMIT) {
            p.notice.error { (cut_off) }
        }
        h1 { "All sites" }
        (search("/sites", filter))
        table {
            thead {
                tr {
                    th { "Name" } th { "State" } th { "Connected" } th { "Subnets in force" } th { "Tags" }
                    th { "Expires" } th { "Public key" } th {}
                }
            }
            tbody {
                @for status in selected.iter().take(ROWS_LIMIT) {
                    tr {
                        td { (status.site.name) }
                        td { span class={ "state " (status.site.state.as_str()) } { (status.site.state.as_str()) } }
                        td { (connected(status)) }
                        td { (join(&status.site.in_force)) }
                        td { (join(&status.site.tags)) }
                        td { (status.site.ends.map_or("never".into(), from_now)) }
                        td { code { (status.site.key) } }
                        td { (actions(visitor, status, authority.here)) }
                    }
                }
            }
        }
        @if selected.len() > ROWS_LIMIT {
            p.hint { (ROWS_LIMIT) " of " (selected.len()) " sites are shown: filter them." }
        }
    }
}

fn connected(status: &SiteStatus) -> String {
    match (status.connected, status.site.last_seen) {
        (true, _) => "yes".into(),
        (false, Some(time)) => from_now(time),
        (false, None) => "never".into(),
    }
}

/// How to sign where the authority's key is.
fn elsewhere() -> Markup {
    html! {
        div.notice {
            p { "The authority's key is on another machine, so nothing can be approved here. Have it signed there:" }
            pre {
                "penstock-coordinator authority requests > requests.json          # here: read it\n"
                "penstock-coordinator --state DIRECTORY site approve NAME --offline requests.json > signed.json   # there\n"
                "penstock-coordinator authority add signed.json                   # here"
            }
        }
    }
}

/// Something that waits for approval.
fn card(visitor: &Visitor, status: &SiteStatus, here: bool) -> Markup {
    let site = &status.site;
    let offered = join(&site.subnets).replace('–', "");
    html! {
        section.card {
            h2 { (site.name) }
            p {
                @if site.state == SiteState::Pending { "A new site, enrolled " (from_now(site.created)) ". " }
                "Connected: " (connected(status)) ". It offers " (join(&site.subnets)) "."
            }
            p { "Public key " code { (site.key) } }
            @if !status.waiting.is_empty() {
                ul { @for waiting in &status.waiting { li { (waiting.subnet) " waits: " (waiting.reason) } } }
            }
            @if here {
                form.row method="post" action="/sites" {
                    (token(visitor))
                    input type="hidden" name="site" value=(site.key);
                    button.primary name="action" value="approve" { "Approve" }
                    span.hint { "and let it offer those of its subnets that need no grant" }
                }
                form.row method="post" action="/sites" {
                    (token(visitor))
                    input type="hidden" name="site" value=(site.key);
                    input name="subnets" value=(offered) required aria-label="Subnets";
                    button name="action" value="approve" { "Approve exactly these subnets" }
                }
            }
            (actions(visitor, status, here))
        }
    }
}

fn actions(visitor: &Visitor, status: &SiteStatus, here: bool) -> Markup {
    let site = &status.site;
    sure(
        "Change",
        html! {
            form.stack method="post" action="/sites" {
                (token(visitor))
                input type="hidden" name="site" value=(site.key);
                @if here && site.state == SiteState::Revoked {
                    button name="action" value="approve" { "Approve again" }
                }
                @if site.state != SiteState::Revoked {
                    button.danger name="action" value="revoke" { "Revoke: cut it off" }
                }
                button.danger name="action" value="remove" { "Remove: cut it off and forget it" }
            }
            @if site.state != SiteState::Revoked {
                form.row method="post" action="/sites" {
                    (token(visitor))
                    input type="hidden" name="site" value=(site.key);
                    label { "Days until it is revoked" input type="number" name="days" min="1" placeholder="never"; }
                    button name="action" value="limit" { "Set" }
                }
            }
        },
    )
}

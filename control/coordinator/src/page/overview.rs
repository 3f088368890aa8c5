//! The first page: the sites as a picture and in tables, and the links with path, reason, rate and round trip.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

use super::Page;
use super::picture::{self, SITES_LIMIT};
use super::session::{Use, Visitor};
use super::sparkline;
use super::words::{self, from_now, join};
use crate::registry::{LINKS_LIMIT, LinkView, Overview, Registry};
use crate::site::Site;
use crate::time::rough;

/// The most rows of a table.
pub(super) const ROWS_LIMIT: usize = 500;
/// The longest filter that is applied.
const FILTER_LIMIT: usize = 63;

pub(super) async fn show(State(page): State<Arc<Page>>, visitor: Visitor, RawQuery(query): RawQuery) -> Response {
    let filter = filter(query.as_deref());
    let content = html! { (search("/", &filter)) div #live { (page.overview(&filter)) } };
    page.show(&visitor, "/", content)
}

/// The part of the page that changes by itself.
pub(super) async fn live(State(page): State<Arc<Page>>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    match page.visitor(&headers, Use::Passive) {
        Some(_) => Html(page.overview(&filter(query.as_deref())).into_string()).into_response(),
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// The text to filter by.
pub(super) fn filter(query: Option<&str>) -> String {
    let mut fields = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let wanted = fields.find(|(name, _)| name == "q").map(|(_, value)| value.trim().to_lowercase());
    wanted.unwrap_or_default().chars().take(FILTER_LIMIT).collect()
}

/// Whether a site has the text in its name, or has this tag.
pub(super) fn selects(filter: &str, site: &Site) -> bool {
    let tagged = || site.tags.iter().any(|tag| tag.as_str().eq_ignore_ascii_case(filter));
    filter.is_empty() || site.name.as_str().to_lowercase().contains(filter) || tagged()
}

pub(super) fn search(path: &str, filter: &str) -> Markup {
    html! {
        form.search method="get" action=(path) {
            input type="search" name="q" value=(filter) placeholder="Name or tag" aria-label="Name or tag";
            button { "Filter" }
        }
    }
}

impl Page {
    fn overview(&self, filter: &str) -> Markup {
        let overview = self.status.registry.overview(|site| selects(filter, site));
        let connected = overview.sites.iter().filter(|site| site.connected).count();
        html! {
            p.counts {
                strong { (overview.sites.len()) } (if overview.sites.len() == 1 { " site, " } else { " sites, " }) strong { (connected) } " connected; "
                strong { (overview.links.len()) @if overview.more_links { "+" } } (if overview.links.len() == 1 { " link" } else { " links" })
                @for kind in ["direct", "relayed", "down", "unknown"] {
                    @let count = overview.links.iter().filter(|link| words::path(link.path()) == kind).count();
                    span.legend {
                        svg viewBox="0 0 40 10" aria-hidden="true" {
                            line class={ "link " (kind) } x1="0" y1="5" x2="40" y2="5" stroke-width="3" {}
                        }
                        (count) " " (kind)
                    }
                }
            }
            @if overview.more_links { p.hint { "There are more than " (LINKS_LIMIT) " links: filter the sites." } }
            @if overview.sites.len() > SITES_LIMIT {
                p.hint { "A picture has " (SITES_LIMIT) " sites at most: filter them by name or tag." }
            } @else if overview.sites.is_empty() {
                p.hint { "No site is approved yet. Make an enrolment key, and give it to a gateway." }
            } @else {
                @let (picture, left_out) = picture::draw(&overview);
                (picture)
                @if left_out > 0 {
                    p.hint { (left_out) " links are not drawn: of the direct and unknown ones, those with the least traffic." }
                }
            }
            (links(&overview, &self.status.registry))
            (sites(&overview))
        }
    }
}

fn links(overview: &Overview, registry: &Registry) -> Markup {
    let mut links: Vec<&LinkView> = overview.links.iter().collect();
    links.sort_by_key(|link| {
        let trouble = matches!(words::path(link.path()), "down" | "relayed");
        (!trouble, std::cmp::Reverse(link.rate()), link.ends)
    });
    let count = links.len();
    links.truncate(ROWS_LIMIT);
    let ends = links.iter().map(|link| link.ends.map(|end| &overview.sites[end].site.key));
    let (span, pasts) = registry.past(ends);
    let span = rough(span.as_secs());
    html! {
        h2 { "Links" }
        table {
            thead { tr { th { "Sites" } th { "Path" } th { "Why" } th { "Rate" } th { "Round trip" } } }
            tbody {
                @for (link, past) in links.iter().zip(&pasts) {
                    @let [one, other] = link.ends.map(|end| &overview.sites[end].site.name);
                    tr {
                        td { (one) " – " (other) }
                        td { span class={ "path " (words::path(link.path())) } { (words::path(link.path())) } }
                        td { (why(link)) }
                        @let round_trip = join(link.round_trip().map(words::round_trip));
                        (with_past(words::rate(link.rate()), &past.rates, &span, |rate| words::rate(rate as u64)))
                        (with_past(round_trip, &past.round_trips, &span, |micros| words::round_trip(micros as u32)))
                    }
                }
            }
        }
        @if !links.is_empty() {
            p.hint { "Each line covers the last " (span) " and has a scale of its own, from zero to its highest value." }
        }
        @if count > ROWS_LIMIT { p.hint { (ROWS_LIMIT) " of " (count) " links are shown." } }
    }
}

/// A cell with a number as it is now, and a line that shows how it has changed; pointing at it shows the lowest and
/// highest value.
fn with_past(now: String, past: &[Option<f32>], span: &str, words: impl Fn(f32) -> String) -> Markup {
    let known = past.iter().flatten().copied();
    let extremes = known.clone().reduce(f32::min).zip(known.reduce(f32::max));
    let title = extremes.map(|(lowest, highest)| format!("{} to {} in the last {span}", words(lowest), words(highest)));
    html! { td.number title=[title] { (sparkline::draw(past)) (now) } }
}

/// The reason given by the end that sees the worse path, and the relay.
fn why(link: &LinkView) -> String {
    let path = link.path();
    match link.told.iter().flatten().find(|told| Some(told.path) == path) {
        None => "neither gateway has reported yet".into(),
        Some(told) => match &told.relay {
            Some(relay) => format!("{}; by {relay}", told.reason),
            None => told.reason.clone(),
        },
    }
}

fn sites(overview: &Overview) -> Markup {
    html! {
        h2 { "Sites" }
        table {
            thead { tr { th { "Name" } th { "Connected" } th { "NAT" } th { "Address" } th { "Subnets" } th { "Tags" } } }
            tbody {
                @for view in overview.sites.iter().take(ROWS_LIMIT) {
                    tr {
                        td { (view.site.name) }
                        td {
                            @if view.connected { "yes" }
                            @else { (view.site.last_seen.map_or("no".into(), |seen| format!("no; {}", from_now(seen)))) }
                        }
                        td { (words::nat(view.nat)) }
                        td { (view.site.virtual_address) }
                        td { (join(&view.site.in_force)) }
                        td { (join(&view.site.tags)) }
                    }
                }
            }
        }
        @if overview.sites.len() > ROWS_LIMIT {
            p.hint { (ROWS_LIMIT) " of " (overview.sites.len()) " sites are shown." }
        }
    }
}

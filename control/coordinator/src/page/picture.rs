//! The sites and their links as a picture that can be read without colours: a link that is down is dotted, a relayed
//! one dashed.
//!
//! Sites are placed on a circle in the order of their names, so that each keeps its position; hubs are placed inside.

use std::f64::consts::{PI, TAU};

use maud::{Markup, html};
use penstock_proto::coordination::PathKind;

use super::words;
use crate::registry::{LinkView, Overview};

/// The most sites in a picture.
pub(super) const SITES_LIMIT: usize = 200;
/// More sites than this have small dots and thin lines.
const CROWD: usize = 40;
/// The most lines in a picture; more would be just a dark spot.
const LINES_LIMIT: usize = 600;
/// The most lines with words.
const WORDS_LIMIT: usize = 8;
/// The most sites placed inside the circle, and how many times as many links as others they must have.
const HUBS_LIMIT: usize = 8;
const HUB_FACTOR: usize = 4;

const CENTRE: f64 = 500.0;
const RADIUS: f64 = 330.0;
const HUB_RADIUS: f64 = 90.0;

/// The position of a site, and of its name.
struct Position {
    x: f64,
    y: f64,
    /// The direction from the centre, in radians; `None` for a hub.
    angle: Option<f64>,
}

/// The sizes of things, depending on the number of sites.
struct Size {
    dot: f64,
    font: f64,
    letters: usize,
    /// Whether names are written along the radius, because there is no other room.
    radial: bool,
}

/// Draws the picture; returns it and the number of links that are not in it.
pub(super) fn draw(overview: &Overview) -> (Markup, usize) {
    let positions = positions(overview);
    let size = match overview.sites.len() {
        0..=12 => Size { dot: 13.0, font: 22.0, letters: 20, radial: false },
        13..=CROWD => Size { dot: 8.0, font: 15.0, letters: 22, radial: false },
        _ => Size { dot: 4.0, font: 10.0, letters: 24, radial: true },
    };
    let mut links: Vec<&LinkView> = overview.links.iter().collect();
    // If not all can be drawn, those that need attention are, and then those that carry most; the worst are on top.
    links.sort_by_key(|link| (link.path().map_or(0, severity), link.rate()));
    let left_out = links.len().saturating_sub(LINES_LIMIT);
    let worded = overview.links.len() <= WORDS_LIMIT;
    let (mut top, mut bottom) = (CENTRE, CENTRE);
    for position in &positions {
        (top, bottom) = (top.min(position.y), bottom.max(position.y));
    }
    let margin = if size.radial { 165.0 } else { 75.0 };
    let (top, height) = (top - margin, bottom - top + 2.0 * margin);
    let picture = html! {
        svg.picture viewBox={ "0 " (number(top)) " 1000 " (number(height)) } role="img" aria-label="Sites and links" {
            @for link in &links[left_out..] { (line(link, overview, &positions)) }
            @if worded { @for link in &overview.links { (caption(link, &positions)) } }
            @for (site, position) in overview.sites.iter().zip(&positions) {
                g class=(if site.connected { "site" } else { "site away" }) {
                    title {
                        (site.site.name) ", " (if site.connected { "connected" } else { "not connected" })
                        ", NAT: " (words::nat(site.nat))
                    }
                    circle cx=(number(position.x)) cy=(number(position.y)) r=(size.dot) {}
                    (name(site.site.name.as_str(), position, &size))
                }
            }
        }
    };
    (picture, left_out)
}

fn severity(path: PathKind) -> u8 {
    match path {
        PathKind::Direct => 1,
        PathKind::Relay => 2,
        PathKind::None => 3,
    }
}

fn positions(overview: &Overview) -> Vec<Position> {
    let hubs = hubs(overview);
    let inside = hubs.iter().filter(|hub| **hub).count();
    let outside = hubs.len() - inside;
    let (mut hub, mut other) = (0_u32, 0_u32);
    let position = |is_hub: &bool| {
        let (at, count, radius) = match is_hub {
            true => (&mut hub, inside, if inside == 1 { 0.0 } else { HUB_RADIUS }),
            false => (&mut other, outside, if outside == 1 && inside == 0 { 0.0 } else { RADIUS }),
        };
        // Two sites are side by side; of more, the first is at the top.
        let first = if count == 2 { PI } else { -PI / 2.0 };
        let angle = first + TAU * f64::from(*at) / count as f64;
        *at += 1;
        let (sine, cosine) = angle.sin_cos();
        let outer = (radius == RADIUS).then_some(angle);
        Position { x: CENTRE + radius * cosine, y: CENTRE + radius * sine, angle: outer }
    };
    hubs.iter().map(position).collect()
}

/// Which sites have far more links than most others.
fn hubs(overview: &Overview) -> Vec<bool> {
    let mut degrees = vec![0; overview.sites.len()];
    overview.links.iter().flat_map(|link| link.ends).for_each(|end| degrees[end] += 1);
    let mut sorted = degrees.clone();
    sorted.sort_unstable();
    let usual = sorted.get(sorted.len() / 2).copied().unwrap_or_default().max(1);
    let hubs: Vec<bool> = degrees.iter().map(|degree| *degree >= HUB_FACTOR * usual).collect();
    let count = hubs.iter().filter(|hub| **hub).count();
    if count <= HUBS_LIMIT { hubs } else { vec![false; hubs.len()] }
}

fn line(link: &LinkView, overview: &Overview, positions: &[Position]) -> Markup {
    let [from, to] = link.ends.map(|end| &positions[end]);
    let [one, other] = link.ends.map(|end| &overview.sites[end].site.name);
    // 1 Mbit/s, 100 Mbit/s, 1 Gbit/s.
    let width = match link.rate() {
        0..125_000 => 1.5,
        125_000..12_500_000 => 3.0,
        12_500_000..125_000_000 => 5.0,
        _ => 7.0,
    };
    let width = if overview.sites.len() > CROWD { width * 0.4 } else { width };
    html! {
        line class={ "link " (words::path(link.path())) } stroke-width=(number(width))
            x1=(number(from.x)) y1=(number(from.y)) x2=(number(to.x)) y2=(number(to.y)) {
            title { (one) " – " (other) ": " (description(link)) }
        }
    }
}

/// A link, described in a line.
pub(super) fn description(link: &LinkView) -> String {
    let mut words = vec![words::path(link.path()).to_owned()];
    if let Some(path) = link.path().filter(|path| *path != PathKind::None) {
        if path == PathKind::Relay {
            let relay = link.told.iter().flatten().find_map(|told| told.relay.as_ref());
            words.extend(relay.map(|relay| format!("by {relay}")));
        }
        words.push(words::rate(link.rate()));
        words.extend(link.round_trip().map(words::round_trip));
    }
    words.join(", ")
}

fn caption(link: &LinkView, positions: &[Position]) -> Markup {
    let [mut from, mut to] = link.ends.map(|end| &positions[end]);
    // Along the line, and not upside down.
    if from.x > to.x {
        (from, to) = (to, from);
    }
    let turn = number((to.y - from.y).atan2(to.x - from.x).to_degrees());
    // Not in the middle, where lines cross.
    let at = |from: f64, to: f64| number(from + (to - from) * 0.42);
    let (x, y) = (at(from.x, to.x), at(from.y, to.y));
    let turned = format!("rotate({turn} {x} {y})");
    let words = description(link);
    html! {
        text.caption x=(x) y=(y) dy="-7" transform=(turned) text-anchor="middle" font-size="16" {
            (words.strip_prefix("direct, ").unwrap_or(&words))
        }
    }
}

fn name(name: &str, position: &Position, size: &Size) -> Markup {
    let short: String = match name.chars().count() > size.letters {
        true => name.chars().take(size.letters - 1).chain(['…']).collect(),
        false => name.to_owned(),
    };
    let away = size.dot + 6.0;
    let Some(angle) = position.angle else {
        return html! {
            text x=(number(position.x)) y=(number(position.y + away + size.font * 0.8)) text-anchor="middle"
                font-size=(size.font) { (short) }
        };
    };
    let (sine, cosine) = angle.sin_cos();
    let (x, y) = (position.x + away * cosine, position.y + away * sine);
    let anchor = match cosine {
        -0.2..=0.2 if !size.radial => "middle",
        ..0.0 => "end",
        _ => "start",
    };
    let turn = match cosine < 0.0 {
        true => angle.to_degrees() + 180.0,
        false => angle.to_degrees(),
    };
    let turned = size.radial.then(|| format!("rotate({} {} {})", number(turn), number(x), number(y)));
    // Letters stand on their baseline: names above the circle need no shift, those below a whole line.
    let down = if size.radial { 0.35 } else { 0.35 + 0.45 * sine };
    html! {
        text x=(number(x)) y=(number(y)) dy=(number(down * size.font)) text-anchor=(anchor) font-size=(size.font)
            transform=[turned] { (short) }
    }
}

fn number(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::SiteView;
    use crate::site::{Site, SiteState};
    use penstock_proto::coordination::PathReport;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    fn overview(count: usize, links: impl IntoIterator<Item = ([usize; 2], Option<PathKind>)>) -> Overview {
        let site = |number: usize| Site {
            key: [number as u8; 32].into(),
            name: format!("site-{number:03}").parse().unwrap(),
            virtual_address: Ipv4Addr::new(100, 64, 0, number as u8),
            subnets: Vec::new(),
            in_force: Vec::new(),
            granted: None,
            channel_binding: Default::default(),
            tags: Default::default(),
            state: SiteState::Approved,
            created: 0,
            last_seen: None,
            ends: None,
        };
        let view = |number| SiteView { site: Arc::new(site(number)), connected: true, nat: None };
        let told = |path| PathReport {
            peer: [0; 32].into(),
            path,
            relay: None,
            reason: String::new(),
            round_trip: Some(8_300),
            received: 1_000_000,
            sent: 0,
        };
        let link = |(ends, path): ([usize; 2], Option<PathKind>)| LinkView { ends, told: [path.map(told), None] };
        Overview {
            sites: (0..count).map(view).collect(),
            links: links.into_iter().map(link).collect(),
            more_links: false,
        }
    }

    #[test]
    fn each_state_of_a_link_looks_its_own_way() {
        let paths = [Some(PathKind::Direct), Some(PathKind::Relay), Some(PathKind::None), None];
        let links = paths.into_iter().enumerate().map(|(number, path)| ([number, number + 1], path));
        let (picture, left_out) = draw(&overview(5, links));
        let picture = picture.into_string();
        for class in ["link direct", "link relayed", "link down", "link unknown"] {
            assert_eq!(picture.matches(class).count(), 1, "{class}");
        }
        assert!(picture.contains("8.0 Mbit/s, 8.3 ms") && picture.contains("site-004"), "{picture}");
        assert_eq!(left_out, 0);
    }

    #[test]
    fn nobody_stands_where_another_does_and_hubs_stand_inside() {
        for count in [1, 2, 3, 20, 200] {
            let spokes = (1..count).map(|other| ([0, other], None));
            let positions = positions(&overview(count, spokes));
            for (number, one) in positions.iter().enumerate() {
                assert!((0.0..=1000.0).contains(&one.x), "{}", one.x);
                for other in &positions[..number] {
                    assert!((one.x - other.x).hypot(one.y - other.y) > 8.0, "{count}");
                }
            }
            assert_eq!(positions[0].angle.is_none(), count == 1 || count >= 20, "{count}");
        }
    }

    #[test]
    fn of_too_many_links_those_that_are_down_are_drawn() {
        let pairs = (0..200).flat_map(|one| (0..one).map(move |other| [other, one]));
        let links = pairs.enumerate().map(|(number, ends)| match number % 100 {
            0 => (ends, Some(PathKind::None)),
            _ => (ends, Some(PathKind::Direct)),
        });
        let overview = overview(200, links);
        let (picture, left_out) = draw(&overview);
        assert_eq!(left_out, overview.links.len() - LINES_LIMIT);
        assert_eq!(picture.into_string().matches("link down").count(), 199);
    }
}

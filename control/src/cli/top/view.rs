//! What `top` shows, and what its keys do. In a small terminal sections are left out, the least important first.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use anyhow::Result;
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use penstock_proto::trust::UnixTime;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::symbols::bar::NINE_LEVELS;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, RenderDirection, Row, Sparkline, Table, TableState, Wrap};

use super::super::table::{age, label, milliseconds, shortened};
use super::Answered;
use crate::history::{History, TIERS, Traffic, Wanted};
use crate::key::PublicKey;
use crate::problem::Problem;
use crate::status::{Health, PathKind, PeerStatus, Status};

/// Points that are asked for: as many as a wide terminal has columns.
const POINTS: usize = 240;
/// Columns beside a chart.
const CAPTION: u16 = 30;
/// Columns of the table's cells with a fixed width: path, round trip, received, sent.
const FIXED: [u16; 4] = [15, 8, 12, 12];
/// Columns of a peer's name.
const NAME: u16 = 16;
/// The most problems shown, and the number of peers that a page key skips.
const PROBLEMS: usize = 3;
const PAGE: isize = 10;

/// The sections, from the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Title,
    Site,
    Received,
    Sent,
    Load,
    Workers,
    Dropped,
    Reasons,
    Problems,
    Peers,
    Peer,
    Keys,
}

/// What a key causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing but drawing.
    Stay,
    /// Another part of the history is needed.
    Ask,
    /// `top` ends.
    End,
}

/// The state of the screen.
pub struct View {
    name: String,
    answered: Option<Box<Answered>>,
    /// Why there is no newer answer.
    error: Option<String>,
    /// The length of a point, in [`TIERS`].
    tier: usize,
    /// Whether peers are sorted by traffic instead of in the gateway's order.
    busiest_first: bool,
    selected: Option<PublicKey>,
    /// Where the list of peers begins.
    offset: usize,
}

impl View {
    /// For the gateway of this name, which has not been asked yet.
    pub fn new(name: String) -> Self {
        Self { name, answered: None, error: None, tier: 0, busiest_first: false, selected: None, offset: 0 }
    }

    /// The part of the history that is shown.
    pub fn wanted(&self) -> Wanted {
        Wanted { seconds: TIERS[self.tier].seconds, points: POINTS }
    }

    /// Takes the gateway's answer. If there is none, the last one remains on screen.
    pub fn take(&mut self, answer: Result<Box<Answered>>) {
        match answer {
            Ok(answered) => (self.answered, self.error) = (Some(answered), None),
            Err(error) => self.error = Some(format!("{error:#}")),
        }
    }

    /// Handles a key.
    pub fn press(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Stay;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::End,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::End,
            KeyCode::Char('t') | KeyCode::Tab => {
                self.tier = (self.tier + 1) % TIERS.len();
                return Next::Ask;
            }
            KeyCode::Char('b') => self.busiest_first = !self.busiest_first,
            KeyCode::Up | KeyCode::Char('k') => self.select(-1),
            KeyCode::Down | KeyCode::Char('j') => self.select(1),
            KeyCode::PageUp => self.select(-PAGE),
            KeyCode::PageDown => self.select(PAGE),
            KeyCode::Home => self.select(isize::MIN),
            KeyCode::End => self.select(isize::MAX),
            _ => {}
        }
        Next::Stay
    }

    /// Selects the peer this many lines further down.
    fn select(&mut self, lines: isize) {
        let Some(answered) = self.answered.take() else { return };
        let peers = self.peers(&answered);
        let place = peers.iter().position(|peer| Some(peer.public_key) == self.selected).unwrap_or(0);
        let place = place.saturating_add_signed(lines).min(peers.len().saturating_sub(1));
        self.selected = peers.get(place).map(|peer| peer.public_key);
        self.answered = Some(answered);
    }

    /// The peers in the order shown.
    fn peers<'a>(&self, answered: &'a Answered) -> Vec<&'a PeerStatus> {
        let mut peers: Vec<&PeerStatus> = answered.status.peers.iter().collect();
        if self.busiest_first {
            let traffic = traffic(answered.history.as_ref());
            let rate =
                |peer: &&PeerStatus| traffic.get(&peer.public_key).map_or(0.0, |t| last(&t.received) + last(&t.sent));
            peers.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        }
        peers
    }

    /// Draws everything that there is room for.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let Some(answered) = self.answered.take() else { return };
        let sections = sections(frame.area().height, answered.status.problems.len());
        let rows = sections.values().map(|rows| Constraint::Length(*rows));
        let areas = Layout::vertical(rows).split(frame.area());
        for (section, area) in sections.keys().zip(areas.iter()) {
            self.draw_section(frame, *section, *area, &answered);
        }
        self.answered = Some(answered);
    }

    fn draw_section(&mut self, frame: &mut Frame<'_>, section: Section, area: Rect, answered: &Answered) {
        let Answered { status, history } = answered;
        let none = History::default();
        let history = history.as_ref().unwrap_or(&none);
        match section {
            Section::Title => frame.render_widget(self.title(status, history), area),
            Section::Site => frame.render_widget(site(status), area),
            Section::Received => {
                let rates = &history.total.received;
                chart(frame, area, "received", &bits(rates.last().copied()), rates, None);
            }
            Section::Sent => {
                let rates = &history.total.sent;
                chart(frame, area, "sent", &bits(rates.last().copied()), rates, None);
            }
            Section::Load => {
                let percent = history.load.last().map_or_else(|| "-".to_owned(), |load| percent(*load));
                chart(frame, area, "busiest worker", &percent, &history.load, Some(1.0));
            }
            Section::Workers => {
                let loads: Vec<String> = history.loads.iter().map(|load| percent(*load)).collect();
                frame.render_widget(format!("  workers: {}", loads.join("  ")), area);
            }
            Section::Dropped => {
                let rate = history.dropped.last().map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0} /s"));
                chart(frame, area, "dropped", &rate, &history.dropped, None);
            }
            Section::Reasons => frame.render_widget(reasons(&status.drops, &history.drops), area),
            Section::Problems => frame.render_widget(problems(&status.problems, area.height), area),
            Section::Peers => self.draw_peers(frame, area, answered),
            Section::Peer => {
                let peers = self.peers(answered);
                let selected = peers.iter().find(|peer| Some(peer.public_key) == self.selected).or(peers.first());
                if let Some(peer) = selected {
                    frame.render_widget(details(peer), area);
                }
            }
            Section::Keys => frame.render_widget(keys(self.busiest_first), area),
        }
    }

    fn title(&self, status: &Status, history: &History) -> Line<'_> {
        let mut line = Line::from(format!(" {}", self.name).bold());
        line.push_span(format!("  Penstock {}  ", status.version));
        line.push_span(match (&self.error, status.health) {
            (Some(error), _) => error.clone().red().bold(),
            (None, _) if !status.forwarding => "forwards nothing".red().bold(),
            (None, Health::Healthy) => "healthy".green(),
            (None, Health::Degraded) => format!("degraded, problems: {}", status.problems.len()).yellow(),
        });
        if history.seconds > 0 {
            line.push_span(format!("  a column is {} s", history.seconds).dim());
        }
        line
    }

    fn draw_peers(&mut self, frame: &mut Frame<'_>, area: Rect, answered: &Answered) {
        let peers = self.peers(answered);
        let traffic = traffic(answered.history.as_ref());
        // What the other columns leave.
        let spacing = FIXED.len() as u16 + 1;
        let name = if area.width > 100 { 2 * NAME } else { NAME };
        let chart = area.width.saturating_sub(name + FIXED.iter().sum::<u16>() + spacing);
        let rows = peers.iter().map(|peer| {
            let traffic = traffic.get(&peer.public_key);
            let rate = |rates: fn(&Traffic) -> &Vec<f32>| bits(traffic.map(|traffic| last(rates(traffic))));
            Row::new([
                Span::from(shortened(&label(peer), name.into())),
                path(peer),
                Span::from(milliseconds(peer.round_trip_ms)),
                Span::from(rate(|traffic| &traffic.received)),
                Span::from(rate(|traffic| &traffic.sent)),
                Span::from(traffic.map(|traffic| sparks(traffic, chart.into())).unwrap_or_default()),
            ])
        });
        let widths = [name].into_iter().chain(FIXED).chain([chart]).map(Constraint::Length);
        let titles = Row::new(["PEER", "PATH", "TRIP", "RECEIVED", "SENT", "BOTH"]);
        let table = Table::new(rows, widths)
            .header(titles.style(Style::new().bold()))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let selected = peers.iter().position(|peer| Some(peer.public_key) == self.selected);
        let place = selected.or((!peers.is_empty()).then_some(0));
        let mut state = TableState::new().with_offset(self.offset).with_selected(place);
        frame.render_stateful_widget(table, area, &mut state);
        self.offset = state.offset();
    }
}

/// How many rows each section gets in a terminal of this height. More important sections come first, what does not fit
/// is left out, and the peers get the rest.
fn sections(height: u16, problems: usize) -> BTreeMap<Section, u16> {
    use Section::*;
    let wanted = [
        (Title, 1),
        (Peers, 2),
        (Problems, problems.min(PROBLEMS) as u16),
        (Received, 1),
        (Sent, 1),
        (Peer, 3),
        (Keys, 1),
        (Dropped, 1),
        (Load, 1),
        (Reasons, 1),
        (Workers, 1),
        (Site, 1),
        (Peers, 4),
        (Received, 1),
        (Sent, 1),
    ];
    let mut sections = BTreeMap::new();
    let mut left = height;
    for (section, rows) in wanted {
        if rows > 0 && rows <= left {
            *sections.entry(section).or_default() += rows;
            left -= rows;
        }
    }
    if let Some(peers) = sections.get_mut(&Peers) {
        *peers += left;
    }
    sections
}

fn site(status: &Status) -> String {
    let Status { local_port, wan_mode, lan_mode, nat_type, .. } = status;
    let coordinator = match &status.coordinator {
        None => String::new(),
        Some(coordinator) if coordinator.connected => "  coordinator connected".to_owned(),
        Some(coordinator) => {
            let why = coordinator.error.as_deref().unwrap_or("not yet");
            format!("  coordinator not connected: {why}")
        }
    };
    format!(" port {local_port}  WAN {}  LAN {}  NAT {nat_type}{coordinator}", wan_mode.mode, lan_mode.mode)
}

/// A caption, a figure, and the points that lead up to it.
fn chart(frame: &mut Frame<'_>, area: Rect, caption: &str, figure: &str, points: &[f32], most: Option<f32>) {
    let [left, right] = Layout::horizontal([Constraint::Length(CAPTION), Constraint::Min(0)]).areas(area);
    frame.render_widget(format!(" {caption:<15}{figure:>13}"), left);
    // In thousandths, for the sake of small numbers.
    let thousandths = |point: &f32| (*point * 1e3) as u64;
    let bars: Vec<u64> = points.iter().rev().map(thousandths).collect();
    let most =
        most.as_ref().map_or_else(|| bars.iter().take(right.width.into()).copied().max().unwrap_or(0), thousandths);
    let chart = Sparkline::default().data(bars).max(most.max(1)).direction(RenderDirection::RightToLeft);
    frame.render_widget(chart.cyan(), right);
}

/// Why packets are dropped: what happens at the moment comes first.
fn reasons<'a>(counts: &BTreeMap<String, u64>, rates: &BTreeMap<String, f32>) -> Line<'a> {
    let rate = |reason: &str| rates.get(reason).copied().unwrap_or(0.0);
    let mut seen: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    seen.sort_by(|a, b| rate(b.0).total_cmp(&rate(a.0)).then(b.1.cmp(a.1)));
    let mut line = Line::from("  by reason: ");
    if seen.is_empty() {
        line.push_span("nothing was dropped");
    }
    for (reason, count) in seen {
        match rate(reason) {
            rate if rate > 0.0 => line.push_span(format!("{reason} {count} (+{rate:.0}/s)  ").yellow()),
            _ => line.push_span(format!("{reason} {count}  ")),
        }
    }
    line
}

fn problems(problems: &[Problem], rows: u16) -> Paragraph<'_> {
    let shown = if problems.len() > rows.into() { usize::from(rows).saturating_sub(1) } else { problems.len() };
    let mut lines: Vec<Line<'_>> = problems[..shown]
        .iter()
        .map(|problem| Line::from(format!(" ! {}: {}", problem.subject, problem.sentence).yellow()))
        .collect();
    if shown < problems.len() {
        lines.push(Line::from(format!(" ! {} more: penstock status", problems.len() - shown).yellow()));
    }
    Paragraph::new(lines)
}

fn path(peer: &PeerStatus) -> Span<'static> {
    match (peer.path, &peer.relay) {
        (PathKind::Direct, _) => "direct".green(),
        (PathKind::Relay, Some(relay)) => format!("relay {relay}").yellow(),
        (PathKind::Relay, None) => "relay".yellow(),
        (PathKind::None, _) => "none".red(),
    }
}

/// The selected peer: how it is reached and why, and where.
fn details(peer: &PeerStatus) -> Paragraph<'_> {
    let way = match peer.path {
        PathKind::Direct => "is reached directly",
        PathKind::Relay => "is relayed",
        PathKind::None => "is not reached",
    };
    let reason = peer.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let now = UnixTime::from(SystemTime::now()).0;
    let mut facts = vec![
        peer.endpoint.map_or_else(|| "its address is not known".to_owned(), |endpoint| format!("at {endpoint}")),
        peer.last_handshake
            .map_or_else(|| "no handshake yet".to_owned(), |at| format!("handshake {}", age(now.saturating_sub(at)))),
        peer.suite.clone(),
    ];
    facts.extend(peer.mtu.as_ref().map(|mtu| format!("MTU {}", mtu.inner)));
    if peer.path_changes > 0 {
        facts.push(format!("path changes: {}", peer.path_changes));
    }
    let allowed_ips: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    facts.push(allowed_ips.join(" "));
    let lines =
        [Line::from(format!(" {} {way}{reason}", label(peer)).bold()), Line::from(format!(" {}", facts.join(", ")))];
    Paragraph::new(Vec::from(lines)).wrap(Wrap { trim: false })
}

fn keys(busiest_first: bool) -> Line<'static> {
    let order = if busiest_first { "in order" } else { "busiest first" };
    Line::from(format!(" q end   t another time scale   b {order}   \u{2191}\u{2193} select a peer")).dim()
}

/// The traffic of the peers that have any.
fn traffic(history: Option<&History>) -> HashMap<PublicKey, &Traffic> {
    history.iter().flat_map(|history| &history.peers).map(|peer| (peer.public_key, &peer.traffic)).collect()
}

fn last(points: &[f32]) -> f32 {
    points.last().copied().unwrap_or(0.0)
}

/// The traffic in both directions in one row of this width, the latest on the right.
fn sparks(traffic: &Traffic, columns: usize) -> String {
    let latest = |points: &[f32]| points[points.len().saturating_sub(columns)..].to_vec();
    let both: Vec<f32> =
        latest(&traffic.received).iter().zip(latest(&traffic.sent)).map(|(received, sent)| received + sent).collect();
    let most = both.iter().copied().fold(1.0, f32::max);
    let symbols = [
        NINE_LEVELS.empty,
        NINE_LEVELS.one_eighth,
        NINE_LEVELS.one_quarter,
        NINE_LEVELS.three_eighths,
        NINE_LEVELS.half,
        NINE_LEVELS.five_eighths,
        NINE_LEVELS.three_quarters,
        NINE_LEVELS.seven_eighths,
        NINE_LEVELS.full,
    ];
    let level = |rate: &f32| (rate / most * 8.0).ceil() as usize;
    let row: String = both.iter().map(|rate| symbols[level(rate).min(8)]).collect();
    format!("{row:>columns$}")
}

fn percent(load: f32) -> String {
    format!("{:.0} %", load * 100.0)
}

/// A rate in bytes per second, shown in bits per second.
fn bits(rate: Option<f32>) -> String {
    const UNITS: [&str; 5] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    let Some(mut rate) = rate.map(|rate| rate * 8.0) else { return "-".to_owned() };
    let mut unit = 0;
    while rate >= 999.5 && unit + 1 < UNITS.len() {
        rate /= 1e3;
        unit += 1;
    }
    let digits = usize::from(unit > 0);
    format!("{rate:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests;

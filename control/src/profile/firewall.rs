//! `Firewall`: which flows may pass between the sites and the LAN.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use penstock_proto::coordination;
use penstock_proto::coordination::Service;
use serde::{Deserialize, Serialize};

use super::document::{Prefix, Source};
use super::position::FieldPath;
use super::rules::is_readable;
use super::{PEER_NAME_LIMIT, ProfileError};

/// The most rules: every new flow may be compared with all of them.
pub const RULE_LIMIT: usize = 512;
/// The most entries of each list in a rule.
pub const RULE_LIST_LIMIT: usize = 256;

/// Which flows may pass. Packets of an accepted flow pass in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// The verdict on flows that begin in the tunnel, unless a rule says otherwise.
    pub inward: Verdict,
    /// The same for flows that begin on the LAN.
    pub outward: Verdict,
    /// The first one that matches decides.
    pub rules: Vec<Rule>,
}

/// `Firewall` as written.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(missing_docs)] // docs/profile.md describes the fields.
pub struct FirewallDocument {
    pub r#in: Option<Verdict>,
    pub out: Option<Verdict>,
    pub rules: Option<Vec<Rule>>,
}

/// One of `Firewall.Rules`: all of its conditions must hold. A condition that is left out always holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Rule {
    /// Its name, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The verdict on the flow.
    pub verdict: Verdict,
    /// Where the flow begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Which sites are at the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<Vec<SiteSelector>>,
    /// The source of its first packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<Prefix>>,
    /// The destination of its first packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<Vec<Prefix>>,
    /// Protocols and destination ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<Service>>,
}

/// What happens to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    Accept,
    /// It is dropped without an answer.
    Drop,
}

/// Where a flow begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// In the tunnel.
    In,
    /// On the LAN, or in the gateway itself.
    Out,
}

/// Some sites: `tag:NAME`, or the name of one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum SiteSelector {
    /// Those with this tag.
    Tag(coordination::Name),
    /// The one with this name.
    Site(String),
}

impl SiteSelector {
    /// Whether it includes a site with this name and these tags.
    #[must_use]
    pub fn selects(&self, name: &str, tags: &[coordination::Name]) -> bool {
        match self {
            Self::Tag(tag) => tags.contains(tag),
            Self::Site(site) => site == name,
        }
    }
}

impl FromStr for SiteSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(tag) = text.strip_prefix("tag:") {
            return tag.parse().map(Self::Tag).map_err(|error| format!("{text:?} is not a tag: {error}"));
        }
        if !is_readable(text) {
            return Err(format!("{text:?} is neither tag:NAME nor the name of a site"));
        }
        Ok(Self::Site(text.to_owned()))
    }
}

impl TryFrom<String> for SiteSelector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<SiteSelector> for String {
    fn from(selector: SiteSelector) -> Self {
        selector.to_string()
    }
}

impl fmt::Display for SiteSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "tag:{tag}"),
            Self::Site(name) => f.write_str(name),
        }
    }
}

impl Rule {
    /// The prefixes of one kind, as plain values.
    pub(crate) fn prefixes(list: Option<&Vec<Prefix>>) -> Option<impl Iterator<Item = IpNet> + '_> {
        list.map(|list| list.iter().map(|prefix| prefix.0))
    }
}

impl Firewall {
    /// The firewall in this document, which has been checked.
    pub(super) fn of(document: &FirewallDocument) -> Self {
        Self {
            inward: document.r#in.unwrap_or(Verdict::Drop),
            outward: document.out.unwrap_or(Verdict::Accept),
            rules: document.rules.clone().unwrap_or_default(),
        }
    }

    /// The document for this firewall.
    pub(super) fn document(&self) -> FirewallDocument {
        FirewallDocument { r#in: Some(self.inward), out: Some(self.outward), rules: Some(self.rules.clone()) }
    }
}

/// Checks what the types cannot.
pub(super) fn check(source: &Source<'_>) -> Result<(), ProfileError> {
    let Some(rules) = source.document.firewall.as_ref().and_then(|firewall| firewall.rules.as_ref()) else {
        return Ok(());
    };
    let field = FieldPath::of(&["Firewall", "Rules"]);
    if rules.len() > RULE_LIMIT {
        let sentence = format!("{} rules are more than the limit of {RULE_LIMIT}", rules.len());
        return Err(source.error(field, sentence));
    }
    let mut names = HashSet::new();
    for (at, rule) in rules.iter().enumerate() {
        let field = |key| field.clone().index(at).key(key);
        if let Some(name) = &rule.name {
            if !is_readable(name) {
                let sentence = format!("{name:?} is not a name of 1 to {PEER_NAME_LIMIT} printable characters");
                return Err(source.error(field("Name"), sentence));
            }
            if !names.insert(name) {
                return Err(source.error(field("Name"), format_args!("there are two rules named {name}")));
            }
        }
        let lists = [
            ("Sites", rule.sites.as_ref().map(Vec::len)),
            ("Sources", rule.sources.as_ref().map(Vec::len)),
            ("Destinations", rule.destinations.as_ref().map(Vec::len)),
            ("Services", rule.services.as_ref().map(Vec::len)),
        ];
        for (key, len) in lists {
            match len {
                Some(0) => return Err(source.error(field(key), "an empty list selects nothing; leave it out for all")),
                Some(len) if len > RULE_LIST_LIMIT => {
                    let sentence = format!("{len} entries are more than the limit of {RULE_LIST_LIMIT}");
                    return Err(source.error(field(key), sentence));
                }
                _ => {}
            }
        }
        check_sites(source, rule, &field("Sites"))?;
    }
    Ok(())
}

/// Without a coordinator all sites are in the profile, and any other name is a mistake that would leave a rule without
/// effect.
fn check_sites(source: &Source<'_>, rule: &Rule, field: &FieldPath) -> Result<(), ProfileError> {
    let document = &source.document;
    if document.coordinator.is_some() {
        return Ok(());
    }
    let peers = document.peers.as_deref().unwrap_or_default();
    for (at, selector) in rule.sites.iter().flatten().enumerate() {
        let tags = |peer: &super::document::PeerDocument| peer.tags.clone().unwrap_or_default();
        if !peers.iter().any(|peer| selector.selects(&peer.name, &tags(peer))) {
            let what = if matches!(selector, SiteSelector::Tag(_)) { "with the tag" } else { "named" };
            let name = selector.to_string();
            let name = name.trim_start_matches("tag:");
            return Err(source.error(field.clone().index(at), format_args!("there is no peer {what} {name}")));
        }
    }
    Ok(())
}

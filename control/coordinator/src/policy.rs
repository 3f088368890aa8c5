//! Who may talk to whom, and which subnets each may offer.
//!
//! ```json
//! {
//!   "Links":   [["tag:branch", "tag:hub"], ["amsterdam", "berlin"]],
//!   "Subnets": { "tag:branch": ["10.128.0.0/9"] }
//! }
//! ```
//! A tunnel needs both ends, so a link has no direction. Without a policy all approved sites may talk to
//! each other and offer what they like.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use penstock_proto::coordination::{Name, NameError};
use serde::{Deserialize, Serialize};

use crate::site::{Site, SiteState};

/// Longest policy, in bytes of JSON.
/// 100,000 links between sites of middling names are 4 MB.
pub const LIMIT: usize = 8 << 20;

/// Who may talk to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Policy {
    /// Pairs that may talk.
    pub links: Vec<(Selector, Selector)>,
    /// What the sites of a selector may offer: subnets within these. A site that none selects offers
    /// what it likes; one that several select, what any of them allows.
    #[serde(default)]
    pub subnets: BTreeMap<Selector, Vec<IpNet>>,
}

/// Some sites: `*`, `tag:NAME` or the name of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Selector {
    /// All.
    All,
    /// Those with this tag.
    Tag(Name),
    /// That of this name.
    Site(Name),
}

impl Default for Policy {
    fn default() -> Self {
        Self { links: vec![(Selector::All, Selector::All)], subnets: BTreeMap::new() }
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// One sentence with line, column and field.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LIMIT {
            return Err(format!("a policy of {} bytes is longer than {LIMIT}", text.len()));
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let policy: Self = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| format!("field {}: {}", error.path(), error.inner()))?;
        deserializer.end().map_err(|error| error.to_string())?;
        Ok(policy)
    }

    /// The policy as JSON for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a policy has no maps with other keys than text")
    }

    /// Whether these two may talk: both are approved, and a link joins them.
    #[must_use]
    pub fn joins(&self, one: &Site, other: &Site) -> bool {
        let approved = |site: &Site| site.state == SiteState::Approved;
        approved(one)
            && approved(other)
            && one.key != other.key
            && self
                .links
                .iter()
                .any(|(a, b)| (a.selects(one) && b.selects(other)) || (a.selects(other) && b.selects(one)))
    }

    /// Those of the site's subnets in force that the others are told of.
    #[must_use]
    pub fn announced(&self, site: &Site) -> Vec<IpNet> {
        let mut rules = self.subnets.iter().filter(|(selector, _)| selector.selects(site)).peekable();
        if rules.peek().is_none() {
            return site.in_force.clone();
        }
        let within: Vec<&IpNet> = rules.flat_map(|(_, within)| within).collect();
        let allowed = |subnet: &&IpNet| within.iter().any(|within| within.contains(*subnet));
        site.in_force.iter().filter(allowed).copied().collect()
    }
}

impl Selector {
    fn selects(&self, site: &Site) -> bool {
        match self {
            Self::All => true,
            Self::Tag(tag) => site.tags.contains(tag),
            Self::Site(name) => site.name == *name,
        }
    }
}

impl FromStr for Selector {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "*" {
            return Ok(Self::All);
        }
        match text.strip_prefix("tag:") {
            Some(tag) => tag.parse().map(Self::Tag),
            None => text.parse().map(Self::Site),
        }
    }
}

impl TryFrom<String> for Selector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
            .map_err(|error| format!("{text:?} is neither \"*\" nor \"tag:NAME\" nor the name of a site: {error}"))
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
            Self::Site(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_proto::trust::Subnets;
    use std::net::Ipv4Addr;

    fn site(number: u8, tags: &[&str]) -> Site {
        let subnets: Vec<IpNet> =
            vec![format!("10.{number}.0.0/16").parse().unwrap(), "192.168.0.0/24".parse().unwrap()];
        Site {
            key: [number; 32].into(),
            name: format!("site-{number}").parse().unwrap(),
            virtual_address: Ipv4Addr::new(100, 64, 0, number),
            in_force: subnets.clone(),
            granted: Subnets::new(subnets.clone()).ok(),
            subnets,
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            state: SiteState::Approved,
            created: 0,
            last_seen: None,
            ends: None,
            bound: false,
        }
    }

    #[test]
    fn by_default_all_approved_sites_may_talk() {
        let policy = Policy::default();
        let (one, mut other) = (site(1, &[]), site(2, &[]));
        assert!(policy.joins(&one, &other));
        assert!(!policy.joins(&one, &one));
        for state in [SiteState::Pending, SiteState::Revoked] {
            other.state = state;
            assert!(!policy.joins(&one, &other) && !policy.joins(&other, &one), "{state:?}");
        }
    }

    #[test]
    fn links_join_both_ways_and_nothing_else() {
        let policy = Policy::parse(r#"{"Links": [["tag:branch", "tag:hub"], ["site-3", "site-4"]]}"#).unwrap();
        let sites = [site(1, &["branch"]), site(2, &["branch"]), site(3, &["hub"]), site(4, &[])];
        let joined = |a: usize, b: usize| policy.joins(&sites[a], &sites[b]);
        for (a, b, expected) in [(0, 2, true), (1, 2, true), (2, 3, true), (0, 1, false), (0, 3, false), (1, 3, false)]
        {
            assert_eq!((joined(a, b), joined(b, a)), (expected, expected), "{a} {b}");
        }
        assert!(!Policy::parse(r#"{"Links": []}"#).unwrap().joins(&sites[0], &sites[2]));
    }

    #[test]
    fn subnets_beyond_the_allowed_are_not_announced() {
        let text = r#"{"Links": [], "Subnets": {"tag:branch": ["10.1.0.0/16"], "site-1": ["192.168.0.0/16"]}}"#;
        let policy = Policy::parse(text).unwrap();
        assert_eq!(policy.announced(&site(1, &["branch"])).len(), 2);
        assert_eq!(policy.announced(&site(2, &["branch"])), []);
        assert_eq!(policy.announced(&site(3, &[])).len(), 2);
        let wider = Policy::parse(r#"{"Links": [], "Subnets": {"*": ["10.1.128.0/17"]}}"#).unwrap();
        assert_eq!(wider.announced(&site(1, &[])), [], "a part that is allowed is not the whole");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (r#"{"Links": [["*", "tag:"]]}"#, "Links[0]"),
            (r#"{"Links": [], "Lynx": 1}"#, "Lynx"),
            (r#"{"Links": [["a"]]}"#, "Links[0]"),
            (r#"{"Subnets": {}}"#, "Links"),
            (r#"{"Links": []} {}"#, "trailing"),
            (r#"{"Links": [], "Subnets": {"*": ["10.0.0.0/33"]}}"#, "Subnets"),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(Policy::parse(&" ".repeat(LIMIT + 1)).is_err());
        let policy = Policy::parse(r#"{"Links": [["*", "tag:hub"]], "Subnets": {"a": ["10.0.0.0/8"]}}"#).unwrap();
        assert_eq!(Policy::parse(&policy.to_text()), Ok(policy));
    }
}

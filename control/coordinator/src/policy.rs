//! Who may talk to whom, and which subnets each may offer.
//!
//! ```json
//! {
//!   "Links":   [
//!     ["amsterdam", "berlin"],
//!     { "From": "tag:branch", "To": "tag:hub", "Allow": ["tcp/443", "udp/53", "icmp"] }
//!   ],
//!   "Subnets": { "tag:branch": ["10.128.0.0/9"] }
//! }
//! ```
//! A tunnel needs both ends, so a pair has no direction: each site may reach everything at the other. A link with
//! `Allow` has a tunnel too, but only its first end may initiate anything, and only what is listed; the receiving
//! gateway enforces it. Where several links join two sites, whatever any of them allows is allowed. Without a policy,
//! all approved sites may talk to each other and offer what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use penstock_proto::coordination::limits::SERVICES_LIMIT;
use penstock_proto::coordination::{Name, NameError, Service};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::site::{Site, SiteState};

/// Longest policy, in bytes of JSON.
/// 100,000 links between sites of middling names are 4 MB.
pub const LIMIT: usize = 8 << 20;

/// Who may talk to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Policy {
    /// Who may talk.
    pub links: Vec<Link>,
    /// What the sites of a selector may offer: subnets inside these. A site that no selector selects may offer
    /// anything; one that several select, whatever any of them allows.
    #[serde(default)]
    pub subnets: BTreeMap<Selector, Vec<IpNet>>,
}

/// Sites that may talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Each may reach everything at the other. Written as a list of two selectors.
    Pair(Selector, Selector),
    /// One may initiate connections to some services of the other. Written as an object.
    Directed(Directed),
}

/// A link on which only one end may initiate anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Directed {
    /// The sites that may initiate.
    pub from: Selector,
    /// The sites that they may initiate to.
    pub to: Selector,
    /// What they may initiate there.
    pub allow: Vec<Service>,
}

/// What one site may initiate at another. Two of these add up to whatever either allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It may initiate everything.
    All,
    /// It may initiate connections to these services and nothing else.
    Only(BTreeSet<Service>),
}

/// Some sites: `*`, `tag:NAME` or the name of a site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Selector {
    /// All sites.
    All,
    /// Those with this tag.
    Tag(Name),
    /// The one with this name.
    Site(Name),
}

impl Default for Policy {
    fn default() -> Self {
        Self { links: vec![Link::Pair(Selector::All, Selector::All)], subnets: BTreeMap::new() }
    }
}

impl Policy {
    /// Parses a policy.
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
        // A map carries everything that several links allow.
        let services: BTreeSet<&Service> = policy.links.iter().flat_map(Link::allow).collect();
        if services.len() > SERVICES_LIMIT {
            return Err(format!("field Links: {} different services are more than {SERVICES_LIMIT}", services.len()));
        }
        Ok(policy)
    }

    /// The policy's fingerprint, in hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.to_text().as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
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
            && self.links.iter().any(|link| {
                let (a, b) = link.ends();
                (a.selects(one) && b.selects(other)) || (a.selects(other) && b.selects(one))
            })
    }

    /// What one site may initiate at another, if they may talk.
    #[must_use]
    pub fn reach(&self, from: &Site, to: &Site) -> Reach {
        let mut reach = Reach::NOTHING;
        for link in &self.links {
            let (a, b) = link.ends();
            match link {
                Link::Pair(..) if (a.selects(from) && b.selects(to)) || (a.selects(to) && b.selects(from)) => {
                    return Reach::All;
                }
                Link::Directed(link) if a.selects(from) && b.selects(to) => {
                    reach.add(&Reach::Only(link.allow.iter().cloned().collect()));
                }
                _ => {}
            }
        }
        reach
    }

    /// Those of the site's subnets in force that the others are told about.
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

impl Link {
    /// The selectors that it joins.
    #[must_use]
    pub fn ends(&self) -> (&Selector, &Selector) {
        match self {
            Self::Pair(one, other) => (one, other),
            Self::Directed(Directed { from, to, .. }) => (from, to),
        }
    }

    fn allow(&self) -> &[Service] {
        if let Self::Directed(directed) = self { &directed.allow } else { &[] }
    }
}

impl Reach {
    /// Only answers, nothing else.
    pub const NOTHING: Self = Self::Only(BTreeSet::new());

    /// Adds what the other allows.
    pub fn add(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Only(services), Self::Only(more)) => services.extend(more.iter().cloned()),
            _ => *self = Self::All,
        }
    }

    /// In the form that a map has ([`Peer::allow`](penstock_proto::coordination::Peer::allow)).
    #[must_use]
    pub fn to_allow(&self) -> Option<Vec<Service>> {
        match self {
            Self::All => None,
            Self::Only(services) => Some(services.iter().cloned().collect()),
        }
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Pair(one, other) => (one, other).serialize(serializer),
            Self::Directed(directed) => directed.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = Link;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of two selectors, or an object with From, To and Allow")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Link, A::Error> {
                let (one, other) = Deserialize::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(Link::Pair(one, other))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, object: A) -> Result<Link, A::Error> {
                Directed::deserialize(MapAccessDeserializer::new(object)).map(Link::Directed)
            }
        }

        deserializer.deserialize_any(Either)
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
            channel_binding: Default::default(),
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
    fn a_link_with_services_lets_one_end_begin_them() {
        let text = r#"{"Links": [
            {"From": "tag:branch", "To": "tag:hub", "Allow": ["udp/53", "tcp/443", "icmp"]},
            {"From": "site-1", "To": "tag:hub", "Allow": ["tcp/22", "icmp"]},
            {"From": "tag:hub", "To": "site-2", "Allow": []},
            ["site-1", "site-4"]
        ]}"#;
        let policy = Policy::parse(text).unwrap();
        let sites = [site(1, &["branch"]), site(2, &["branch"]), site(3, &["hub"]), site(4, &["branch", "hub"])];
        let reach = |from: usize, to: usize| {
            let allow = policy.reach(&sites[from], &sites[to]).to_allow();
            allow.map(|allow| allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        for (from, to, expected) in [
            (0, 2, Some("icmp tcp/22 tcp/443 udp/53")),
            (1, 2, Some("icmp tcp/443 udp/53")),
            (2, 0, Some("")),
            (2, 1, Some("")),
            (0, 3, None),
            (3, 0, None),
            (1, 3, Some("icmp tcp/443 udp/53")),
            (3, 2, Some("icmp tcp/443 udp/53")),
        ] {
            assert!(policy.joins(&sites[from], &sites[to]) && policy.joins(&sites[to], &sites[from]));
            assert_eq!(reach(from, to), expected.map(str::to_owned), "{from} {to}");
        }
        assert!(!policy.joins(&sites[0], &sites[1]));
        assert_eq!(Policy::default().reach(&sites[0], &sites[1]), Reach::All);
        assert_eq!(Policy::parse(&policy.to_text()), Ok(policy));
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
            (r#"{"Links": [["a", "b", "c"]]}"#, "Links"),
            (r#"{"Links": ["a"]}"#, "Links[0]"),
            (r#"{"Links": [{"From": "a", "To": "b"}]}"#, "Allow"),
            (r#"{"Links": [{"From": "a", "To": "b", "Allow": ["http"]}]}"#, "Links[0].Allow[0]"),
            (r#"{"Links": [{"From": "a", "To": "b", "Allow": [], "Ports": 1}]}"#, "Ports"),
            (r#"{"Subnets": {}}"#, "Links"),
            (r#"{"Links": []} {}"#, "trailing"),
            (r#"{"Links": [], "Subnets": {"*": ["10.0.0.0/33"]}}"#, "Subnets"),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(Policy::parse(&" ".repeat(LIMIT + 1)).is_err());
        let with = |count: usize| {
            let services: Vec<String> = (0..count).map(|port| format!("\"tcp/{port}\"")).collect();
            format!(r#"{{"Links": [{{"From": "a", "To": "b", "Allow": [{}]}}]}}"#, services.join(","))
        };
        assert!(Policy::parse(&with(SERVICES_LIMIT)).is_ok());
        assert!(Policy::parse(&with(SERVICES_LIMIT + 1)).unwrap_err().contains("257"));
        let policy = Policy::parse(r#"{"Links": [["*", "tag:hub"]], "Subnets": {"a": ["10.0.0.0/8"]}}"#).unwrap();
        assert_eq!(Policy::parse(&policy.to_text()), Ok(policy));
    }
}

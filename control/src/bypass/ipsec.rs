//! IPsec policies, as `ip xfrm policy` prints them: the kernel encrypts the packets that they select, drops them, or
//! demands that they came encrypted.

use super::iptables::{ports, prefix};
use super::{Action, Base, Chain, Condition, Hook, Rule, What, protocols};

/// A policy that is being read.
#[derive(Default)]
struct Policy {
    /// What it selects, for people.
    selector: String,
    conditions: Vec<Condition>,
    direction: Option<Hook>,
    priority: u32,
    /// It encrypts, or blocks.
    acts: bool,
    /// Only for packets of a device or socket of IPsec's own.
    apart: bool,
}

/// Parses it, and what `ip xfrm policy getdefault` prints. Of the policies for a direction, the kernel takes the one with
/// the smallest priority that selects a packet; where none does, it accepts or blocks by default.
pub(super) fn parse(text: &str, defaults: &str) -> Vec<Chain> {
    let mut policies = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        // A policy's first line is its selector, the others are indented.
        if !line.starts_with(char::is_whitespace) {
            policies.push(Policy { selector: line.trim().to_owned(), conditions: selector(line), ..Policy::default() });
        } else if let Some(policy) = policies.last_mut() {
            read_more(policy, line);
        }
    }
    policies.retain(|policy| !policy.apart);
    policies.sort_by_key(|policy| policy.priority);
    // "Default policies:", then a line such as " in:  accept" for each direction.
    let blocks = |name: &str| {
        let default = |line: &str| line.trim().strip_prefix(name)?.strip_prefix(':').map(|word| word.trim() == "block");
        defaults.lines().find_map(default).unwrap_or(false)
    };
    let chain = |(hook, name): (Hook, &str)| Chain {
        table: "IPsec".to_owned(),
        name: name.to_owned(),
        families: [true, true],
        base: Some(Base { hook, device: None, drops: blocks(name) }),
        rules: policies.iter().filter(|policy| policy.direction == Some(hook)).map(rule).collect(),
    };
    let directions = [(Hook::Input, "in"), (Hook::Forward, "fwd"), (Hook::Postrouting, "out")];
    directions
        .into_iter()
        .map(chain)
        .filter(|chain| !chain.rules.is_empty() || chain.base.as_ref().is_some_and(|base| base.drops))
        .collect()
}

fn rule(policy: &Policy) -> Rule {
    let action = if policy.acts { Action::Change } else { Action::Accept };
    Rule { name: format!("policy {}", policy.selector), conditions: policy.conditions.clone(), action }
}

/// `src PREFIX dst PREFIX [proto P] [sport N] [dport N] [dev NAME] …`
fn selector(line: &str) -> Vec<Condition> {
    let mut words = line.split_ascii_whitespace();
    let mut conditions = Vec::new();
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        let what = match word {
            "src" => prefix(value).map_or(What::Unknown, What::Source),
            "dst" => prefix(value).map_or(What::Unknown, What::Destination),
            "proto" => protocols::number(value).map_or(What::Unknown, |number| What::Protocol(vec![number])),
            "sport" => ports(value).map_or(What::Unknown, What::SourcePort),
            "dport" => ports(value).map_or(What::Unknown, What::DestinationPort),
            // By a device, a type of ICMP, a security label.
            _ => What::Unknown,
        };
        conditions.push(Condition { what, not: false });
    }
    conditions
}

/// `dir in|out|fwd [action block] priority N …`, `mark N/N`, `tmpl …`, `if_id N`; of a socket's policy `socket in|out …`.
fn read_more(policy: &mut Policy, line: &str) {
    let mut words = line.split_ascii_whitespace();
    match words.next() {
        Some("dir") => {
            policy.direction = match words.next() {
                Some("in") => Some(Hook::Input),
                Some("fwd") => Some(Hook::Forward),
                Some("out") => Some(Hook::Postrouting),
                _ => None,
            };
            while let Some(word) = words.next() {
                match word {
                    "action" => policy.acts |= words.next() == Some("block"),
                    "priority" => policy.priority = words.next().and_then(|n| n.parse().ok()).unwrap_or_default(),
                    _ => {}
                }
            }
        }
        Some("tmpl") => policy.acts = true,
        Some("mark") => policy.conditions.push(Condition { what: What::Unknown, not: false }),
        Some("if_id" | "socket") => policy.apart = true,
        _ => {}
    }
}

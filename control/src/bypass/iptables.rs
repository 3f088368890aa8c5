//! What `iptables-save` and `ip6tables-save` print.

use std::net::IpAddr;

use ipnet::IpNet;

use super::nft::range;
use super::{Action, Base, Chain, Condition, Hook, Rule, Target, What, protocols};

/// Parses it. `program` says where it came from, for people.
pub(super) fn parse(text: &str, program: &str, ipv6: bool) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = format!("{name} of {program}");
        } else if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_ascii_whitespace();
            let (Some(name), policy) = (words.next(), words.next()) else { continue };
            let base = hook(name).map(|hook| Base { hook, device: None, drops: policy == Some("DROP") });
            let families = [!ipv6, ipv6];
            chains.push(Chain { table: table.clone(), name: name.to_owned(), families, base, rules: Vec::new() });
        } else if let Some(rest) = line.strip_prefix("-A ") {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let is_chain = |target: &str| chains.iter().any(|chain| chain.table == table && chain.name == target);
            let (conditions, action) = read_rule(&words(rest), ipv6, is_chain);
            if let Some(chain) = chains.iter_mut().rev().find(|chain| chain.table == table && chain.name == name) {
                chain.rules.push(Rule { name: format!("firewall rule {line}"), conditions, action });
            }
        }
    }
    chains
}

fn hook(chain: &str) -> Option<Hook> {
    Some(match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    })
}

/// The words of a line; quoted ones may contain spaces.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            _ if std::mem::take(&mut escaped) => word.push(c),
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => all.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    all.push(word);
    all.retain(|word| !word.is_empty());
    all
}

fn read_rule(words: &[String], ipv6: bool, is_chain: impl Fn(&str) -> bool) -> (Vec<Condition>, Action) {
    let mut conditions = Vec::new();
    // A rule without a target counts packets.
    let mut action = Action::Change;
    let mut not = false;
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        if word == "!" {
            not = true;
            continue;
        }
        let mut value = || words.next().unwrap_or_default();
        let what = match word {
            "-i" => What::Input(interface(value())),
            "-o" => What::Output(interface(value())),
            "-s" => prefix(value()).map_or(What::Unknown, What::Source),
            "-d" => prefix(value()).map_or(What::Unknown, What::Destination),
            "-p" => protocols::number(value()).map_or(What::Unknown, |number| What::Protocol(vec![number])),
            "--sport" => ports(value()).map_or(What::Unknown, What::SourcePort),
            "--dport" => ports(value()).map_or(What::Unknown, What::DestinationPort),
            "--ctstate" | "--state" => What::Connection(value().split(',').map(str::to_ascii_lowercase).collect()),
            "--dst-type" => match value() {
                "LOCAL" => What::Local,
                _ => What::Unknown,
            },
            // The name of the match is followed by its conditions.
            "-m" | "--comment" => {
                value();
                continue;
            }
            "-j" | "-g" => {
                let target = value();
                action = match target {
                    "ACCEPT" => Action::Accept,
                    "RETURN" => Action::Return,
                    "DROP" | "REJECT" => Action::Drop,
                    "NFQUEUE" => Action::Queue,
                    // With options it may choose another port.
                    "MASQUERADE" if words.peek().is_none() => Action::Masquerade,
                    "DNAT" | "NETMAP" => Action::Translate(destination(words.by_ref())),
                    "REDIRECT" => {
                        Action::Translate(Target { addresses: Some(Vec::new()), ..destination(words.by_ref()) })
                    }
                    _ if !is_chain(target) => Action::Change,
                    _ if word == "-j" => Action::Jump(target.to_owned()),
                    _ => Action::Goto(target.to_owned()),
                };
                // What follows are the target's own options.
                break;
            }
            _ => {
                while words.peek().is_some_and(|next| !next.starts_with('-') && *next != "!") {
                    words.next();
                }
                What::Unknown
            }
        };
        conditions.push(Condition { what, not: std::mem::take(&mut not) });
    }
    conditions.push(Condition { what: What::Ipv6(ipv6), not: false });
    (conditions, action)
}

/// Where a rule sends packets, from the options of its target.
fn destination<'a>(options: impl Iterator<Item = &'a str>) -> Target {
    let mut target = Target { addresses: None, ports: None };
    let mut option = "";
    for word in options {
        match option {
            "--to" => target.addresses = prefix(word),
            "--to-ports" => target.ports = ports(&word.replace('-', ":")),
            "--to-destination" => {
                let (address, port) = match word.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                    Some((address, rest)) => (address, rest.strip_prefix(':')),
                    None if word.contains('.') => word.split_once(':').map_or((word, None), |(a, p)| (a, Some(p))),
                    None => (word, None),
                };
                let (first, last) = address.split_once('-').unwrap_or((address, address));
                target.addresses = first.parse().ok().zip(last.parse().ok()).and_then(|(a, b)| range(a, b));
                target.ports = port.and_then(|port| ports(&port.replace('-', ":")));
            }
            _ => {}
        }
        option = word;
    }
    target
}

fn interface(name: &str) -> Vec<String> {
    vec![match name.strip_suffix('+') {
        Some(beginning) => format!("{beginning}*"),
        None => name.to_owned(),
    }]
}

pub(super) fn prefix(text: &str) -> Option<Vec<IpNet>> {
    let host = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(host).map(|prefix| vec![prefix])
}

pub(super) fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(vec![(first.parse().ok()?, last.parse().ok()?)])
}

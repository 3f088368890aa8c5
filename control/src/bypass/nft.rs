//! Parses the output of `nft --json list ruleset` (libnftables-json(5)).

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::named::{Named, Sets};
use super::{Action, Base, Chain, Condition, Hook, Rule, Target, What, protocols};

/// Tables that are the gateways' own.
const OWN: &str = crate::netlink::FILTER_PREFIX;
/// Tables that today's iptables command keeps in nftables.
pub(super) const OF_IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// What nftables holds.
#[derive(Debug, Default)]
pub(super) struct Nft {
    pub chains: Vec<Chain>,
    /// Whether there are rules of iptables, for IPv4 and IPv6, which only its own command can list.
    pub of_iptables: [bool; 2],
    /// Whether elements of named sets are part of the conditions.
    pub looks_into_sets: bool,
}

/// Parses it; `None` if it is something else. `list` prints a named set with its elements, in the same format, if it has
/// not too many of them.
pub(super) fn parse(text: &[u8], list: impl FnMut(&Named<'_>) -> Option<Vec<u8>>) -> Option<Nft> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let objects = value.get("nftables")?.as_array()?;
    let mut nft = Nft::default();
    let mut sets = Sets::new(objects, list);
    for object in objects {
        if let Some(chain) = object.get("chain") {
            nft.chains.extend(read_chain(chain));
        } else if let Some(rule) = object.get("rule") {
            read_rule(rule, &mut sets, &mut nft);
        }
    }
    nft.looks_into_sets = sets.looked_into();
    Some(nft)
}

/// The names of family and table, if packets of ours can pass through it.
fn table(object: &Value) -> Option<(&str, &str)> {
    let (family, name) = (object.get("family")?.as_str()?, object.get("table")?.as_str()?);
    (!name.starts_with(OWN) && matches!(family, "ip" | "ip6" | "inet" | "netdev")).then_some((family, name))
}

fn read_chain(object: &Value) -> Option<Chain> {
    let (family, table) = table(object)?;
    Some(Chain {
        table: format!("{family} {table}"),
        name: object.get("name")?.as_str()?.to_owned(),
        families: [family != "ip6", family != "ip"],
        base: base(object),
        rules: Vec::new(),
    })
}

fn base(object: &Value) -> Option<Base> {
    let hook = match object.get("hook")?.as_str()? {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        "ingress" => Hook::Ingress,
        "egress" => Hook::Egress,
        _ => return None,
    };
    // Older versions do not name the device.
    let device = object.get("dev").and_then(Value::as_str).map(str::to_owned);
    Some(Base { hook, device, drops: object.get("policy").and_then(Value::as_str) == Some("drop") })
}

fn read_rule<F: FnMut(&Named<'_>) -> Option<Vec<u8>>>(object: &Value, sets: &mut Sets<F>, nft: &mut Nft) {
    let Some((family, table)) = table(object) else { return };
    let Some(expressions) = object.get("expr").and_then(Value::as_array) else { return };
    if expressions.iter().any(|e| e.get("xt").is_some()) && OF_IPTABLES.contains(&table) {
        nft.of_iptables[usize::from(family == "ip6")] = true;
    }
    let name = object.get("chain").and_then(Value::as_str).unwrap_or_default();
    let handle = object.get("handle").and_then(Value::as_u64).unwrap_or_default();
    let title = format!("{family} {table}");
    let Some(chain) = nft.chains.iter_mut().rev().find(|c| c.table == title && c.name == name) else { return };
    let expressions: Vec<Value> = expressions.iter().map(|e| sets.write_out(family, table, e)).collect();
    chain.rules.extend(rules(&format!("firewall rule handle {handle} of chain {name}"), &expressions));
}

/// A verdict map stands for as many rules as it has verdicts, and so does each statement that changes something on the
/// way to a verdict; anything else is one rule.
fn rules(name: &str, expressions: &[Value]) -> Vec<Rule> {
    let mut all = Vec::new();
    let mut conditions = Vec::new();
    let mut action = Action::Continue;
    let mut counts = false;
    let rule =
        |conditions: &[Condition], action| Rule { name: name.to_owned(), conditions: conditions.to_vec(), action };
    for expression in expressions {
        let Some((statement, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
            conditions.push(Condition { what: What::Unknown, not: false });
            continue;
        };
        match statement.as_str() {
            "match" => read_match(value, &mut conditions),
            "accept" => action = Action::Accept,
            "drop" | "reject" => action = Action::Drop,
            "queue" => action = Action::Queue,
            "return" => action = Action::Return,
            "continue" => action = Action::Continue,
            "jump" => action = Action::Jump(target(value)),
            "goto" => action = Action::Goto(target(value)),
            // Matches of iptables and limits, which hold for some packets.
            "limit" => conditions.push(Condition { what: What::Unknown, not: false }),
            "xt" if value.get("type").and_then(Value::as_str) == Some("match") => {
                conditions.push(Condition { what: What::Unknown, not: false });
            }
            // An anonymous counter is in many rules; a named one is there for somebody to read.
            "counter" if value.is_object() || value.is_null() => counts = true,
            // A flowtable speeds up forwarding, and does nothing else.
            "flow" => {}
            "dnat" => all.push(rule(&conditions, Action::Translate(destination(value)))),
            // With options it may choose another port.
            "masquerade" if value.is_null() => all.push(rule(&conditions, Action::Masquerade)),
            "redirect" => {
                let here = Target { addresses: Some(Vec::new()), ..destination(value) };
                all.push(rule(&conditions, Action::Translate(here)));
            }
            "vmap" => {
                all.extend(verdicts(name, value, &conditions));
                return all;
            }
            _ => all.push(rule(&conditions, Action::Change)),
        }
    }
    if counts && action == Action::Continue {
        action = Action::Change;
    }
    all.push(rule(&conditions, action));
    all
}

/// Where a rule sends packets.
fn destination(value: &Value) -> Target {
    Target { addresses: value.get("addr").and_then(prefixes), ports: value.get("port").and_then(ports) }
}

fn target(value: &Value) -> String {
    value.get("target").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The rules that a verdict map stands for.
fn verdicts(name: &str, value: &Value, conditions: &[Condition]) -> Vec<Rule> {
    let unknown = || vec![Rule { name: name.to_owned(), conditions: conditions.to_vec(), action: Action::Change }];
    let set = value.get("data").and_then(|data| data.get("set")).and_then(Value::as_array);
    let (Some(key), Some(set)) = (value.get("key"), set) else { return unknown() };
    let mut rules = Vec::new();
    for element in set {
        let Some([element, verdict]) = element.as_array().map(Vec::as_slice) else { return unknown() };
        let mut conditions = conditions.to_vec();
        match element.as_str() {
            // For packets that have no element of their own.
            Some("*") => conditions.push(Condition { what: What::Unknown, not: false }),
            _ => conditions.extend(condition(key, element, false)),
        }
        rules.extend(self::rules(name, std::slice::from_ref(verdict)).into_iter().map(|mut rule| {
            rule.conditions.splice(0..0, conditions.clone());
            rule
        }));
    }
    rules
}

fn read_match(value: &Value, conditions: &mut Vec<Condition>) {
    let not = value.get("op").and_then(Value::as_str) == Some("!=");
    let plain = matches!(value.get("op").and_then(Value::as_str), Some("==" | "!=" | "in"));
    match (value.get("left"), value.get("right")) {
        (Some(left), Some(right)) if plain => conditions.extend(condition(left, right, not)),
        _ => conditions.push(Condition { what: What::Unknown, not: false }),
    }
}

/// The conditions in a comparison of a property with a value or set.
fn condition(left: &Value, right: &Value, not: bool) -> Vec<Condition> {
    let (depends, what) = property(left, right);
    // A comparison with a field of IPv4 holds for no IPv6 packet, even if it is "not equal".
    let depends = depends.into_iter().map(|what| Condition { what, not: false });
    depends.chain([Condition { what, not }]).collect()
}

/// What has to hold for the comparison to be made at all, and the comparison itself.
fn property(left: &Value, right: &Value) -> (Vec<What>, What) {
    let unknown = (Vec::new(), What::Unknown);
    if let Some(meta) = left.get("meta").and_then(|meta| meta.get("key")).and_then(Value::as_str) {
        let what = match meta {
            "iifname" | "iif" => strings(right).map(What::Input),
            "oifname" | "oif" => strings(right).map(What::Output),
            "l4proto" => protocols(right).map(What::Protocol),
            "nfproto" => match right.as_str() {
                Some("ipv4") => Some(What::Ipv6(false)),
                Some("ipv6") => Some(What::Ipv6(true)),
                _ => None,
            },
            "protocol" => match right.as_str() {
                Some("ip") => Some(What::Ipv6(false)),
                Some("ip6") => Some(What::Ipv6(true)),
                _ => None,
            },
            _ => None,
        };
        return (Vec::new(), what.unwrap_or(What::Unknown));
    }
    if let Some(payload) = left.get("payload") {
        let part = |name| payload.get(name).and_then(Value::as_str).unwrap_or_default();
        return match (part("protocol"), part("field")) {
            (ip @ ("ip" | "ip6"), field) => {
                let what = match field {
                    "saddr" => prefixes(right).map(What::Source),
                    "daddr" => prefixes(right).map(What::Destination),
                    "protocol" | "nexthdr" => protocols(right).map(What::Protocol),
                    _ => None,
                };
                (vec![What::Ipv6(ip == "ip6")], what.unwrap_or(What::Unknown))
            }
            (transport, field @ ("sport" | "dport")) => {
                let depends = protocols(&Value::from(transport)).map(What::Protocol).into_iter().collect();
                let what = match field {
                    "sport" => ports(right).map(What::SourcePort),
                    _ => ports(right).map(What::DestinationPort),
                };
                (depends, what.unwrap_or(What::Unknown))
            }
            (transport, _) => {
                (protocols(&Value::from(transport)).map(What::Protocol).into_iter().collect(), What::Unknown)
            }
        };
    }
    match left.get("ct").and_then(|ct| ct.get("key")).and_then(Value::as_str) {
        Some("state") => return (Vec::new(), strings(right).map_or(What::Unknown, What::Connection)),
        // As in iptables, where this is one of the states.
        Some("status") if right.as_str() == Some("dnat") => {
            return (Vec::new(), What::Connection(vec!["dnat".to_owned()]));
        }
        _ => {}
    }
    let fib = left.get("fib");
    let asks = fib.and_then(|fib| fib.get("result")).and_then(Value::as_str) == Some("type");
    let flags = fib.and_then(|fib| fib.get("flags"));
    let of_destination = flags.is_some_and(|flags| strings(flags).is_some_and(|flags| flags == ["daddr"]));
    if asks && of_destination && right.as_str() == Some("local") {
        return (Vec::new(), What::Local);
    }
    unknown
}

/// The elements of an inline set, or the single value. Named sets that were not written out yield nothing.
fn elements(value: &Value) -> Option<Vec<&Value>> {
    match value {
        Value::Array(elements) => Some(elements.iter().collect()),
        Value::Object(object) => match object.get("set") {
            Some(set) => elements(set),
            None => Some(vec![value]),
        },
        Value::String(name) if name.starts_with('@') => None,
        _ => Some(vec![value]),
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    elements(value)?.into_iter().map(|element| element.as_str().map(str::to_owned)).collect()
}

fn protocols(value: &Value) -> Option<Vec<u8>> {
    let number = |element: &Value| match element.as_str() {
        Some(name) => protocols::number(name),
        None => element.as_u64().and_then(|number| u8::try_from(number).ok()),
    };
    elements(value)?.into_iter().map(number).collect()
}

fn ports(value: &Value) -> Option<Vec<(u16, u16)>> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let range = |element: &Value| match element.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => Some((port(first)?, port(last)?)),
        _ => port(element).map(|port| (port, port)),
    };
    elements(value)?.into_iter().map(range).collect()
}

fn prefixes(value: &Value) -> Option<Vec<IpNet>> {
    let address = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    let mut all = Vec::new();
    for element in elements(value)? {
        if let Some(prefix) = element.get("prefix") {
            let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
            all.push(IpNet::new(address(prefix.get("addr")?)?, length).ok()?);
        } else if let Some([first, last]) = element.get("range").and_then(Value::as_array).map(Vec::as_slice) {
            all.extend(range(address(first)?, address(last)?)?);
        } else {
            all.push(IpNet::from(address(element)?));
        }
    }
    Some(all)
}

/// The prefixes that make up a range of addresses.
pub(super) fn range(first: IpAddr, last: IpAddr) -> Option<Vec<IpNet>> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Some(ipnet::Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()),
        (IpAddr::V6(first), IpAddr::V6(last)) => Some(ipnet::Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()),
        _ => None,
    }
}

//! Asks the kernel, with its own tools, for everything that may concern the tunnel's packets.

use std::io;

use super::named::Named;
use super::{Chain, Ruleset, ipsec, iptables, nft, traffic_control};
use crate::netlink::{self, Interface, Netlink};
use crate::tool;

/// iptables' own tables outside nftables: the kernel lists them here if there are any.
const LEGACY: [(&str, &str); 2] =
    [("/proc/net/ip_tables_names", "iptables"), ("/proc/net/ip6_tables_names", "ip6tables")];

/// The largest named set that is listed, in bytes of the kernel's messages: a few thousand elements.
const SET: usize = 1 << 18;

/// Reads the rules of this network namespace, and traffic control on these interfaces. What cannot be read is treated
/// as a rule that concerns everything.
#[must_use]
pub fn read(interfaces: &[Interface]) -> Ruleset {
    let mut ruleset = Ruleset::default();
    match tool::run("nft", &["--json", "--terse", "list", "ruleset"], "") {
        Ok(text) => match nft::parse(&text, list) {
            Some(nft) => take_nft(&mut ruleset, nft),
            None => ruleset.unread.push("the rules of nftables, which are not understood".to_owned()),
        },
        // A kernel without nf_tables has no rules.
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
        Err(e) => ruleset.unread.push(format!("the rules of nftables, which cannot be read: {e}")),
    }
    for (ipv6, (file, family)) in [false, true].into_iter().zip(LEGACY) {
        if std::fs::read_to_string(file).is_ok_and(|names| !names.trim().is_empty()) {
            let program = format!("{family}-legacy");
            match save(&program) {
                Ok(text) => ruleset.chains.extend(iptables::parse(&text, &program, ipv6)),
                Err(e) => ruleset.unread.push(format!("the rules of {program}, which cannot be read: {e}")),
            }
        }
    }
    match tool::run("ip", &["xfrm", "policy"], "") {
        Ok(text) => {
            // Linux before 5.14 has no defaults, and iproute2 before 5.15 does not show them.
            let defaults = tool::run("ip", &["xfrm", "policy", "getdefault"], "").unwrap_or_default();
            let [policies, defaults] = [text, defaults].map(|text| String::from_utf8_lossy(&text).into_owned());
            ruleset.chains.extend(ipsec::parse(&policies, &defaults));
        }
        // A kernel without IPsec has no policies.
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
        Err(e) => ruleset.unread.push(format!("the policies of IPsec, which cannot be read: {e}")),
    }
    let controls = Netlink::open().and_then(|mut netlink| {
        let each = interfaces.iter().map(|interface| traffic_control::read(&mut netlink, interface));
        each.collect::<io::Result<Vec<_>>>()
    });
    match controls {
        Ok(chains) => ruleset.chains.extend(chains.into_iter().flatten()),
        Err(e) => ruleset.unread.push(format!("traffic control, which cannot be read: {e}")),
    }
    ruleset
}

/// Takes over what nftables holds. For rules made by iptables, only iptables names all conditions.
fn take_nft(ruleset: &mut Ruleset, nft: nft::Nft) {
    ruleset.chains = nft.chains;
    ruleset.looks_into_sets = nft.looks_into_sets;
    for (ipv6, family, program) in [(false, "ip", "iptables"), (true, "ip6", "ip6tables")] {
        if !nft.of_iptables[usize::from(ipv6)] {
            continue;
        }
        if let Ok(text) = save(&format!("{program}-nft")) {
            replace(ruleset, family, iptables::parse(&text, program, ipv6));
        }
    }
}

/// Replaces chains as nftables shows them by the same chains as iptables shows them. iptables leaves out chains, and
/// whole tables, in which somebody else has made rules.
pub(super) fn replace(ruleset: &mut Ruleset, family: &str, saved: Vec<Chain>) {
    let is_saved = |chain: &Chain| {
        let table = chain.table.strip_prefix(family).and_then(|table| table.strip_prefix(' '));
        saved.iter().any(|saved| saved.name == chain.name && saved.table.split(' ').next() == table)
    };
    ruleset.chains.retain(|chain| !is_saved(chain));
    ruleset.chains.extend(saved);
}

/// What nftables prints of a named set that is not too large. Its list of all rules comes without elements, since lists of
/// blocked addresses can be long.
fn list(set: &Named<'_>) -> Option<Vec<u8>> {
    let Named { family, table, kind, name } = *set;
    // What nft takes for a name without quotes.
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.".contains(c))
    };
    let listed = is_name(table) && is_name(name) && netlink::set_fits(family, table, name, SET).unwrap_or(false);
    let text = listed.then(|| tool::run("nft", &["--json", "list", kind, family, table, name], ""))?;
    text.inspect_err(|e| tracing::debug!("set {name} of {table} cannot be listed: {e}")).ok()
}

fn save(program: &str) -> io::Result<String> {
    let text = tool::run(&format!("{program}-save"), &[], "")?;
    String::from_utf8(text).map_err(|_| io::Error::other("it prints no text"))
}

//! Queueing disciplines, filters and eBPF programs of traffic control (`tc(8)`): on receipt AF_XDP comes before them,
//! and on sending it bypasses them.

use std::io;

use penstock_dataplane::steer::has_tcx_programs;

use super::{Action, Base, Chain, Hook, Rule};
use crate::netlink::{Discipline, FilterPlace, Interface, Netlink};

/// Disciplines that only decide in which order packets leave when there are more than the device can take.
const PLAIN: [&str; 9] = ["noqueue", "pfifo_fast", "pfifo", "bfifo", "fq", "fq_codel", "codel", "sfq", "mq"];
/// Where filters are attached; these do nothing themselves.
const HOLDERS: [&str; 2] = ["ingress", "clsact"];

/// What is on an interface, as chains that do something with every packet.
///
/// # Errors
/// The kernel's error.
pub(super) fn read(netlink: &mut Netlink, interface: &Interface) -> io::Result<Vec<Chain>> {
    let Interface { name, index, .. } = interface;
    let mut chains = Vec::new();
    let mut add = |hook, what: String| {
        chains.push(Chain {
            table: "traffic control".to_owned(),
            name: name.clone(),
            families: [true, true],
            base: Some(Base { hook, device: Some(name.clone()), drops: false }),
            rules: vec![Rule { name: what, conditions: Vec::new(), action: Action::Change }],
        });
    };
    let disciplines = netlink.queueing_disciplines(*index)?;
    let kinds = || disciplines.iter().map(|discipline| discipline.kind.as_str());
    if let Some(kind) = kinds().find(|kind| !PLAIN.contains(kind) && !HOLDERS.contains(kind)) {
        add(Hook::Egress, format!("the queueing discipline {kind} of {name}"));
    }
    if disciplines.iter().any(|discipline| discipline.paces) {
        add(Hook::Egress, format!("the queueing discipline fq of {name}, with a maxrate"));
    }
    for Discipline { kind, handle, .. } in
        disciplines.iter().filter(|discipline| PLAIN.contains(&discipline.kind.as_str()))
    {
        if netlink.has_filters(*index, FilterPlace::Discipline(*handle))? {
            add(Hook::Egress, format!("a filter in the queueing discipline {kind} of {name}"));
        }
    }
    let has_holder = kinds().any(|kind| HOLDERS.contains(&kind));
    for (place, hook, word) in
        [(FilterPlace::Ingress, Hook::Ingress, "ingress"), (FilterPlace::Egress, Hook::Egress, "egress")]
    {
        if has_holder && netlink.has_filters(*index, place)? {
            add(hook, format!("a filter on {word} of {name}"));
        }
        if has_tcx_programs(name, place == FilterPlace::Ingress) {
            add(hook, format!("an eBPF program on {word} of {name}"));
        }
    }
    Ok(chains)
}

//! Whether the CPUs that work for an interface suit each other.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Port, path, quoted, warning};
use crate::doctor::Finding;
use crate::doctor::facts::{Facts, Running};
use crate::profile::{DEFAULT_PATH, Profile};

/// The queues of an AF_XDP interface, each with its worker and the CPU that this is pinned to.
fn queues<'a>(facts: &'a Facts, interface: &'a str) -> impl Iterator<Item = (u32, u16, u32)> + 'a {
    let status = match &facts.gateway {
        Running::Yes(status) => Some(status),
        _ => None,
    };
    let ports = status.into_iter().flat_map(|status| &status.ports);
    let ports = ports.filter(move |port| port.interface == interface && port.kind == "xdp");
    ports.filter_map(|port| Some((port.queue, port.worker, *facts.worker_cpus.get(&port.worker)?)))
}

/// A queue's packets are best handled where its worker is, or where no worker is. On another worker's CPU they take
/// that worker's time while their own waits.
pub(super) fn interrupt_at_another_worker(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    let interrupts = &facts.links.get(port.name)?.interrupts;
    let others =
        |worker: u16| facts.worker_cpus.iter().filter(move |(other, _)| **other != worker).map(|(_, cpu)| *cpu);
    let astray: Vec<(u32, u32, u32)> = queues(facts, port.name)
        .filter_map(|(queue, worker, cpu)| {
            let interrupt = interrupts.get(&queue)?;
            let occupied: BTreeSet<u32> = others(worker).collect();
            let misses = !interrupt.cpus.contains(&cpu) && interrupt.cpus.is_subset(&occupied);
            misses.then_some((queue, interrupt.number, cpu))
        })
        .collect();
    let (queue, _, _) = astray.first()?;
    let more = if astray.len() > 1 { format!(" and {} more", astray.len() - 1) } else { String::new() };
    let commands: Vec<String> =
        astray.iter().map(|(_, number, cpu)| format!("echo {cpu} > /proc/irq/{number}/smp_affinity_list")).collect();
    let sentence =
        format!("the interrupts of queue {queue}{more} go to another worker's CPU, which then does the work of two");
    warning(port.name, sentence, commands.join(" && "))
}

/// Workers away from the card read every packet from the other processor's memory.
pub(super) fn workers_away_from_card(facts: &Facts, _: &Profile, port: &Port<'_>) -> Option<Finding> {
    let node = facts.links.get(port.name)?.node?;
    // With cards on several nodes some worker is always away.
    let mut nodes = facts.links.values().filter(|link| queues(facts, &link.interface.name).next().is_some());
    if nodes.any(|link| link.node.is_some_and(|other| other != node)) {
        return None;
    }
    let near = facts.host.nodes.get(&node).filter(|near| !near.is_empty())?;
    let away = queues(facts, port.name).find(|(_, _, cpu)| !near.contains(cpu));
    let (_, worker, cpu) = away?;
    let sentence = format!("its card is on NUMA node {node}, but worker {worker} runs on CPU {cpu} of another node");
    warning(port.name, sentence, restart_on(facts, &cpu_list(near)))
}

/// The command that starts the gateway again on these CPUs.
fn restart_on(facts: &Facts, cpus: &str) -> String {
    let file = &facts.file.path;
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if file.parent() == Path::new(DEFAULT_PATH).parent() {
        let unit = quoted(&format!("penstock@{stem}.service"));
        return format!("systemctl set-property {unit} AllowedCPUs={cpus} && systemctl restart {unit}");
    }
    let file = path(file);
    format!("penstock stop --profile {file} && taskset --cpu-list {cpus} penstock start --profile {file}")
}

/// As the kernel writes it: `0-3,8`.
fn cpu_list(cpus: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let range = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    ranges.into_iter().map(range).collect::<Vec<_>>().join(",")
}

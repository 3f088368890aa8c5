//! Which CPUs work for an interface: those that handle its queues' interrupts, those of its card's NUMA node, and those
//! that the workers are pinned to. Read from /proc and /sys.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::facts::Interrupt;
use super::gather::{SEARCH_LIMIT, text};

/// More CPUs than any kernel is built for.
const CPU_LIMIT: u32 = 8192;

/// The CPUs of each NUMA node.
pub(super) fn nodes() -> BTreeMap<u32, BTreeSet<u32>> {
    let entries = fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    let node = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, cpus(&text(entry.path().join("cpulist"))?)?))
    };
    entries.take(SEARCH_LIMIT).filter_map(node).collect()
}

/// The NUMA node of an interface's card; `None` for a virtual device, and where the machine does not say.
pub(super) fn node_of(interface: &str) -> Option<u32> {
    // A virtio device is a child of its card.
    let paths = ["device/numa_node", "device/../numa_node"];
    paths.iter().find_map(|path| text(Path::new("/sys/class/net").join(interface).join(path))?.trim().parse().ok())
}

/// The interrupts of an interface's receive queues.
pub(super) fn interrupts(interface: &str) -> BTreeMap<u32, Interrupt> {
    let device = Path::new("/sys/class/net").join(interface).join("device");
    let lists = ["msi_irqs", "../msi_irqs"].map(|path| fs::read_dir(device.join(path)));
    let entries = lists.into_iter().flatten().flatten().flatten().take(SEARCH_LIMIT);
    let ours: BTreeSet<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    if ours.is_empty() {
        return BTreeMap::new();
    }
    let queues = queues_of(&text("/proc/interrupts").unwrap_or_default(), &ours);
    let interrupt = |(queue, number): (u32, u32)| {
        let list = |name: &str| cpus(&text(format!("/proc/irq/{number}/{name}"))?).filter(|cpus| !cpus.is_empty());
        let cpus = handled_by(list("effective_affinity_list"), list("smp_affinity_list"))?;
        Some((queue, Interrupt { number, cpus }))
    };
    queues.into_iter().filter_map(interrupt).collect()
}

/// The CPUs that handle an interrupt, of those that do so now and those that may. Where it is told to go to others, the
/// kernel moves it when the next one comes, which on an idle queue may take long.
fn handled_by(now: Option<BTreeSet<u32>>, may: Option<BTreeSet<u32>>) -> Option<BTreeSet<u32>> {
    match (now, may) {
        (Some(now), Some(may)) if now.is_disjoint(&may) => Some(may),
        (now, may) => now.or(may),
    }
}

/// The only CPU that each of a gateway's workers may run on, for those that are pinned.
pub(super) fn worker_cpus(pid: u32) -> BTreeMap<u16, u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let worker = |entry: fs::DirEntry| {
        let worker = text(entry.path().join("comm"))?.trim().strip_prefix("worker-")?.parse().ok()?;
        let status = text(entry.path().join("status"))?;
        let allowed = cpus(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)?;
        (allowed.len() == 1).then_some((worker, allowed.into_iter().next()?))
    };
    threads.take(SEARCH_LIMIT).filter_map(worker).collect()
}

/// The receive queues that interrupts of ours are for, by /proc/interrupts: the queue's number and the interrupt's.
fn queues_of(interrupts: &str, ours: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
    let lines = interrupts.lines().filter_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let number: u32 = number.trim().parse().ok()?;
        Some((queue(rest.split_whitespace().next_back()?)?, number)).filter(|_| ours.contains(&number))
    });
    lines.collect()
}

/// The receive queue in a driver's name for an interrupt: `virtio2-input.0`, `i40e-eth0-TxRx-3`, `eth0-rx-1`,
/// `mlx5_comp3@pci:0000:05:00.0`.
fn queue(name: &str) -> Option<u32> {
    let name = name.split('@').next()?;
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name.get(kind.len()..)?.parse().ok()?;
    let kind = kind.trim_end_matches(['-', '.', '_']).to_ascii_lowercase();
    ["rx", "rxtx", "input", "comp"].iter().any(|end| kind.ends_with(end)).then_some(number)
}

/// A list of the kernel's: `0-3,8`.
fn cpus(list: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPU_LIMIT {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receive_queues_are_known_by_the_names_of_interrupts() {
        let interrupts = "            CPU0       CPU1
  37:          0          0 PCI-MSIX-0000:00:03.0   0-edge      virtio2-config
  38:          0      73710 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0
  39:      67359          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0
  40:          0         12 PCI-MSIX-0000:00:03.0   3-edge      virtio2-input.1
  41:          0         12 PCI-MSIX-0000:00:04.0   3-edge      virtio3-input.1
 NMI:          0          1   Non-maskable interrupts
";
        let ours = BTreeSet::from([37, 38, 39, 40]);
        assert_eq!(queues_of(interrupts, &ours), BTreeMap::from([(0, 38), (1, 40)]));
        for (name, expected) in [
            ("i40e-eth0-TxRx-13", Some(13)),
            ("ens5-Tx-Rx-2", Some(2)),
            ("eth0-rxtx-1", Some(1)),
            ("mlx5_comp3@pci:0000:05:00.0", Some(3)),
            ("mlx5_async0@pci:0000:05:00.0", None),
            ("eth0-tx-1", None),
            ("ttyS0", None),
            ("eth0-rx-99999999999", None),
        ] {
            assert_eq!(queue(name), expected, "{name}");
        }
    }

    #[test]
    fn an_interrupt_that_is_about_to_move_is_where_it_goes() {
        let set = |cpus: &[u32]| Some(cpus.iter().copied().collect::<BTreeSet<u32>>());
        assert_eq!(handled_by(set(&[1]), set(&[0, 1])), set(&[1]));
        assert_eq!(handled_by(set(&[1]), set(&[0])), set(&[0]));
        assert_eq!(handled_by(None, set(&[0, 1])), set(&[0, 1]));
        assert_eq!(handled_by(set(&[1]), None), set(&[1]));
        assert_eq!(handled_by(None, None), None);
    }

    #[test]
    fn lists_of_cpus_have_an_end() {
        assert_eq!(cpus("0-2,8\n"), Some(BTreeSet::from([0, 1, 2, 8])));
        assert_eq!(cpus("\n"), Some(BTreeSet::new()));
        assert_eq!(["3-1", "0-4294967295", "a", "1-"].map(cpus), [None, None, None, None]);
    }

    #[test]
    fn a_pinned_worker_is_found_by_its_thread() {
        let core = core_affinity::get_core_ids().unwrap()[0];
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let worker = std::thread::Builder::new().name("worker-7".to_owned()).spawn(move || {
            ready.send(core_affinity::set_for_current(core)).unwrap();
            let _ = told.recv();
        });
        assert!(is_ready.recv().unwrap());
        assert_eq!(worker_cpus(std::process::id()).get(&7), Some(&(core.id as u32)));
        drop(tell);
        worker.unwrap().join().unwrap();
    }
}

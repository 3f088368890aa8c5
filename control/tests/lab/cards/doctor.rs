//! What `penstock doctor` finds about queues, their hash and their interrupts agrees with what the driver and the
//! machine say elsewhere, and the printed commands fix it.

use crate::support::*;
use crate::{note, ports, ready};
use serde_json::Value;
use std::collections::BTreeSet;

/// The queues of an interface that both receive and send, by sysfs.
fn queues(gateway: &Namespace, interface: &str) -> u32 {
    let [receive, send] = queues_by_direction(gateway, interface);
    receive.min(send)
}

/// How many queues receive, and how many send.
pub fn queues_by_direction(gateway: &Namespace, interface: &str) -> [u32; 2] {
    let names = gateway.run(&["ls", &format!("/sys/class/net/{interface}/queues")]);
    ["rx-", "tx-"].map(|kind| names.split_whitespace().filter(|name| name.starts_with(kind)).count() as u32)
}

/// The sentence and the command of the finding about an interface that contains these words.
fn finding(gateway: &Gateway, interface: &str, words: &str) -> Option<(String, String)> {
    let (report, _) = gateway.doctor();
    let findings = report["Findings"].as_array().expect("findings").clone();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let mut found = findings.iter().filter(|finding| finding["Subject"] == interface);
    found.find_map(|finding| {
        let sentence = text(&finding["Sentence"]);
        sentence.contains(words).then(|| (sentence, text(&finding["Command"])))
    })
}

/// The finding is there, and its command fixes it.
fn is_mended(gateway: &Gateway, site: &Site, interface: &str, words: &str) {
    let (sentence, command) = finding(gateway, interface, words).unwrap_or_else(|| {
        panic!("{interface}: nothing is found about {words}: {}", gateway.doctor().0);
    });
    site.gateway.run(&["sh", "-ec", &command]);
    assert_eq!(finding(gateway, interface, words), None, "after {command}");
    note(&format!("{interface}: {sentence}; mended by {command}"));
}

/// The CPU of each worker, by its thread.
fn worker_cpu(pid: u64, worker: u32) -> u32 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten().map(|entry| entry.path());
    let name = |path: &std::path::Path| std::fs::read_to_string(path.join("comm")).unwrap_or_default();
    let thread = threads.into_iter().find(|path| name(path).trim() == format!("worker-{worker}")).expect("its thread");
    let status = std::fs::read_to_string(thread.join("status")).expect("its state");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list");
    list.trim().parse().expect("pinned to one CPU")
}

/// The interrupt of a receive queue, by its name: a card's contains the interface's, virtio's the device's.
fn interrupt(gateway: &Namespace, interface: &str, queue: u32) -> u32 {
    let device = gateway.run(&["readlink", "-f", &format!("/sys/class/net/{interface}/device")]);
    let device = device.trim().rsplit('/').next().expect("a device");
    let owner = if device.starts_with("virtio") { device } else { interface };
    let names = ["-input.", "-rx-", "-TxRx-", "-rxtx-"].map(|kind| format!("{owner}{kind}{queue}"));
    let all = std::fs::read_to_string("/proc/interrupts").expect("interrupts");
    let line = all.lines().find(|line| names.iter().any(|name| line.ends_with(name)));
    let line = line.unwrap_or_else(|| panic!("no interrupt is named as one of {names:?}: {all}"));
    line.trim().split(':').next().and_then(|number| number.parse().ok()).expect("a number")
}

/// The interrupts of queues whose packets another worker's CPU handles, according to the machine.
fn astray(a: &Gateway, gateway: &Namespace, interface: &str, workers: u32) -> BTreeSet<u32> {
    let pid = a.status()["Pid"].as_u64().expect("a process");
    let cpus: Vec<u32> = (0..workers).map(|worker| worker_cpu(pid, worker)).collect();
    let is_astray = |queue: &u32| {
        let number = interrupt(gateway, interface, *queue);
        let list = |name: &str| std::fs::read_to_string(format!("/proc/irq/{number}/{name}")).expect("where it goes");
        // If several CPUs are allowed, the kernel has chosen one. The interrupt moves when the next one occurs.
        let [told, chosen] = ["smp_affinity_list", "effective_affinity_list"].map(|name| list(name).trim().parse());
        let at: u32 = told.or(chosen).expect("one CPU");
        at != cpus[(*queue % workers) as usize] && cpus.contains(&at)
    };
    let numbers = (0..queues(gateway, interface)).filter(is_astray).map(|queue| interrupt(gateway, interface, queue));
    numbers.collect()
}

#[test]
fn what_is_found_is_what_the_machine_has_and_the_commands_mend_it() {
    if !ready(&["ethtool"]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, b) = pair_config(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    a.workers = 0;
    let (mut a, _b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    await_traffic(&topology);
    let gateway = &topology.a.gateway;
    let workers = a.status()["Workers"].as_u64().expect("a number") as u32;
    note(&format!("doctor: {workers} workers; {}", ports(&a.status())));
    if queues(gateway, "lan0") < 2 {
        note("doctor: a card with one queue has nothing to be found");
        assert_eq!(finding(&a, "lan0", "queue"), None);
        return;
    }
    assert_eq!(workers, 2, "this machine has 2 CPUs");

    // The hash.
    for interface in ["wan0", "lan0"] {
        let (told, fields) = gateway.attempt(&["ethtool", "-n", interface, "rx-flow-hash", "udp4"]);
        let by_address = told && fields.contains("IP SA") && !fields.contains("L4 bytes");
        // With a single peer its ports do not matter on the WAN.
        let expected = by_address && interface == "lan0";
        assert_eq!(finding(&a, interface, "hash of UDP").is_some(), expected, "{interface}: {fields}");
        if expected {
            is_mended(&a, &topology.a, interface, "hash of UDP");
        }
        let even = finding(&a, interface, "RSS table");
        assert_eq!(even, None, "{interface}: {}", gateway.attempt(&["ethtool", "-x", interface]).1);
        let (done, said) = gateway.attempt(&["ethtool", "-X", interface, "equal", "1"]);
        if done {
            is_mended(&a, &topology.a, interface, "leads to 1 of 2 receive queues");
            let table = gateway.run(&["ethtool", "-x", interface]);
            assert!(
                table.lines().any(|line| line.contains(':') && line.split_whitespace().any(|w| w == "1")),
                "{table}"
            );
        } else {
            note(&format!("{interface}: its RSS table cannot be changed: {}", said.trim()));
        }
    }

    // The interrupts: as they are, and after each was moved to the other worker.
    let pid = a.status()["Pid"].as_u64().expect("a process");
    for interface in ["wan0", "lan0"] {
        let expected = !astray(&a, gateway, interface, workers).is_empty();
        assert_eq!(finding(&a, interface, "interrupts of queue").is_some(), expected, "{interface}");
        for queue in 0..workers {
            let (number, wrong) = (interrupt(gateway, interface, queue), worker_cpu(pid, (queue + 1) % workers));
            std::fs::write(format!("/proc/irq/{number}/smp_affinity_list"), wrong.to_string()).expect("moved");
        }
        let (sentence, command) = finding(&a, interface, "interrupts of queue").expect("it is found");
        assert!(sentence.contains("queue 0 and 1 more"), "{sentence}");
        for queue in 0..workers {
            let (number, cpu) = (interrupt(gateway, interface, queue), worker_cpu(pid, queue));
            assert!(command.contains(&format!("echo {cpu} > /proc/irq/{number}/smp_affinity_list")), "{command}");
        }
        is_mended(&a, &topology.a, interface, "interrupts of queue");
        assert_eq!(astray(&a, gateway, interface, workers), BTreeSet::new());
    }
    assert_eq!(finding(&a, "wan0", "NUMA"), None, "there is one node");

    // The queues in use, of which AF_XDP does not allow fewer while it runs.
    assert_eq!(finding(&a, "lan0", "receive queue"), None);
    a.terminate();
    // Fewer queues are refused as long as a table that somebody has set leads to the others.
    gateway.attempt(&["ethtool", "-X", "lan0", "default"]);
    let (done, said) = gateway.attempt(&["ethtool", "-L", "lan0", "combined", "1"]);
    if !done {
        note(&format!("lan0: its number of queues cannot be changed: {}", said.trim()));
        return;
    }
    let words = "one receive queue is in use and the device has more";
    let (_, command) = finding(&a, "lan0", words).expect("it is found");
    gateway.run(&["sh", "-ec", &command]);
    assert_eq!(finding(&a, "lan0", words), None, "after {command}");
    assert_eq!(queues(gateway, "lan0"), 2);
}

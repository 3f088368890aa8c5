//! Namespaces to measure the tool itself in: without a device, or with the crypto-free forwarder as one.
//!
//! ```text
//!  bare:       ┌─ left ─ east ├───veth───┤ west ─ right ─┐
//!
//!  forwarder:  ┌─ left ─ east ├───veth───┤ west ─ forwarder ─ east ├───veth───┤ west ─ right ─┐
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{Namespace, Place};
use crate::forwarder::{Forwarder, Report, Rewrite};
use crate::packet::Mac;

/// The ends of a line, and the device on it.
#[derive(Debug)]
pub struct Line {
    /// What stands between. It ends before its namespaces do.
    pub device: Option<Device>,
    /// One end.
    pub left: Place,
    /// The other.
    pub right: Place,
}

/// A forwarder on a thread of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct Device {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Report>>>,
    /// Modes that were really bound.
    pub described: String,
}

/// A veth pair between two fresh namespaces.
pub fn bare() -> anyhow::Result<Line> {
    let [left, right] = [Namespace::fresh()?, Namespace::fresh()?];
    veth(&left, mac(1), &right, mac(2))?;
    let [left, right] = [place(left, "east"), place(right, "west")];
    Ok(Line { left, right, device: None })
}

/// The same with a forwarder in a third namespace between them.
pub fn with_forwarder() -> anyhow::Result<Line> {
    let [left, middle, right] = [Namespace::fresh()?, Namespace::fresh()?, Namespace::fresh()?];
    veth(&left, mac(1), &middle, mac(2))?;
    veth(&middle, mac(3), &right, mac(4))?;
    let forth = Rewrite { destination: Some(mac(4)), source: Some(mac(3)) };
    let back = Rewrite { destination: Some(mac(1)), source: Some(mac(2)) };
    let forwarder = middle.enter(|| Forwarder::new("west", "east", 0, forth, back))??;
    let described = forwarder.sockets()[0].describe();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    // The thread may stay in our namespace: the sockets are where they were made.
    let thread =
        std::thread::Builder::new().name("forwarder".into()).spawn(move || forwarder.run(None, false, &stopped))?;
    let device = Device { stop, thread: Some(thread), described };
    Ok(Line { left: place(left, "east"), right: place(right, "west"), device: Some(device) })
}

/// Joins "east" of one namespace with "west" of another, one queue each, both up and silent.
pub fn veth(left: &Namespace, left_mac: Mac, right: &Namespace, right_mac: Mac) -> anyhow::Result<()> {
    let (left_mac, right_mac, path) = (left_mac.to_string(), right_mac.to_string(), right.path());
    let one_queue = ["numrxqueues", "1", "numtxqueues", "1"];
    let mut words = vec!["link", "add", "east", "address", &left_mac];
    words.extend(one_queue);
    words.extend(["type", "veth", "peer", "name", "west", "address", &right_mac, "netns", &path]);
    words.extend(one_queue);
    left.ip(&words)?;
    for (namespace, name) in [(left, "east"), (right, "west")] {
        // No router or neighbour discovery among the packets that are counted.
        namespace.ip(&["link", "set", name, "addrgenmode", "none"])?;
        namespace.ip(&["link", "set", name, "up"])?;
    }
    Ok(())
}

/// Addresses of interfaces that only we know.
fn mac(last: u8) -> Mac {
    Mac([0x02, 0x50, 0x53, 0x54, 0x01, last])
}

fn place(namespace: Namespace, name: &str) -> Place {
    Place { namespace, name: name.into() }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its counters are of no use any more, and a drop can say nothing.
            let _ = thread.join();
        }
    }
}

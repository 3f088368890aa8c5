//! Namespaces for measuring the tool itself: without a device, or with the crypto-free forwarder as one.
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

use penstock_netns::{End, Namespace};

use crate::traffic::forwarder::{Forwarder, Report, Rewrite};
use crate::traffic::interface::Interface;
use crate::traffic::packet::Mac;

/// The ends of a line, and the device on it.
#[derive(Debug)]
pub struct Line {
    /// The device in between. It ends before its namespaces do.
    pub device: Option<Device>,
    /// One end.
    pub left: Interface,
    /// The other end.
    pub right: Interface,
}

/// A forwarder on a thread of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct Device {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Report>>>,
    /// Modes that were actually bound.
    pub described: String,
}

/// A veth pair between two fresh namespaces.
pub fn bare() -> anyhow::Result<Line> {
    let [left, right] = ["left", "right"].map(Namespace::try_new);
    let (left, right) = (left?, right?);
    veth(&left, mac(1), &right, mac(2))?;
    let [left, right] = [interface(left, "east"), interface(right, "west")];
    Ok(Line { left, right, device: None })
}

/// The same with a forwarder in a third namespace between them.
pub fn with_forwarder() -> anyhow::Result<Line> {
    let [left, middle, right] = ["left", "middle", "right"].map(Namespace::try_new);
    let (left, middle, right) = (left?, middle?, right?);
    veth(&left, mac(1), &middle, mac(2))?;
    veth(&middle, mac(3), &right, mac(4))?;
    let forth = Rewrite { destination: Some(mac(4)), source: Some(mac(3)) };
    let back = Rewrite { destination: Some(mac(1)), source: Some(mac(2)) };
    let forwarder = middle.try_enter(|| Forwarder::new("west", "east", 0, forth, back))??;
    let described = forwarder.sockets()[0].describe();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    // The thread may stay in that namespace: sockets belong to the namespace they were made in.
    let thread =
        std::thread::Builder::new().name("forwarder".into()).spawn(move || forwarder.run(None, false, &stopped))?;
    let device = Device { stop, thread: Some(thread), described };
    Ok(Line { left: interface(left, "east"), right: interface(right, "west"), device: Some(device) })
}

/// Joins "east" of one namespace with "west" of another, with one queue each, both up and without traffic of their own.
///
/// # Errors
/// `ip` refuses.
pub fn veth(left: &Namespace, left_mac: Mac, right: &Namespace, right_mac: Mac) -> io::Result<()> {
    // No router or neighbour discovery may be among the packets that are counted.
    [left, right].into_iter().try_for_each(|n| n.try_sysctl("net/ipv6/conf/default/addr_gen_mode", "1"))?;
    let [left_mac, right_mac] = [left_mac, right_mac].map(|mac| mac.to_string());
    let ends = [
        End { namespace: left, name: "east", address: &left_mac },
        End { namespace: right, name: "west", address: &right_mac },
    ];
    penstock_netns::veth(ends, 1)
}

/// Ethernet addresses that are used only here.
fn mac(last: u8) -> Mac {
    Mac([0x02, 0x50, 0x53, 0x54, 0x01, last])
}

fn interface(namespace: Namespace, name: &str) -> Interface {
    Interface { namespace, name: name.into() }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its counters are no longer needed, and a drop cannot report errors.
            let _ = thread.join();
        }
    }
}

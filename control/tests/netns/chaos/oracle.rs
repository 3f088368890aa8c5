//! Packets that must never be seen, and the traffic that would reveal them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::*;

/// Time between two packets of each flow.
const PACKET_EVERY: Duration = Duration::from_micros(500);

/// Watches every packet on the WANs, and counts inner ones in the clear.
pub struct Oracle {
    namespace: Namespace,
}

impl Oracle {
    pub fn start(topology: &Topology) -> Self {
        let namespace = topology.middle().clone();
        // On all devices, including those created later: a bridge forwards for its ports, a1 is routed.
        namespace.nft(
            "table bridge oracle { counter leaked { }; chain forward { type filter hook prerouting priority -300; \
             ip saddr { 10.101.0.0/16, 10.102.0.0/16 } counter name leaked; \
             ip6 saddr { fd00:101::/64, fd00:102::/64 } counter name leaked; }; }; \
             table inet oracle { counter leaked { }; chain input { type filter hook prerouting priority -300; \
             ip saddr { 10.101.0.0/16, 10.102.0.0/16 } counter name leaked; \
             ip6 saddr { fd00:101::/64, fd00:102::/64 } counter name leaked; }; }",
        );
        Self { namespace }
    }

    /// Inner packets that were seen in the clear.
    pub fn leaked(&self) -> u64 {
        let counted = |family| {
            let text = self.namespace.run(&["nft", "list", "counter", family, "oracle", "leaked"]);
            let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
            words.nth(1).and_then(|count| count.parse::<u64>().ok()).expect("a counter")
        };
        counted("bridge") + counted("inet")
    }
}

/// A stream of packets from a host, whatever happens.
pub struct Flow {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flow {
    pub fn start(host: &Namespace, to: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, ended) = (host.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            namespace.enter(|| {
                let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
                let socket = UdpSocket::bind(any).expect("a socket");
                while !ended.load(Ordering::Relaxed) {
                    // The host's own link may be down.
                    let _ = socket.send_to(&[0x55; 64], (to, 9));
                    std::thread::sleep(PACKET_EVERY);
                }
            });
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

//! Servers on the lab's internet.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::thread::JoinHandle;

use penstock_coordinator::stun::{Corners, StunServer};
use tokio::sync::oneshot;

use super::Lab;

/// The STUN server of the coordinator, at four corners of each IP version.
pub struct Stun {
    /// The first corner.
    pub ipv4: SocketAddr,
    /// The first corner; only of use in a lab with IPv6.
    pub ipv6: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stun {
    const PORTS: [u16; 2] = [3478, 3479];

    /// Serves at the lab's server addresses 1 and 2.
    pub fn start(lab: &Lab) -> Self {
        let corner = |index: usize| SocketAddr::new(lab.server(index as u8 + 1).into(), Self::PORTS[index]);
        let corner6 = |index: usize| {
            let ip = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, index as u16 + 1);
            SocketAddr::new(IpAddr::V6(ip), Self::PORTS[index])
        };
        let all = [Corners::new(corner(0), Some(corner(1))), Corners::new(corner6(0), Some(corner6(1)))];
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = std::sync::mpsc::channel();
        let internet = lab.internet().clone();
        let thread = std::thread::spawn(move || {
            internet.enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let mut servers = vec![];
                    for corners in all {
                        servers.push(StunServer::start(corners.expect("corners")).await.expect("a server"));
                    }
                    ready.send(()).expect("somebody waits");
                    let _ = stopped.await;
                });
            });
        });
        started.recv().expect("STUN starts");
        Self { ipv4: corner(0), ipv6: corner6(0), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Stun {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

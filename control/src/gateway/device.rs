//! A WireGuard device and nothing else, as `wg-quick` expects of a userspace implementation: a tun device, WireGuard's
//! socket, and a UDP socket. `wg` configures it, its creator gives it addresses and routes, and it ends with its device
//! or by a signal.
//!
//! There is no profile, and so no guard: nothing is known to be remote before `wg` says so, and `wg-quick down` expects
//! the routes to be as they were.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use penstock_dataplane::slow_path::Notice;

use super::configure::{peer_state, set_peers};
use super::due::Due;
use super::handshakes::Handshakes;
use super::plane::{Behind, Plane};
use super::privileges;
use super::run::{SAMPLE_EVERY, at, stop_signals, ticks};
use super::traffic::NOTICES_PER_TURN;
use crate::endpoints::LastEndpoints;
use crate::ground::{Interest, Network};
use crate::key::PrivateKey;
use crate::netlink::{Monitor, Netlink};
use crate::profile::Name;
use crate::socket_file::Service;
use crate::uapi::{self, Change, Errno, Request, SetDevice};

/// A device with its worker running.
struct Device {
    handshakes: Handshakes,
    plane: Plane,
    /// Whether `wg` has set the private key; until then it is a random one that nobody knows.
    has_key: bool,
    private_key: PrivateKey,
    netlink: Netlink,
    /// No route is looked up here; the kernel's socket does that.
    network: Network,
}

/// Runs a device until it is deleted or a signal comes.
///
/// # Errors
/// Why it could not be created, or why it had to end, in one sentence.
pub async fn run(name: &Name) -> Result<()> {
    let stopping = Arc::new(AtomicBool::new(false));
    let stop = stop_signals(&stopping)?;
    privileges::check(false)?;
    let monitor = Monitor::open().context("cannot follow network changes")?;
    let mut device = Device::start(name)?;
    // Last, so that whoever can connect finds a device.
    let uapi = uapi::socket::serve(name)
        .with_context(|| format!("cannot open WireGuard's socket in {}", uapi::socket::DIRECTORY))?;
    tracing::info!("{name} is up");
    let outcome = device.serve(monitor, uapi, stop).await;
    stopping.store(true, Ordering::Release);
    outcome
}

impl Device {
    fn start(name: &Name) -> Result<Self> {
        let plane = Plane::device(name)?;
        // A placeholder: no peer knows it, so no handshake succeeds before `wg` has given the real one.
        let private_key = PrivateKey::generate().context("no randomness")?;
        let now = Instant::now();
        let handshakes =
            Handshakes::new(&private_key, LastEndpoints::unkept(now), plane.speeds(), plane.sender(), now)?;
        let netlink = Netlink::open().context("cannot use netlink")?;
        let network = Network::empty(Interest::default());
        Ok(Self { handshakes, plane, has_key: false, private_key, netlink, network })
    }

    async fn serve(
        &mut self,
        monitor: Monitor,
        mut uapi: Service<Request>,
        stop: impl Future<Output = &'static str>,
    ) -> Result<()> {
        let mut samples = ticks(SAMPLE_EVERY);
        tokio::pin!(stop);
        loop {
            self.follow_up(Instant::now());
            let timeout = self.handshakes.proto.poll_timeout().into_iter().chain(self.plane.poll_timeout()).min();
            tokio::select! {
                reason = &mut stop => {
                    tracing::info!("stopping: {reason}");
                    return Ok(());
                }
                ready = self.plane.workers().readable() => {
                    ready.context("the workers' notices cannot be received")?;
                    self.take_notices(Instant::now())?;
                }
                () = at(timeout.map(tokio::time::Instant::from_std)) => {
                    self.handshakes.proto.handle_timeout(Instant::now());
                }
                _ = samples.tick() => self.handshakes.sample(Instant::now(), |_, _| {}),
                news = monitor.news() => {
                    news.context("network changes cannot be received")?;
                    if !self.follow_device()? {
                        tracing::info!("stopping: the device is gone");
                        return Ok(());
                    }
                }
                change = self.handshakes.resolved() => self.handshakes.handle_resolved(Instant::now(), change),
                Some(request) = uapi.requests.recv() => self.answer(Instant::now(), request),
            }
        }
    }

    /// Takes up the device's MTU and addresses. Returns whether it still exists.
    fn follow_device(&mut self) -> Result<bool> {
        let index = self.plane.tun();
        let interfaces = self.netlink.interfaces().context("the interfaces cannot be listed")?;
        let Some(interface) = interfaces.into_iter().find(|interface| Some(interface.index) == index) else {
            return Ok(false);
        };
        let mtu = interface.largest_packet();
        let addresses = self.netlink.addresses().context("the addresses cannot be listed")?;
        let own = addresses.into_iter().filter(|address| Some(address.interface) == index && address.global);
        let own: Vec<IpAddr> = own.map(|address| address.address).collect();
        if self.plane.set_tunnel_mtu(mtu) | self.plane.follow_hops(&self.network, &own, Behind::Anything) {
            self.handshakes.changed(Due { table: true, ..Due::default() });
        }
        Ok(true)
    }

    /// Does everything that follows from a change.
    fn follow_up(&mut self, now: Instant) {
        self.handshakes.take_events(now, 0);
        if let Some(notices) = self.plane.renew(now) {
            notices.into_iter().for_each(|notice| self.handshakes.handle_notice(now, notice));
            self.handshakes.set_sender(now, self.plane.sender());
            self.handshakes.changed(Due::PEERS);
        }
        let (due, commands) = self.handshakes.take_due();
        self.plane.workers_mut().command(commands);
        if due.prefixes {
            self.plane.renew_allowed_ips(&self.handshakes.peers);
        }
        if due.endpoints {
            self.plane.find_paths(&mut self.netlink, &self.network, &self.handshakes.peers, true);
        }
        if due != Due::default() {
            self.plane.publish(&self.handshakes.peers);
        }
        self.handshakes.transmit();
        let lost = self.plane.workers_mut().send_commands();
        self.handshakes.lost(lost);
    }

    fn take_notices(&mut self, now: Instant) -> Result<()> {
        for notice in self.plane.workers().notices(NOTICES_PER_TURN) {
            if let Notice::WorkerDied { worker } = notice {
                bail!("worker {worker} panicked");
            }
            self.handshakes.handle_notice(now, notice);
        }
        Ok(())
    }

    fn answer(&mut self, now: Instant, request: Request) {
        // Whoever asked may be gone.
        match request {
            Request::Get { reply } => drop(reply.send(Ok(self.show()))),
            Request::Set { change, reply } => {
                let outcome = self.set(now, change);
                self.follow_up(now);
                let _ = reply.send(outcome);
            }
        }
    }

    fn show(&self) -> uapi::Device {
        uapi::Device {
            private_key: self.has_key.then(|| self.private_key.clone()),
            listen_port: self.plane.local_port(),
            fwmark: self.plane.mark(),
            peers: self.handshakes.peers.iter().map(|peer| peer_state(&self.handshakes, peer)).collect(),
        }
    }

    fn set(&mut self, now: Instant, change: SetDevice) -> Result<(), Errno> {
        if change.listen_port.is_some_and(|port| !self.plane.move_to_port(now, port)) {
            return Err(Errno::AddressInUse);
        }
        if let Some(mark) = change.fwmark {
            self.plane.set_mark(now, mark);
        }
        match change.private_key {
            Change::Keep => {}
            Change::Clear => {
                self.set_key(PrivateKey::generate().map_err(|_| Errno::Io)?);
                self.has_key = false;
            }
            // As the kernel does: reading the same file again changes no session.
            Change::To(key) if key == self.private_key => {}
            Change::To(key) => {
                self.set_key(key);
                self.has_key = true;
            }
        }
        set_peers(&mut self.handshakes, None, now, change.replace_peers, change.peers)
    }

    fn set_key(&mut self, key: PrivateKey) {
        self.handshakes.set_private_key(&key);
        self.private_key = key;
    }
}

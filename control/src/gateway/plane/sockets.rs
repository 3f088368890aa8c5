//! The tunnel's UDP sockets: one per worker, all on one port.

use std::io;
use std::time::Instant;

use anyhow::{Result, anyhow};
use penstock_dataplane::ports::udp::{UdpConfig, UdpPort, UdpSender};

use super::PlaneConfig;
use crate::problem::Problems;
use crate::profile::LocalPort;

/// The subject of the problem that the tunnel's port is not the profile's.
pub const PORT: &str = "LocalPort";
/// The same for its firewall mark.
pub const MARK: &str = "FwMark";

/// Bound sockets; there is at least one.
pub struct Sockets {
    senders: Vec<UdpSender>,
    port: u16,
}

impl Sockets {
    /// Binds a socket for each worker to the configured port.
    ///
    /// # Errors
    /// In one sentence: the port is not available.
    pub fn bind(config: &PlaneConfig, workers: u32) -> Result<Self> {
        let port = match config.local_port {
            LocalPort::Random => 0,
            LocalPort::Pinned(port) => port,
        };
        let bound = UdpPort::bind(&settings(config, port, workers as usize)).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => anyhow!("UDP port {port} is in use by another program"),
            io::ErrorKind::PermissionDenied => {
                anyhow!("UDP port {port} is not permitted: missing CAP_NET_BIND_SERVICE")
            }
            _ => anyhow!("cannot bind UDP port {port}: {e}"),
        })?;
        let senders: Vec<UdpSender> = bound.iter().map(UdpPort::sender).collect();
        let port = senders.first().map(UdpSender::local_port).ok_or_else(|| anyhow!("there is no worker"))?;
        Ok(Self { senders, port })
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many sockets there are.
    pub fn count(&self) -> usize {
        self.senders.len()
    }

    /// For sending from the first socket.
    pub fn sender(&self) -> UdpSender {
        self.senders[0].clone()
    }

    /// All of them, in the order of the workers.
    pub fn all(&self) -> &[UdpSender] {
        &self.senders
    }

    /// The workers' ports on the sockets.
    pub fn ports(&self, config: &PlaneConfig) -> Vec<UdpPort> {
        let settings = settings(config, self.port, self.count());
        self.senders.iter().enumerate().map(|(i, sender)| UdpPort::on(sender, i as u32, &settings)).collect()
    }

    /// Whether the kernel may merge received datagrams.
    pub fn set_gro(&self, gro: bool) {
        self.senders.iter().for_each(|sender| sender.set_gro(gro));
    }

    /// Sets the firewall mark of what is sent.
    pub fn set_mark(&self, now: Instant, mark: u32, problems: &mut Problems) {
        match self.senders.iter().filter(|sender| sender.mark() != mark).try_for_each(|s| s.set_mark(mark)) {
            Ok(()) => problems.solved(MARK),
            Err(e) => {
                let sentence = format!("cannot set the mark {mark} on the sockets: {e}");
                problems.note(now, MARK, &sentence, "give the gateway CAP_NET_ADMIN, and reload it");
            }
        }
    }

    /// Binds other sockets if the port or their number is not as wanted. Returns whether the sockets have changed.
    pub fn renew(&mut self, now: Instant, config: &PlaneConfig, workers: u32, problems: &mut Problems) -> bool {
        let moves = matches!(config.local_port, LocalPort::Pinned(port) if port != self.port);
        let wanted = workers as usize;
        if !moves {
            problems.solved(PORT);
        }
        if (!moves && self.count() == wanted) || !problems.may_try(now, PORT) {
            return false;
        }
        let bound = if moves {
            Self::bind(config, workers).map(|sockets| *self = sockets)
        } else {
            self.senders.truncate(wanted);
            let more = self.senders[0].siblings(&settings(config, self.port, wanted), wanted - self.count());
            more.map(|more| self.senders.extend(more)).map_err(Into::into)
        };
        match bound {
            Ok(()) => {
                problems.solved(PORT);
                true
            }
            Err(e) => {
                let sentence = format!("{e:#}; the tunnel stays on port {}", self.port);
                problems.failed(now, PORT, &sentence, "free the port, or set another LocalPort and reload");
                false
            }
        }
    }
}

fn settings(config: &PlaneConfig, port: u16, workers: usize) -> UdpConfig {
    // Not bound to the WAN interface, so that what the kernel routes elsewhere is carried as well.
    UdpConfig { interface: None, port, workers, gso: config.udp_gso, mark: config.mark }
}

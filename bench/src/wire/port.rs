//! The sockets of one interface.

use crate::BATCH;
use crate::generator::Generator;
use crate::packet::Template;
use crate::report::context::driver;
use crate::socket::{Batch, Filter, MAX_QUEUES, Memory, RING_SIZE, Sender, SetupError, Socket};

use super::sink::Inlet;
use super::{Place, Sink};

/// Frames, on all queues together, that wait for a sink which does not get a core at once: 40 ms of 400,000 packets/s,
/// 32 MiB. With [`RING_SIZE`], the least of a queue, a sink that slept on two shared cores lost packets at half of that.
const SINK_RINGS: u32 = 1 << 14;

/// An interface, open to send, to receive, or both.
#[derive(Debug)]
pub struct Port {
    outlet: Option<(Sender, Batch, Batch)>,
    inlets: Vec<Inlet>,
    described: String,
}

impl Port {
    /// Opens an interface. It sends from queue 0 and receives from every queue.
    pub fn open(place: &Place, sends: bool, receives: bool) -> anyhow::Result<Port> {
        Ok(place
            .namespace
            .enter(|| if receives { Port::receiver(&place.name, sends) } else { Port::sender(&place.name) })??)
    }

    fn sender(interface: &str) -> Result<Port, SetupError> {
        let (memory, free) = Memory::new(RING_SIZE)?;
        let socket = Socket::sender(&memory, interface, 0)?;
        let described = socket.describe();
        Ok(Port { outlet: Some((socket.sender, memory.batch(BATCH), free)), inlets: vec![], described })
    }

    fn receiver(interface: &str, sends: bool) -> Result<Port, SetupError> {
        let redirect = Socket::attach(interface, Filter::Udp)?;
        let queues = driver::receive_queues(interface).unwrap_or(1).min(MAX_QUEUES).next_power_of_two();
        let ring = (SINK_RINGS / queues).max(RING_SIZE);
        let mut port = Port { outlet: None, inlets: vec![], described: String::new() };
        for queue in 0..MAX_QUEUES {
            // A ring of frames to receive into, the batch that is looked at meanwhile, and the generator's own.
            let sends = sends && queue == 0;
            let frames_to_send = if sends { RING_SIZE } else { 0 };
            let (memory, mut free) = Memory::with_rings(ring + BATCH as u32 + frames_to_send, ring)?;
            let mut to_send = memory.batch(0);
            free.give(&mut to_send, frames_to_send as usize);
            let socket = match Socket::shared_receiver(&memory, interface, queue, &redirect, &mut free) {
                Ok(socket) => socket,
                // There are no more queues.
                Err(SetupError::Bind { source, .. }) if queue > 0 && source.raw_os_error() == Some(libc::EINVAL) => {
                    break;
                }
                Err(error) => return Err(error),
            };
            if queue == 0 {
                port.described = socket.describe();
            }
            if sends {
                port.outlet = Some((socket.sender, memory.batch(BATCH), to_send));
            }
            port.inlets.push(Inlet { receiver: socket.receiver, batch: memory.batch(BATCH), free, caught_up: 0 });
        }
        if port.inlets.len() > 1 {
            port.described.push_str(&format!(", {} queues", port.inlets.len()));
        }
        Ok(port)
    }

    /// One line for people: modes that were really bound.
    pub fn describe(&self) -> &str {
        &self.described
    }

    /// The generator, once; `None` if the port does not send.
    pub fn generator(&mut self, template: Template) -> Option<Generator> {
        self.outlet.take().map(|(sender, batch, free)| Generator::over(sender, batch, free, template))
    }

    /// The sink; nothing comes if the port does not receive.
    pub fn sink(&mut self) -> Sink {
        Sink::new(std::mem::take(&mut self.inlets))
    }
}

//! The sockets of one interface.

use super::BATCH;
use super::generator::Generator;
use super::interface::Interface;
use super::packet::Template;
use super::sink::{Inlet, Sink};
use super::socket::{Batch, Filter, MAX_QUEUES, Memory, RING_SIZE, Sender, SetupError, Socket};

/// Frames of all queues together, so that packets can wait for a sink without a core: 40 ms of 400,000 packets/s, 32
/// MiB. With [`RING_SIZE`], the minimum for a queue, a sink that slept on two shared cores lost packets at half of that
/// rate.
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
    pub fn open(interface: &Interface, sends: bool, receives: bool) -> anyhow::Result<Port> {
        let open = || match receives {
            true => Port::receiver(&interface.name, sends, interface.link().map_or(1, |link| link.num_rx_queues)),
            false => Port::sender(&interface.name),
        };
        Ok(interface.namespace.try_enter(open)??)
    }

    fn sender(interface: &str) -> Result<Port, SetupError> {
        let (memory, free) = Memory::new(RING_SIZE)?;
        let socket = Socket::sender(&memory, interface, 0)?;
        let described = socket.describe();
        Ok(Port { outlet: Some((socket.sender, memory.batch(BATCH), free)), inlets: vec![], described })
    }

    fn receiver(interface: &str, sends: bool, queues: u32) -> Result<Port, SetupError> {
        let redirect = Socket::attach(interface, Filter::Udp)?;
        let ring = (SINK_RINGS / queues.min(MAX_QUEUES).next_power_of_two()).max(RING_SIZE);
        let mut port = Port { outlet: None, inlets: vec![], described: String::new() };
        for queue in 0..MAX_QUEUES {
            // Room for a ring of frames to receive into, the current batch, and the generator's own.
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

    /// The bound modes as one line for people.
    pub fn describe(&self) -> &str {
        &self.described
    }

    /// The generator, which can be taken once; `None` if the port does not send.
    pub fn generator(&mut self, template: Template) -> Option<Generator> {
        self.outlet.take().map(|(sender, batch, free)| Generator::over(sender, batch, free, template))
    }

    /// The sink; it receives nothing if the port does not receive.
    pub fn sink(&mut self) -> Sink {
        Sink::new(std::mem::take(&mut self.inlets))
    }
}

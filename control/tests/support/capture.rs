//! What passed an interface: `tcpdump` writes it, this module reads it.

use super::topology::Topology;
use super::traffic::CLEAR_TEXT_MARKER;
use super::{PATIENCE, eventually};
use penstock_netns::{Namespace, Process};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A running capture of one interface.
pub struct Capture {
    process: Process,
    file: PathBuf,
}

/// One captured Ethernet frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
}

/// The UDP datagram in a frame.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: Vec<u8>,
}

impl Capture {
    /// Starts the capture and waits until it sees packets. `filter` is in tcpdump's syntax.
    pub fn start(namespace: &Namespace, interface: &str, filter: &str, scratch: &Path) -> Self {
        let number = penstock_netns::unique();
        let file = scratch.join(format!("capture-{number}.pcap"));
        let log = scratch.join(format!("capture-{number}.log"));
        let path = file.to_str().expect("UTF-8");
        let mut words = vec!["tcpdump", "-Z", "root", "-n", "-U", "--immediate-mode", "-s", "0"];
        words.extend(["-B", "32768", "-i", interface, "-w", path]);
        words.extend(filter.split_whitespace());
        let process = namespace.spawn(&words, &log);
        eventually(PATIENCE, "tcpdump listens", || process.log().contains("listening on"));
        Self { process, file }
    }

    /// A capture of everything that passes the switch between the gateways.
    pub fn of_wan(topology: &Topology) -> Self {
        Self::start(topology.middle(), "a0", "", topology.scratch())
    }

    /// Ends the capture and returns what it saw.
    pub fn stop(mut self) -> Vec<Frame> {
        // Packets that are still on their way through the kernel to the file.
        super::pause(150);
        // On a busy machine it may have been off its core all the time. Once it sleeps, it has read everything.
        let stat = format!("/proc/{}/stat", self.process.pid());
        let sleeps = || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "));
        eventually(PATIENCE, "tcpdump has read everything", sleeps);
        self.process.interrupt();
        frames(&std::fs::read(&self.file).expect("capture file"))
    }
}

/// The frames of a little-endian pcap file; a truncated last one is left out.
fn frames(file: &[u8]) -> Vec<Frame> {
    assert_eq!(file.get(..4), Some([0xd4, 0xc3, 0xb2, 0xa1].as_slice()), "a pcap file");
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
        let Some((bytes, after)) = after.split_at_checked(length as usize) else {
            break;
        };
        frames.push(Frame { bytes: bytes.to_vec() });
        rest = after;
    }
    frames
}

impl Frame {
    /// Source, destination, protocol and the rest of an IP packet.
    pub fn ip(&self) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
        let packet = self.bytes.get(14..)?;
        match self.bytes.get(12..14)? {
            [0x08, 0x00] => {
                let header = usize::from(packet.first()? & 15) * 4;
                let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                let (source, destination) = (Ipv4Addr::from(source), Ipv4Addr::from(destination));
                let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                // A super-packet on a veth has length 0.
                let end = if length == 0 { packet.len() } else { length.min(packet.len()) };
                Some((source.into(), destination.into(), packet[9], packet.get(header..end)?))
            }
            [0x86, 0xdd] => {
                let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
                Some((source.into(), destination.into(), packet[6], packet.get(40..)?))
            }
            _ => None,
        }
    }

    pub fn datagram(&self) -> Option<Datagram> {
        let (source, destination, 17, udp) = self.ip()? else {
            return None;
        };
        let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
        Some(Datagram {
            source: SocketAddr::new(source, port(0)?),
            destination: SocketAddr::new(destination, port(2)?),
            payload: udp.get(8..)?.to_vec(),
        })
    }

    /// The type of the WireGuard message in it: 1 to 4.
    pub fn message_type(&self) -> Option<u8> {
        let payload = self.datagram()?.payload;
        match payload.get(..4)? {
            [kind @ 1..=4, 0, 0, 0] => Some(*kind),
            _ => None,
        }
    }

    pub fn is_clear_text(&self, topology: &Topology) -> bool {
        let inside = |address| topology.a.is_inside(address) || topology.b.is_inside(address);
        self.ip().is_some_and(|(source, destination, ..)| inside(source) || inside(destination))
            || self.bytes.windows(CLEAR_TEXT_MARKER.len()).any(|part| part == CLEAR_TEXT_MARKER)
    }
}

/// Panics with the sites' first readable packet.
pub fn assert_no_clear_text(frames: &[Frame], topology: &Topology) {
    let leaks: Vec<_> = frames.iter().filter(|frame| frame.is_clear_text(topology)).collect();
    if let Some(first) = leaks.first() {
        let header = first
            .ip()
            .map(|(source, destination, protocol, _)| format!("{source} to {destination}, protocol {protocol}"));
        panic!("{} packets in clear text on the WAN, the first {header:?}", leaks.len());
    }
}

/// How many messages of one type `frames` hold. What was sent as one bundle with segmentation offload is one frame on a
/// veth; each message in it begins with the same type and receiver.
pub fn count_messages(frames: &[Frame], kind: u8) -> usize {
    let of_kind = frames.iter().filter(|frame| frame.message_type() == Some(kind)).filter_map(Frame::datagram);
    let messages = |payload: &[u8]| payload.windows(8).filter(|bytes| *bytes == &payload[..8]).count();
    of_kind.map(|datagram| messages(&datagram.payload)).sum()
}

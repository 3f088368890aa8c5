//! A packet as it arrived.

use std::net::IpAddr;

use penstock_wire::IpHeader;

use super::{ETHERNET_LEN, UDP, UDP_LEN, fold, pseudo_header_sum, sum};
use crate::traffic::payload;

/// A UDP packet as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// The IP packet, without the padding of a short Ethernet frame.
    pub packet: &'a [u8],
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
    udp_at: usize,
}

impl<'a> Datagram<'a> {
    /// Reads an Ethernet frame; `None` if it is not UDP in an IP packet without extension headers, whole
    /// and unfragmented.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Option<Datagram<'a>> {
        let (ethernet, rest) = frame.split_at_checked(ETHERNET_LEN)?;
        let ip = IpHeader::<IpAddr, _>::read(rest).ok()?;
        let ethertype = if ip.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        if ethernet[12..] != ethertype || ip.protocol != UDP || ip.is_fragment() {
            return None;
        }
        let packet = rest.get(..ip.total_len)?;
        let udp = packet.get(ip.len..)?.first_chunk::<UDP_LEN>()?;
        if usize::from(u16::from_be_bytes([udp[4], udp[5]])) != ip.total_len - ip.len {
            return None;
        }
        Some(Datagram {
            packet,
            source_port: u16::from_be_bytes([udp[0], udp[1]]),
            destination_port: u16::from_be_bytes([udp[2], udp[3]]),
            udp_at: ip.len,
        })
    }

    /// UDP's payload.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.packet[self.udp_at + UDP_LEN..]
    }

    /// Are both checksums right and the payload's pattern whole? A UDP checksum of 0 is accepted over IPv4.
    pub fn is_intact(&self) -> bool {
        let (header, datagram) = self.packet.split_at(self.udp_at);
        let addresses = match header[0] >> 4 {
            4 if fold(sum(header)) != 0xffff => return false,
            4 => &header[12..20],
            _ => &header[8..40],
        };
        let without_checksum = datagram[6..8] == [0, 0];
        let checksum_is_right = if without_checksum {
            header[0] >> 4 == 4
        } else {
            fold(pseudo_header_sum(addresses, datagram.len() as u16) + sum(datagram)) == 0xffff
        };
        checksum_is_right && payload::pattern_is_intact(self.payload())
    }
}

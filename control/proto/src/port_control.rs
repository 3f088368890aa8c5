//! The messages by which a router is asked to let a UDP port in: PCP (RFC 6887, sections 7 and 11) and its forerunner
//! NAT-PMP (RFC 6886, section 3).
//!
//! A [`Request`] knows its answer. All other datagrams are ignored: others answer from the same port, and late answers to
//! earlier requests arrive in between.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

/// Where routers listen.
pub const PORT: u16 = 5351;
/// Longest message of either protocol (RFC 6887, section 7).
pub const MESSAGE_MAX: usize = 1100;

const NAT_PMP: u8 = 0;
const PCP: u8 = 2;
/// NAT-PMP's opcodes: for the external address, and for a mapping of UDP.
const ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
/// PCP's opcode for a mapping.
const MAP: u8 = 1;
/// The bit that an answer sets in the opcode of its request.
const ANSWER: u8 = 0x80;
const UDP: u8 = 17;
/// The result "unsupported version", in both protocols.
const VERSION: u16 = 1;
/// Length of the time since the router has started, which is in every answer.
const EPOCH: usize = 4;

/// Names one mapping, so that nobody else can change it.
pub type Nonce = [u8; 12];

/// What a router may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// PCP: a mapping, or with a lifetime of 0 its deletion.
    PcpMap {
        /// The mapping's nonce.
        nonce: Nonce,
        /// Our address, as the router sees it.
        client: IpAddr,
        /// The port here.
        port: NonZeroU16,
        /// The preferred external port.
        external: u16,
        /// In seconds.
        lifetime: u32,
    },
    /// NAT-PMP: the router's external address.
    NatPmpAddress,
    /// NAT-PMP: a mapping, or with a lifetime of 0 its deletion.
    NatPmpMap {
        /// The port here.
        port: NonZeroU16,
        /// The preferred external port.
        external: u16,
        /// In seconds.
        lifetime: u32,
    },
}

/// What a router says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its external address.
    Address(Ipv4Addr),
    /// A mapping, or that there is none.
    Mapping {
        /// The external address; NAT-PMP does not include it.
        address: Option<IpAddr>,
        /// The external port.
        port: u16,
        /// In seconds.
        lifetime: u32,
    },
}

/// Why a router does not do what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not speak this protocol.
    #[error("the router does not speak this protocol")]
    Version,
    /// Another reason, by its number (RFC 6887, section 7.4; RFC 6886, section 3.5).
    #[error("the router refuses with code {0}")]
    Code(u16),
}

impl Request {
    /// The datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::PcpMap { nonce, client, port, external, lifetime } => [
                &[PCP, MAP, 0, 0][..],
                &lifetime.to_be_bytes(),
                &mapped(*client).octets(),
                nonce,
                &[UDP, 0, 0, 0],
                &port.get().to_be_bytes(),
                &external.to_be_bytes(),
                &any(*client).octets(),
            ]
            .concat(),
            Self::NatPmpAddress => vec![NAT_PMP, ADDRESS],
            Self::NatPmpMap { port, external, lifetime } => [
                &[NAT_PMP, MAP_UDP, 0, 0][..],
                &port.get().to_be_bytes(),
                &external.to_be_bytes(),
                &lifetime.to_be_bytes(),
            ]
            .concat(),
        }
    }

    /// What a datagram from the router answers to this request; `None` if it is not an answer to it.
    #[must_use]
    pub fn answer(&self, datagram: &[u8]) -> Option<Result<Answer, Refusal>> {
        let (version, opcode) = match self {
            Self::PcpMap { .. } => (PCP, MAP),
            Self::NatPmpAddress => (NAT_PMP, ADDRESS),
            Self::NatPmpMap { .. } => (NAT_PMP, MAP_UDP),
        };
        let (&[its_version, its_opcode, high, low], body) = datagram.split_first_chunk()?;
        // PCP has one byte for it.
        let result = if its_version == PCP { u16::from(low) } else { u16::from_be_bytes([high, low]) };
        if result == VERSION && its_opcode & ANSWER != 0 {
            return Some(Err(Refusal::Version));
        }
        if (its_version, its_opcode) != (version, opcode | ANSWER) {
            return None;
        }
        let answer = match self {
            // A refusal, too, repeats what was asked.
            Self::PcpMap { nonce, port, .. } => pcp_mapping(body, nonce, *port)?,
            _ if result != 0 => return Some(Err(Refusal::Code(result))),
            Self::NatPmpAddress => Answer::Address(Ipv4Addr::from(*body.get(EPOCH..)?.first_chunk::<4>()?)),
            Self::NatPmpMap { port, .. } => {
                let (its_port, rest) = body.get(EPOCH..)?.split_first_chunk()?;
                let (external, rest) = rest.split_first_chunk()?;
                let lifetime = u32::from_be_bytes(*rest.first_chunk()?);
                if u16::from_be_bytes(*its_port) != port.get() {
                    return None;
                }
                Answer::Mapping { address: None, port: u16::from_be_bytes(*external), lifetime }
            }
        };
        Some(if result == 0 { Ok(answer) } else { Err(Refusal::Code(result)) })
    }
}

/// The mapping that PCP grants, if it is for this nonce and port.
fn pcp_mapping(body: &[u8], nonce: &Nonce, port: NonZeroU16) -> Option<Answer> {
    let (lifetime, rest) = body.split_first_chunk()?;
    let (its_nonce, rest) = rest.get(EPOCH + 12..)?.split_first_chunk::<12>()?;
    let (&[protocol, _, _, _], rest) = rest.split_first_chunk()?;
    let (its_port, rest) = rest.split_first_chunk()?;
    let (external, rest) = rest.split_first_chunk()?;
    let address = Ipv6Addr::from(*rest.first_chunk::<16>()?).to_canonical();
    let same = its_nonce == nonce && protocol == UDP && u16::from_be_bytes(*its_port) == port.get();
    let (port, lifetime) = (u16::from_be_bytes(*external), u32::from_be_bytes(*lifetime));
    same.then_some(Answer::Mapping { address: Some(address), port, lifetime })
}

/// PCP has room for one kind of address (RFC 6887, section 5).
fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// The suggested external address: any address of the client's IP version.
fn any(client: IpAddr) -> Ipv6Addr {
    match client {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = [7; 12];
    const PORT_HERE: NonZeroU16 = NonZeroU16::new(0x1234).unwrap();
    const PCP_MAP: Request = Request::PcpMap {
        nonce: NONCE,
        client: IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2)),
        port: PORT_HERE,
        external: 0x5678,
        lifetime: 1200,
    };
    const NAT_PMP_MAP: Request = Request::NatPmpMap { port: PORT_HERE, external: 0x5678, lifetime: 1200 };

    fn pcp_answer(result: u8) -> Vec<u8> {
        let mut answer = vec![2, 0x81, 0, result, 0, 0, 0, 60, 0, 0, 0, 9];
        answer.extend([0; 12]);
        answer.extend(NONCE);
        answer.extend([17, 0, 0, 0, 0x12, 0x34, 0x9a, 0xbc]);
        answer.extend(Ipv4Addr::new(203, 0, 113, 5).to_ipv6_mapped().octets());
        answer
    }

    #[test]
    fn requests_are_as_the_rfcs_draw_them() {
        let mut pcp = vec![2, 1, 0, 0, 0, 0, 4, 0xb0];
        pcp.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 2]);
        pcp.extend(NONCE);
        pcp.extend([17, 0, 0, 0, 0x12, 0x34, 0x56, 0x78]);
        pcp.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(PCP_MAP.encode(), pcp);
        assert_eq!(Request::NatPmpAddress.encode(), [0, 0]);
        assert_eq!(NAT_PMP_MAP.encode(), [0, 1, 0, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 4, 0xb0]);
    }

    #[test]
    fn answers_say_what_is_granted() {
        let address = Some(Ipv4Addr::new(203, 0, 113, 5).into());
        let granted = Answer::Mapping { address, port: 0x9abc, lifetime: 60 };
        assert_eq!(PCP_MAP.answer(&pcp_answer(0)), Some(Ok(granted)));
        assert_eq!(PCP_MAP.answer(&pcp_answer(8)), Some(Err(Refusal::Code(8))));
        let address = [0, 0x80, 0, 0, 0, 0, 0, 9, 203, 0, 113, 5];
        assert_eq!(Request::NatPmpAddress.answer(&address), Some(Ok(Answer::Address([203, 0, 113, 5].into()))));
        let mapping = [0, 0x81, 0, 0, 0, 0, 0, 9, 0x12, 0x34, 0x9a, 0xbc, 0, 0, 0, 60];
        let granted = Answer::Mapping { address: None, port: 0x9abc, lifetime: 60 };
        assert_eq!(NAT_PMP_MAP.answer(&mapping), Some(Ok(granted)));
        assert_eq!(NAT_PMP_MAP.answer(&[0, 0x81, 0, 3]), Some(Err(Refusal::Code(3))));
    }

    #[test]
    fn a_router_that_speaks_one_of_them_says_so_when_asked_by_the_other() {
        assert_eq!(PCP_MAP.answer(&[0, 0x81, 0, 1, 0, 0, 0, 9]), Some(Err(Refusal::Version)));
        assert_eq!(PCP_MAP.answer(&[0, 0x80, 0, 1]), Some(Err(Refusal::Version)));
        assert_eq!(NAT_PMP_MAP.answer(&[2, 0x81, 0, 1]), Some(Err(Refusal::Version)));
    }

    /// Another version, opcode, nonce, protocol or port, a request, or one that is cut off.
    #[test]
    fn what_answers_something_else_is_no_answer() {
        for (request, good, significant) in [
            (PCP_MAP, pcp_answer(0), [0, 1, 24, 35, 36, 40, 41].as_slice()),
            (NAT_PMP_MAP, vec![0, 0x81, 0, 0, 0, 0, 0, 9, 0x12, 0x34, 1, 2, 0, 0, 0, 60], &[0, 1, 8, 9]),
            (Request::NatPmpAddress, vec![0, 0x80, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4], &[0, 1]),
        ] {
            assert!(matches!(request.answer(&good), Some(Ok(_))), "{request:?}");
            for place in significant {
                let mut other = good.clone();
                other[*place] ^= 0x40;
                assert_eq!(request.answer(&other), None, "{request:?}, byte {place}");
            }
            for length in 0..good.len() {
                assert_eq!(request.answer(&good[..length]), None, "{request:?}, {length} bytes");
            }
            assert_eq!(request.answer(&request.encode()), None, "{request:?}");
        }
    }
}

//! The wire formats of WireGuard's handshake (paper 5.4): parsing with length checks, and encoding.
//!
//! Nothing here is secret and nothing is authenticated: a parsed message has the right type, zero reserved bytes and
//! the exact length, no more. Integers are little-endian.

use crate::Reject;

/// Length of a handshake initiation in bytes.
pub const INITIATION_LENGTH: usize = 148;
/// Length of a handshake response in bytes.
pub const RESPONSE_LENGTH: usize = 92;
/// Length of a cookie reply in bytes.
pub const COOKIE_REPLY_LENGTH: usize = 64;
/// Length of MAC1 and of MAC2 in bytes; they end an initiation and a response, in this order.
pub const MAC_LENGTH: usize = 16;
/// Length of an AEAD tag in bytes.
pub const TAG_LENGTH: usize = 16;
/// Length of a TAI64N timestamp in bytes.
pub const TIMESTAMP_LENGTH: usize = 12;

/// First byte of a handshake initiation.
pub const INITIATION: u8 = 1;
/// First byte of a handshake response.
pub const RESPONSE: u8 = 2;
/// First byte of a cookie reply.
pub const COOKIE_REPLY: u8 = 3;
/// First byte of transport data, which belongs to the data plane.
pub const TRANSPORT_DATA: u8 = 4;

/// A handshake message of a known type and the right length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Type 1.
    Initiation(Initiation),
    /// Type 2.
    Response(Response),
    /// Type 3.
    CookieReply(CookieReply),
}

/// Type 1: the initiator's first message, without its MACs, which are computed over the encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initiation {
    /// The initiator's index for the session to be.
    pub sender: u32,
    /// The initiator's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// The initiator's static public key, sealed.
    pub sealed_static: [u8; 32 + TAG_LENGTH],
    /// A TAI64N timestamp, sealed.
    pub sealed_timestamp: [u8; TIMESTAMP_LENGTH + TAG_LENGTH],
}

/// Type 2: the responder's answer, without its MACs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The responder's index for the session.
    pub sender: u32,
    /// The initiator's index, from its initiation.
    pub receiver: u32,
    /// The responder's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// An empty plaintext, sealed.
    pub sealed_nothing: [u8; TAG_LENGTH],
}

/// Type 3: what a gateway under load sends instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieReply {
    /// The sender index of the message that goes unanswered.
    pub receiver: u32,
    /// XChaCha20-Poly1305 nonce.
    pub nonce: [u8; 24],
    /// The cookie, sealed.
    pub sealed_cookie: [u8; MAC_LENGTH + TAG_LENGTH],
}

impl Message {
    /// Reads a datagram.
    ///
    /// # Errors
    /// [`Reject::Empty`], [`Reject::UnknownType`], [`Reject::TransportData`], [`Reject::Length`].
    pub fn parse(datagram: &[u8]) -> Result<Self, Reject> {
        let (&kind, _) = datagram.split_first().ok_or(Reject::Empty)?;
        if datagram.get(1..4).is_some_and(|reserved| reserved != [0; 3]) {
            return Err(Reject::UnknownType);
        }
        match kind {
            INITIATION => Initiation::read(exact(datagram)?).map(Self::Initiation),
            RESPONSE => Response::read(exact(datagram)?).map(Self::Response),
            COOKIE_REPLY => CookieReply::read(exact(datagram)?).map(Self::CookieReply),
            TRANSPORT_DATA => Err(Reject::TransportData),
            _ => Err(Reject::UnknownType),
        }
    }
}

impl Initiation {
    fn read(datagram: &[u8; INITIATION_LENGTH]) -> Result<Self, Reject> {
        let mut fields = Fields(&datagram[4..]);
        Ok(Self {
            sender: u32::from_le_bytes(fields.take()?),
            ephemeral: fields.take()?,
            sealed_static: fields.take()?,
            sealed_timestamp: fields.take()?,
        })
    }

    /// The message as it is sent, with its MACs still zero.
    #[must_use]
    pub fn encode(&self) -> [u8; INITIATION_LENGTH] {
        let mut datagram = [0; INITIATION_LENGTH];
        datagram[0] = INITIATION;
        datagram[4..8].copy_from_slice(&self.sender.to_le_bytes());
        datagram[8..40].copy_from_slice(&self.ephemeral);
        datagram[40..88].copy_from_slice(&self.sealed_static);
        datagram[88..116].copy_from_slice(&self.sealed_timestamp);
        datagram
    }
}

impl Response {
    fn read(datagram: &[u8; RESPONSE_LENGTH]) -> Result<Self, Reject> {
        let mut fields = Fields(&datagram[4..]);
        Ok(Self {
            sender: u32::from_le_bytes(fields.take()?),
            receiver: u32::from_le_bytes(fields.take()?),
            ephemeral: fields.take()?,
            sealed_nothing: fields.take()?,
        })
    }

    /// The message as it is sent, with its MACs still zero.
    #[must_use]
    pub fn encode(&self) -> [u8; RESPONSE_LENGTH] {
        let mut datagram = [0; RESPONSE_LENGTH];
        datagram[0] = RESPONSE;
        datagram[4..8].copy_from_slice(&self.sender.to_le_bytes());
        datagram[8..12].copy_from_slice(&self.receiver.to_le_bytes());
        datagram[12..44].copy_from_slice(&self.ephemeral);
        datagram[44..60].copy_from_slice(&self.sealed_nothing);
        datagram
    }
}

impl CookieReply {
    fn read(datagram: &[u8; COOKIE_REPLY_LENGTH]) -> Result<Self, Reject> {
        let mut fields = Fields(&datagram[4..]);
        Ok(Self { receiver: u32::from_le_bytes(fields.take()?), nonce: fields.take()?, sealed_cookie: fields.take()? })
    }

    /// The message as it is sent.
    #[must_use]
    pub fn encode(&self) -> [u8; COOKIE_REPLY_LENGTH] {
        let mut datagram = [0; COOKIE_REPLY_LENGTH];
        datagram[0] = COOKIE_REPLY;
        datagram[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        datagram[8..32].copy_from_slice(&self.nonce);
        datagram[32..64].copy_from_slice(&self.sealed_cookie);
        datagram
    }
}

fn exact<const N: usize>(datagram: &[u8]) -> Result<&[u8; N], Reject> {
    datagram.try_into().map_err(|_| Reject::Length)
}

/// The rest of a message while its fields are read in order.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Reject> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Reject::Length)?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_but_the_right_one_is_refused() {
        for (kind, right) in
            [(INITIATION, INITIATION_LENGTH), (RESPONSE, RESPONSE_LENGTH), (COOKIE_REPLY, COOKIE_REPLY_LENGTH)]
        {
            for length in 1..400 {
                let mut datagram = vec![0; length];
                datagram[0] = kind;
                let parsed = Message::parse(&datagram);
                if length == right {
                    assert!(parsed.is_ok());
                } else {
                    assert_eq!(parsed, Err(Reject::Length), "type {kind}, {length} bytes");
                }
            }
        }
    }

    #[test]
    fn types_and_reserved_bytes_are_checked() {
        assert_eq!(Message::parse(&[]), Err(Reject::Empty));
        for kind in 0..=255 {
            let mut datagram = [0; INITIATION_LENGTH];
            datagram[0] = kind;
            let expected = match kind {
                INITIATION => {
                    assert!(Message::parse(&datagram).is_ok());
                    continue;
                }
                RESPONSE | COOKIE_REPLY => Reject::Length,
                TRANSPORT_DATA => Reject::TransportData,
                _ => Reject::UnknownType,
            };
            assert_eq!(Message::parse(&datagram), Err(expected));
        }
        for reserved in 1..4 {
            let mut datagram = [0; INITIATION_LENGTH];
            datagram[0] = INITIATION;
            datagram[reserved] = 1;
            assert_eq!(Message::parse(&datagram), Err(Reject::UnknownType));
        }
    }

    #[test]
    fn encoding_and_parsing_are_inverse() {
        let initiation =
            Initiation { sender: 0x0403_0201, ephemeral: [5; 32], sealed_static: [6; 48], sealed_timestamp: [7; 28] };
        let datagram = initiation.encode();
        assert_eq!(datagram[..8], [1, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(datagram[116..], [0; 32]);
        assert_eq!(Message::parse(&datagram), Ok(Message::Initiation(initiation)));

        let response = Response { sender: 1, receiver: 0x0403_0201, ephemeral: [5; 32], sealed_nothing: [6; 16] };
        let datagram = response.encode();
        assert_eq!(datagram[..12], [2, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(Message::parse(&datagram), Ok(Message::Response(response)));

        let reply = CookieReply { receiver: 9, nonce: [1; 24], sealed_cookie: [2; 32] };
        assert_eq!(Message::parse(&reply.encode()), Ok(Message::CookieReply(reply)));
    }
}

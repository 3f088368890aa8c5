//! Against Cloudflare's implementation, as independent evidence that the handshake is WireGuard's.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use boringtun::noise::{Tunn, TunnResult};
use penstock_proto::{Event, Gateway, Key, PeerConfig, PeerId, PublicKey, SessionKeys, generate_private_key};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::network::{open, seal};

struct Interop {
    gateway: Gateway,
    peer: PeerId,
    theirs: Tunn,
    address: SocketAddr,
    now: Instant,
    session: Option<SessionKeys>,
    promoted: bool,
    sent: u64,
    opened: Vec<Vec<u8>>,
}

/// An IPv4 packet of 32 bytes, since boringtun looks into the packets that it opens.
fn packet() -> Vec<u8> {
    let mut packet = vec![0; 32];
    packet[0] = 0x45;
    packet[3] = 32;
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet
}

impl Interop {
    fn new(preshared_key: Option<[u8; 32]>) -> Self {
        let mut rng = StdRng::seed_from_u64(3);
        let (ours, theirs) = (generate_private_key(&mut rng), generate_private_key(&mut rng));
        let (our_public, their_public) = (PublicKey::from(&ours), PublicKey::from(&theirs));
        let now = Instant::now();
        let address = "192.0.2.1:51820".parse().unwrap();
        let mut gateway = Gateway::new(ours, rng, now, SystemTime::now());
        let config = PeerConfig {
            preshared_key: preshared_key.map(Key::from),
            endpoint: Some(address),
            ..PeerConfig::default()
        };
        let peer = gateway.add_peer(now, their_public, config).unwrap();
        let theirs = Tunn::new(theirs, our_public, preshared_key, None, 7, None);
        Self { gateway, peer, theirs, address, now, session: None, promoted: false, sent: 0, opened: vec![] }
    }

    /// Passes what our gateway sends to the other, until both are silent.
    fn drain(&mut self) {
        loop {
            if let Some(event) = self.gateway.poll_event() {
                match event {
                    Event::SessionEstablished { session, .. } => {
                        (self.session, self.sent) = (Some(*session), 0);
                    }
                    Event::SessionPromoted { .. } => self.promoted = true,
                    Event::SendKeepalive { .. } => self.send(&[]),
                    _ => {}
                }
            } else if let Some(transmit) = self.gateway.poll_transmit() {
                assert_eq!(transmit.to, self.address);
                self.they_receive(&transmit.contents);
            } else {
                break;
            }
        }
    }

    fn send(&mut self, packet: &[u8]) {
        assert!(self.promoted);
        let session = self.session.as_ref().unwrap();
        let mut datagram = vec![4, 0, 0, 0];
        datagram.extend(session.remote_index.to_le_bytes());
        datagram.extend(self.sent.to_le_bytes());
        datagram.extend(seal(session, self.sent, packet));
        self.sent += 1;
        self.they_receive(&datagram);
    }

    fn they_receive(&mut self, datagram: &[u8]) {
        let mut buffer = [0; 2048];
        let mut input = datagram.to_vec();
        loop {
            match self.theirs.decapsulate(Some(self.address.ip()), &input, &mut buffer) {
                TunnResult::WriteToNetwork(answer) => {
                    let answer = answer.to_vec();
                    self.we_receive(&answer);
                    input.clear();
                }
                TunnResult::WriteToTunnelV4(packet, _) => {
                    self.opened.push(packet.to_vec());
                    return;
                }
                TunnResult::Done => return,
                other => panic!("{other:?}"),
            }
        }
    }

    fn we_receive(&mut self, datagram: &[u8]) {
        if datagram[0] != 4 {
            self.gateway.handle_datagram(self.now, self.address, datagram).unwrap();
        } else {
            let session = self.session.as_ref().unwrap();
            let index = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
            let counter = u64::from_le_bytes(datagram[8..16].try_into().unwrap());
            assert_eq!(index, session.local_index);
            let packet = open(session, counter, &datagram[16..]).unwrap();
            self.gateway.handle_confirmed(self.now, index, self.address);
            if !packet.is_empty() {
                self.opened.push(packet);
            }
        }
        self.drain();
    }

    fn theirs_send(&mut self, packet: &[u8]) {
        let mut buffer = [0; 2048];
        match self.theirs.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => {
                let datagram = datagram.to_vec();
                self.we_receive(&datagram);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn we_initiate() {
    for preshared_key in [None, Some([9; 32])] {
        let mut interop = Interop::new(preshared_key);
        assert!(interop.gateway.handle_wanted(interop.now, interop.peer));
        interop.drain();
        assert!(interop.promoted);
        interop.send(&packet());
        assert_eq!(interop.opened, [packet()]);
        interop.theirs_send(&packet());
        assert_eq!(interop.opened.len(), 2);
    }
}

#[test]
fn they_initiate() {
    for preshared_key in [None, Some([9; 32])] {
        let mut interop = Interop::new(preshared_key);
        interop.theirs_send(&packet());
        assert!(interop.promoted, "their first packet confirms the session");
        assert_eq!(interop.opened.pop().map(|packet| packet[..32].to_vec()), Some(packet()));
        interop.send(&packet());
        assert_eq!(interop.opened, [packet()]);
    }
}

#[test]
fn they_ask_for_a_cookie_and_get_a_mac2() {
    let mut interop = Interop::new(None);
    // boringtun answers ten handshakes per second and then demands cookies.
    let mut now = interop.now;
    let mut proven = false;
    for _ in 0..40 {
        now += std::time::Duration::from_secs(6);
        interop.gateway.handle_wanted(now, interop.peer);
        interop.gateway.handle_timeout(now);
        while let Some(transmit) = interop.gateway.poll_transmit() {
            proven |= transmit.contents[132..] != [0; 16];
            let mut buffer = [0; 2048];
            let from = Some(interop.address.ip());
            let answer = interop.theirs.decapsulate(from, &transmit.contents, &mut buffer);
            // Its responses are lost, its cookies are not.
            match answer {
                TunnResult::WriteToNetwork(bytes) if bytes[0] == 3 => {
                    interop.gateway.handle_datagram(now, interop.address, bytes).unwrap();
                }
                TunnResult::WriteToNetwork(_) | TunnResult::Err(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(proven);
}

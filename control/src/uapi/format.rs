//! Answers.

use std::fmt::Write;

use zeroize::Zeroizing;

use super::{Device, Errno, PeerState};

/// The answer to `get=1`. It contains secrets.
#[must_use]
pub fn format_get(device: &Device) -> Zeroizing<String> {
    // Allocated in advance: a growing buffer would leave copies of the secrets behind.
    const DEVICE: usize = 256;
    const PEER: usize = 512;
    const ALLOWED_IP: usize = 64;
    let allowed_ips: usize = device.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let length = DEVICE + PEER * device.peers.len() + ALLOWED_IP * allowed_ips;
    let mut text = Zeroizing::new(String::with_capacity(length));
    // Writing to a String cannot fail.
    let _ = write_device(&mut text, device);
    debug_assert!(text.len() <= length);
    text
}

/// The answer to `set=1`, and to a failed request.
#[must_use]
pub fn format_errno(outcome: Result<(), Errno>) -> String {
    // Negative, as `wg` expects it; it would show positive ones as unknown.
    let number = outcome.map_or_else(|errno| -(errno as i32), |()| 0);
    format!("errno={number}\n\n")
}

fn write_device(text: &mut String, device: &Device) -> std::fmt::Result {
    if let Some(key) = &device.private_key {
        writeln!(text, "private_key={}", *key.to_hex())?;
    }
    if device.listen_port != 0 {
        writeln!(text, "listen_port={}", device.listen_port)?;
    }
    if device.fwmark != 0 {
        writeln!(text, "fwmark={}", device.fwmark)?;
    }
    for peer in &device.peers {
        write_peer(text, peer)?;
    }
    text.push_str("errno=0\n\n");
    Ok(())
}

fn write_peer(text: &mut String, peer: &PeerState) -> std::fmt::Result {
    writeln!(text, "public_key={}", peer.public_key.to_hex())?;
    if let Some(key) = &peer.preshared_key {
        writeln!(text, "preshared_key={}", *key.to_hex())?;
    }
    text.push_str("protocol_version=1\n");
    if let Some(endpoint) = peer.endpoint {
        writeln!(text, "endpoint={endpoint}")?;
    }
    let handshake = peer.last_handshake.unwrap_or_default();
    writeln!(text, "last_handshake_time_sec={}", handshake.as_secs())?;
    writeln!(text, "last_handshake_time_nsec={}", handshake.subsec_nanos())?;
    writeln!(text, "tx_bytes={}", peer.tx_bytes)?;
    writeln!(text, "rx_bytes={}", peer.rx_bytes)?;
    let keepalive = peer.persistent_keepalive.unwrap_or_default();
    writeln!(text, "persistent_keepalive_interval={}", keepalive.as_secs())?;
    for prefix in &peer.allowed_ips {
        writeln!(text, "allowed_ip={prefix}")?;
    }
    Ok(())
}

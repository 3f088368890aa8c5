//! What the kernel says of an interface, by the ioctl that ethtool uses (`linux/ethtool.h`). Asked this way it is the
//! interface of the calling thread's network namespace; /sys would be that of the mount.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::ptr;

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    most: [u32; 4],
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

/// "mlx5_core 6.18.0, firmware 16.35, bus 0000:01:00.0, queues: 4 combined, MTU 1500".
pub fn describe(interface: &str) -> io::Result<String> {
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    // SAFETY: for this command the kernel reads and writes a struct ethtool_drvinfo, which DriverInfo is.
    unsafe { ask(interface, &mut info) }?;
    let mut text = field(&info.driver);
    for (label, value) in [(" ", &info.version), (", firmware ", &info.firmware), (", bus ", &info.bus)] {
        let value = field(value);
        if !value.is_empty() && value != "N/A" {
            text.push_str(label);
            text.push_str(&value);
        }
    }
    if let Ok(Channels { receive, transmit, combined, .. }) = channels(interface) {
        let kinds = [(receive, "receive"), (transmit, "transmit"), (combined, "combined")];
        let queues: Vec<String> =
            kinds.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}")).collect();
        text.push_str(", queues: ");
        text.push_str(&queues.join(", "));
    }
    text.push_str(&format!(", MTU {}", mtu(interface)?));
    Ok(text)
}

/// Queues that it receives on; `None` if its driver does not say.
pub fn receive_queues(interface: &str) -> Option<u32> {
    let Channels { receive, combined, .. } = channels(interface).ok()?;
    Some(receive + combined).filter(|count| *count > 0)
}

fn channels(interface: &str) -> io::Result<Channels> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: for this command the kernel reads and writes a struct ethtool_channels, which Channels is.
    unsafe { ask(interface, &mut channels) }?;
    Ok(channels)
}

/// Bytes of the largest packet.
fn mtu(interface: &str) -> io::Result<i32> {
    let mut question = question(interface)?;
    // SAFETY: this request reads the name and writes the number, both of which are in the question itself.
    unsafe { call(libc::SIOCGIFMTU, &mut question) }?;
    // SAFETY: the kernel has just written this one.
    Ok(unsafe { question.ifr_ifru.ifru_mtu })
}

/// Passes `request` through the ioctl.
///
/// # Safety
/// `T` begins with its command and has the layout that the kernel expects for it.
unsafe fn ask<T>(interface: &str, request: &mut T) -> io::Result<()> {
    let mut question = question(interface)?;
    question.ifr_ifru.ifru_data = ptr::from_mut(request).cast();
    // SAFETY: the request lives during the call, and the caller vouches for its layout.
    unsafe { call(libc::SIOCETHTOOL, &mut question) }
}

/// A question about this interface.
fn question(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero ifreq is valid; it is plain old data.
    let mut question: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = question.ifr_name.len() - 1;
    if interface.is_empty() || interface.len() > room {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (place, byte) in question.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte as c_char;
    }
    Ok(question)
}

/// Asks it.
///
/// # Safety
/// What the question points to, if it points to anything, is what the kernel expects for this request.
unsafe fn call(request: libc::c_ulong, question: &mut libc::ifreq) -> io::Result<()> {
    // Any socket of this namespace serves; nothing is sent.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the question lives during the call, and the caller vouches for what it points to.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request as _, question) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A C string in an array of its own.
fn field(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).trim().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_an_error() {
        for name in ["", "no-such-device", "a-name-longer-than-any-interface"] {
            assert_eq!(describe(name).unwrap_err().raw_os_error(), Some(libc::ENODEV), "{name}");
        }
    }

    #[test]
    fn the_mtu_is_the_kernels() {
        let told = std::fs::read_to_string("/sys/class/net/lo/mtu").expect("every machine has one");
        assert_eq!(mtu("lo").ok(), told.trim().parse().ok());
        assert_eq!(mtu("no-such-device").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn fields_end_at_their_zero() {
        assert_eq!(field(b"veth\0\0rest"), "veth");
        assert_eq!(field(b"full"), "full");
    }
}

//! What a gateway needs from its process and from the kernel.

/// A capability and its bit (`capability.h`).
type Capability = (&'static str, u32);

const NET_ADMIN: Capability = ("CAP_NET_ADMIN", 12);
const NET_RAW: Capability = ("CAP_NET_RAW", 13);
const SYS_ADMIN: Capability = ("CAP_SYS_ADMIN", 21);
const BPF: Capability = ("CAP_BPF", 39);

/// Major, minor and patch number of a kernel.
pub type Version = [u32; 3];

/// UDP_SEGMENT and UDP_GRO.
const SOCKET_KERNEL: Version = [5, 0, 0];
/// `bpf_xdp_get_buff_len`, which the steering programs call.
const XDP_KERNEL: Version = [5, 18, 0];

/// The first and the last kernel that spoil trains of datagrams with some drivers: their datagrams get wrong headers and
/// checksums (Linux commits b10b446 and, fixing it, 78effd8 and 5f17ae0).
const SPOILING_KERNELS: (Version, Version) = ([7, 0, 0], [7, 1, 4]);

/// The effective capabilities of a process, as bits, from its `/proc/PID/status`.
pub fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The capabilities missing from those `held`; `xdp` if AF_XDP is configured.
pub fn missing_capabilities(held: u64, xdp: bool) -> Vec<&'static str> {
    let holds = |(_, bit): Capability| held & (1 << bit) != 0;
    let mut missing = Vec::new();
    if !holds(NET_ADMIN) {
        missing.push(NET_ADMIN.0);
    }
    if xdp && !holds(NET_RAW) {
        missing.push(NET_RAW.0);
    }
    // Before CAP_BPF, CAP_SYS_ADMIN was the capability for BPF, and it still suffices.
    if xdp && !holds(BPF) && !holds(SYS_ADMIN) {
        missing.push(BPF.0);
    }
    missing
}

/// The oldest kernel that suffices; `xdp` if AF_XDP is configured.
pub fn oldest_kernel(xdp: bool) -> Version {
    if xdp { XDP_KERNEL } else { SOCKET_KERNEL }
}

/// Whether UDP segmentation offload loses packets with some drivers of this kernel.
pub fn spoils_trains(kernel: Version) -> bool {
    (SPOILING_KERNELS.0..=SPOILING_KERNELS.1).contains(&kernel)
}

/// The version in a release string such as "6.18.44-rc1"; `None` if there is none in it.
pub fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    let (major, minor) = (numbers.next()?, numbers.next()?);
    // "7.1-rc1" has no third number of its own, and Debian's is "6.12.57+deb13-amd64".
    let patch = release.split(['-', '+']).next().and_then(|plain| plain.split('.').nth(2)).and_then(|n| n.parse().ok());
    Some([major, minor, patch.unwrap_or(0)])
}

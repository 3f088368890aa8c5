//! Attaches the XDP programs of `ebpf/steer` and feeds their maps.
//!
//! A [`WanSteering`] or [`LanSteering`] owns one attached program and its maps; the decision itself is in
//! `penstock_wire`. The program is attached through a bpf_link, so it is detached with the value and with the process.
//! As long as a queue has no socket, everything passes to the kernel.

mod error;
mod kernel;

use std::fmt;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{Xdp, xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use penstock_wire::{AddressKey, OWN_SUBNET, STAYS_LOCAL, WanConfig, WanVerdict, address_key, prefix_bits};
pub use penstock_wire::{BenchFilter, LanConfig, LanVerdict, MAX_QUEUES, MAX_SHIFT, OuterFamily, ethernet_offset};
use rustix::io::Errno;

pub use error::{AttachError, SteerError};
use error::{
    accessing, errno, loading, on_queue, refused_by_interface, refused_by_loader, refused_by_verifier, too_old,
};
use kernel::LinkState;
pub use kernel::has_tcx_programs;

/// All programs, built by `scripts/build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/steer/penstock-steer.o");

/// One for all attachments: each new loader parses the kernel's type information, which takes a hundred times as long
/// as the rest, and the caller waits for it.
static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
    let mut loader = EbpfLoader::new();
    // Nothing in the object depends on the kernel's types.
    loader.btf(None);
    Mutex::new(loader)
});

/// How often, and at which intervals, a detached program is looked for. A second in all: a program that something else
/// keeps attached stays.
const DETACH_TRIES: u32 = 500;
const DETACH_PAUSE: Duration = Duration::from_millis(2);

/// How to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver or, if that fails, in the kernel's generic path.
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the kernel's generic path, which every interface has.
    Generic,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel builds a socket buffer.
    Native,
    /// In the kernel's generic path, on a socket buffer.
    Generic,
}

impl XdpMode {
    /// `native` or `generic`, as in `status --json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The steering of a WAN interface: WireGuard transport data to our port at our addresses goes to
/// the receive queue's socket. Dropping it detaches.
pub struct WanSteering {
    attachment: Attachment,
    local: HashMap<MapData, AddressKey, u8>,
}

impl WanSteering {
    /// Attaches to the interface for the UDP port (host byte order). No address is ours yet.
    ///
    /// The interface is found by its index in the calling thread's network namespace; the name is used only in
    /// messages.
    pub fn attach(interface: &str, ifindex: u32, port: u16, mode: AttachMode) -> Result<Self, AttachError> {
        let mut object = load()?;
        let mut config: Array<_, Shared<WanConfig>> = take(&mut object, penstock_wire::WAN_CONFIG)?;
        config.set(0, Shared(WanConfig { port }), 0).map_err(|error| loading(&error))?;
        let local = take(&mut object, penstock_wire::LOCAL)?;
        let target = Target { interface, ifindex };
        let attachment = Attachment::new(object, penstock_wire::WAN_PROGRAM, &target, mode)?;
        Ok(Self { attachment, local })
    }

    /// Declares an address ours; repeating this is no error.
    pub fn insert_local(&mut self, address: IpAddr) -> Result<(), SteerError> {
        self.local.insert(address_key(address), 0, 0).map_err(accessing(penstock_wire::LOCAL))
    }

    /// Declares an address no longer ours; repeating this is no error.
    pub fn remove_local(&mut self, address: IpAddr) -> Result<(), SteerError> {
        removed(self.local.remove(&address_key(address)), penstock_wire::LOCAL)
    }

    /// Frames by verdict since the attachment, summed over the CPUs, in the order of
    /// [`WanVerdict::ALL`].
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, SteerError> {
        self.attachment.counters(WanVerdict::ALL.iter().map(|v| (v.name(), v.index())))
    }
}

/// The steering of a LAN interface: IP packets to our MAC address for a remote prefix go to the receive queue's socket,
/// with room in front and the mark that [`ethernet_offset`] reads. Dropping it detaches.
pub struct LanSteering {
    attachment: Attachment,
    config: Array<MapData, Shared<LanConfig>>,
    prefixes: LpmTrie<MapData, AddressKey, u32>,
}

impl LanSteering {
    /// Attaches to the interface with this MAC address and MTU. No prefix is remote yet. IPv4 packets longer than the
    /// tunnel's MTU that may be fragmented stay with the kernel.
    ///
    /// The interface is found by its index in the calling thread's network namespace; the name is used only in
    /// messages.
    pub fn attach(interface: &str, ifindex: u32, config: LanConfig, mode: AttachMode) -> Result<Self, AttachError> {
        let mut object = load()?;
        let mut map: Array<_, Shared<LanConfig>> = take(&mut object, penstock_wire::LAN_CONFIG)?;
        map.set(0, Shared(config), 0).map_err(|error| loading(&error))?;
        let prefixes = take(&mut object, penstock_wire::PREFIXES)?;
        let target = Target { interface, ifindex };
        let attachment = Attachment::new(object, penstock_wire::LAN_PROGRAM, &target, mode)?;
        Ok(Self { attachment, config: map, prefixes })
    }

    /// Makes a prefix remote, or changes the family of the packets that carry it. Bits of the address beyond the prefix
    /// are ignored.
    pub fn insert_prefix(&mut self, address: IpAddr, len: u8, outer: OuterFamily) -> Result<(), SteerError> {
        self.set_prefix(address, len, outer.shift())
    }

    /// Leaves a prefix to the kernel although a shorter remote prefix covers it: the gateway's own addresses under a
    /// remote default route.
    pub fn insert_local_prefix(&mut self, address: IpAddr, len: u8) -> Result<(), SteerError> {
        self.set_prefix(address, len, STAYS_LOCAL)
    }

    /// Declares a subnet this site's own: only packets from such subnets are redirected.
    pub fn insert_own_prefix(&mut self, address: IpAddr, len: u8) -> Result<(), SteerError> {
        self.set_prefix(address, len, OWN_SUBNET)
    }

    fn set_prefix(&mut self, address: IpAddr, len: u8, value: u32) -> Result<(), SteerError> {
        let key = prefix_key(address, len)?;
        self.prefixes.insert(&key, value, 0).map_err(accessing(penstock_wire::PREFIXES))
    }

    /// Removes a prefix, remote or local; repeating this is no error.
    pub fn remove_prefix(&mut self, address: IpAddr, len: u8) -> Result<(), SteerError> {
        let key = prefix_key(address, len)?;
        removed(self.prefixes.remove(&key), penstock_wire::PREFIXES)
    }

    /// Changes the values that the program compares with.
    pub fn set_config(&mut self, config: LanConfig) -> Result<(), SteerError> {
        self.config.set(0, Shared(config), 0).map_err(accessing(penstock_wire::LAN_CONFIG))
    }

    /// Frames by verdict since the attachment, summed over the CPUs, in the order of
    /// [`LanVerdict::ALL`].
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, SteerError> {
        self.attachment.counters(LanVerdict::ALL.iter().map(|v| (v.name(), v.index())))
    }
}

/// The benchmark's steering: frames that the filter selects go to the receive queue's socket. Dropping it detaches.
pub struct BenchSteering {
    attachment: Attachment,
}

impl BenchSteering {
    /// Attaches to the interface, as the others do.
    pub fn attach(interface: &str, ifindex: u32, filter: BenchFilter, mode: AttachMode) -> Result<Self, AttachError> {
        let program = match filter {
            BenchFilter::Udp => penstock_wire::BENCH_UDP_PROGRAM,
            BenchFilter::Ip => penstock_wire::BENCH_IP_PROGRAM,
        };
        let attachment = Attachment::new(load()?, program, &Target { interface, ifindex }, mode)?;
        Ok(Self { attachment })
    }
}

/// What all kinds of steering have in common.
macro_rules! delegate_to_attachment {
    ($($steering:ident),+) => {$(
        impl $steering {
            /// Detaches the program from the interface and attaches it again, in the same mode; the contents of its
            /// maps stay. This makes drivers restart the card, with the sockets that have been bound meanwhile.
            ///
            /// # Errors
            /// As for the first attachment; afterwards it is not attached.
            pub fn attach_again(&mut self, interface: &str, ifindex: u32) -> Result<(), AttachError> {
                self.attachment.renew(&Target { interface, ifindex })
            }

            /// The mode in which the program is attached.
            pub fn mode(&self) -> XdpMode {
                self.attachment.mode
            }

            /// Why the mode is generic although native was tried.
            pub fn fallback(&self) -> Option<&str> {
                self.attachment.fallback.as_deref()
            }

            /// Frames redirected to a socket since the attachment, summed over the CPUs, for each of the first `queues`
            /// receive queues.
            pub fn redirected(&self, queues: u32) -> Result<Vec<u64>, SteerError> {
                self.attachment.redirected(queues)
            }

            /// Redirects the receive queue's frames to the AF_XDP socket. A socket that is bound to another interface
            /// or queue would lose them silently.
            pub fn set_socket(&mut self, queue: u32, fd: BorrowedFd<'_>) -> Result<(), SteerError> {
                self.attachment.sockets.set(queue, fd, 0).map_err(on_queue(queue))
            }

            /// Passes the receive queue's frames to the kernel. The kernel does the same by itself when a socket is
            /// closed.
            pub fn clear_socket(&mut self, queue: u32) -> Result<(), SteerError> {
                self.attachment.sockets.unset(queue).map_err(on_queue(queue))
            }
        }

        impl fmt::Debug for $steering {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($steering))
                    .field("mode", &self.mode())
                    .field("fallback", &self.fallback())
                    .finish_non_exhaustive()
            }
        }
    )+};
}
delegate_to_attachment!(WanSteering, LanSteering, BenchSteering);

/// A configuration that has the same layout in the map as in memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Shared<T>(T);

// SAFETY: `repr(C)` integers without padding: every byte is initialised.
#[allow(unsafe_code)]
unsafe impl Pod for Shared<WanConfig> {}
// SAFETY: `repr(C)` integers without padding (6 + 2 + 2 bytes, aligned to 2): every byte is initialised.
#[allow(unsafe_code)]
unsafe impl Pod for Shared<LanConfig> {}

/// The interface as the caller knows it.
struct Target<'a> {
    interface: &'a str,
    ifindex: u32,
}

/// An attached program, and the maps that all programs use or could use.
struct Attachment {
    /// The loaded program.
    object: Ebpf,
    name: &'static str,
    link: Option<Link>,
    mode: XdpMode,
    fallback: Option<String>,
    sockets: XskMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
    redirected: PerCpuArray<MapData, u64>,
}

impl Attachment {
    fn new(mut object: Ebpf, name: &'static str, target: &Target<'_>, mode: AttachMode) -> Result<Self, AttachError> {
        let sockets = take(&mut object, penstock_wire::SOCKETS)?;
        let counters = take(&mut object, penstock_wire::COUNTERS)?;
        let redirected = take(&mut object, penstock_wire::REDIRECTED)?;
        let program = program(&mut object, name)?;
        program.load().map_err(|error| refused_by_verifier(name, &error))?;
        let mut fallback = None;
        let (link, mode) = match mode {
            AttachMode::Native => (link(program, target, XdpMode::Native)?, XdpMode::Native),
            AttachMode::Generic => (link(program, target, XdpMode::Generic)?, XdpMode::Generic),
            AttachMode::Auto => match link(program, target, XdpMode::Native) {
                Ok(link) => (link, XdpMode::Native),
                Err(AttachError::NoNative { reason, .. }) => {
                    fallback = Some(reason);
                    (link(program, target, XdpMode::Generic)?, XdpMode::Generic)
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Self { object, name, link: Some(link), mode, fallback, sockets, counters, redirected })
    }

    fn renew(&mut self, target: &Target<'_>) -> Result<(), AttachError> {
        // An interface can have only one program, so the old one is detached first.
        self.link = None;
        self.link = Some(link(program(&mut self.object, self.name)?, target, self.mode)?);
        Ok(())
    }

    fn counters(
        &self,
        verdicts: impl Iterator<Item = (&'static str, u32)>,
    ) -> Result<Vec<(&'static str, u64)>, SteerError> {
        verdicts.map(|(name, index)| Ok((name, sum(&self.counters, index, penstock_wire::COUNTERS)?))).collect()
    }

    fn redirected(&self, queues: u32) -> Result<Vec<u64>, SteerError> {
        let queues = 0..queues.min(MAX_QUEUES);
        queues.map(|queue| sum(&self.redirected, queue, penstock_wire::REDIRECTED)).collect()
    }
}

/// A counter over all CPUs.
fn sum(counters: &PerCpuArray<MapData, u64>, index: u32, map: &'static str) -> Result<u64, SteerError> {
    let per_cpu = counters.get(&index, 0).map_err(accessing(map))?;
    Ok(per_cpu.iter().sum())
}

/// Parses the object and creates its maps.
fn load() -> Result<Ebpf, AttachError> {
    LOADER.lock().unwrap_or_else(PoisonError::into_inner).load(OBJECT).map_err(|error| refused_by_loader(&error))
}

/// Takes a map out of the object.
fn take<M: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &'static str) -> Result<M, AttachError> {
    object
        .take_map(name)
        .ok_or_else(|| AttachError::Load(format!("the object has no map {name}")))?
        .try_into()
        .map_err(|error| loading(&error))
}

/// A program of the object.
fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, AttachError> {
    object
        .program_mut(name)
        .ok_or_else(|| AttachError::Load(format!("the object has no program {name}")))?
        .try_into()
        .map_err(|error| loading(&error))
}

/// Attaches the loaded program in one mode, through a bpf_link and nothing else.
fn link(program: &mut Xdp, target: &Target<'_>, mode: XdpMode) -> Result<Link, AttachError> {
    let flags = match mode {
        XdpMode::Native => xdp::XdpMode::Driver,
        XdpMode::Generic => xdp::XdpMode::Skb,
    };
    let id = program
        .attach_to_if_index(target.ifindex, flags)
        .map_err(|error| refused_by_interface(target, mode, &error))?;
    // Without a bpf_link aya attaches over netlink, and that would outlive a crash. Here the value
    // that doesn't convert is dropped, which detaches.
    let link: FdLink = program.take_link(id).map_err(|error| loading(&error))?.try_into().map_err(|_| too_old())?;
    let program = link.info().map_err(|error| loading(&error))?.program_id();
    Ok(Link { link: Some(link), program, ifindex: target.ifindex })
}

/// Keeps a program attached. Dropping it detaches the program, and waits until it is.
struct Link {
    link: Option<FdLink>,
    /// The program's id.
    program: u32,
    ifindex: u32,
}

impl Drop for Link {
    fn drop(&mut self) {
        // The kernel detaches when the last copy of the descriptor is closed. A child process that another thread is
        // just starting has copies of all descriptors until its exec.
        self.link = None;
        for _ in 0..DETACH_TRIES {
            match LinkState::query(self.ifindex) {
                Ok(state) if state.xdp_program == Some(self.program) => std::thread::sleep(DETACH_PAUSE),
                _ => break,
            }
        }
    }
}

fn prefix_key(address: IpAddr, len: u8) -> Result<Key<AddressKey>, SteerError> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    if len > bits {
        return Err(SteerError::PrefixTooLong { address, len });
    }
    Ok(Key::new(prefix_bits(len), address_key(address)))
}

fn removed(result: Result<(), MapError>, map: &'static str) -> Result<(), SteerError> {
    match result {
        Err(error) if errno(&error) == Some(Errno::NOENT) => Ok(()),
        result => result.map_err(accessing(map)),
    }
}

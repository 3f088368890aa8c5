//! The steering attached to real (virtual) devices, with AF_XDP sockets at both ends:
//!
//! ```text
//!   sender (AF_XDP) ── far ═══ veth ═══ near ── XDP program ──► receiver (AF_XDP)
//! ```
//!
//! Each test has a thread with its own network namespace.

use std::collections::HashMap;
use std::fs::DirEntry;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use penstock_dataplane::steer::{
    AttachError, AttachMode, LanConfig, LanSteering, OuterFamily, SteerError, WanSteering, XdpMode, ethernet_offset,
};
use penstock_netns::Namespace;
use penstock_wire::MAX_QUEUES;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use xsk_rs::config::{BindFlags, LibxdpFlags, SocketConfig, UmemConfig};
use xsk_rs::{FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::frames::{LAN_CONFIG, OUR_ADDRESSES, PORT, WAN_V4, ethernet, ipv4, ipv6, transport, udp};
use super::is_root;

/// Runs a test in a fresh network namespace with the veth pair `near` and `far`, both up.
fn in_namespace(test: impl FnOnce() + Send) {
    if !is_root() {
        return;
    }
    let namespace = Namespace::new("steer");
    namespace.ip("link add near type veth peer name far");
    for end in ["near", "far"] {
        // No neighbour or router discovery between the test's own frames.
        namespace.ip(&format!("link set {end} addrgenmode none\nlink set {end} up"));
    }
    namespace.enter(test);
}

/// Runs `ip` in the calling thread's namespace and returns what it prints.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn index_of(interface: &str) -> u32 {
    let line = ip(&format!("-o link show dev {interface}"));
    line.split(':').next().unwrap().parse().unwrap()
}

fn is_attached(interface: &str) -> bool {
    ip(&format!("-d link show dev {interface}")).contains("prog/xdp")
}

/// An AF_XDP socket on queue 0 of an interface.
struct Port {
    umem: Umem,
    descriptors: Vec<FrameDesc>,
    transmit: TxQueue,
    receive: RxQueue,
    _fill: FillQueue,
}

impl Port {
    fn new(interface: &str) -> Self {
        let frames = NonZeroU32::new(64).unwrap();
        let (umem, descriptors) = Umem::new(UmemConfig::default(), frames, false).unwrap();
        let config = SocketConfig::builder()
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY)
            .build();
        // SAFETY: no other socket shares this UMEM or its rings.
        let socket = unsafe { Socket::new(config, &umem, &interface.parse().unwrap(), 0) };
        let (transmit, receive, rings) = socket.unwrap();
        let (mut fill, _) = rings.unwrap();
        // SAFETY: the descriptors are this UMEM's; the first one is kept back for sending.
        assert_eq!(unsafe { fill.produce(&descriptors[1..33]) }, 32);
        Self { umem, descriptors, transmit, receive, _fill: fill }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as its receive queue, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.receive.fd().as_raw_fd()) }
    }

    fn send(&mut self, frame: &[u8]) {
        let descriptor = &mut self.descriptors[0];
        // SAFETY: the descriptor is this UMEM's, and in copy mode the kernel has read the frame
        // when the sending call returns.
        unsafe {
            self.umem.data_mut(descriptor).cursor().set_pos(0);
            self.umem.data_mut(descriptor).cursor().write_all(frame).unwrap();
            assert_eq!(self.transmit.produce_and_wakeup(std::slice::from_ref(descriptor)).unwrap(), 1);
        }
    }

    /// The next frame, if one comes within 100 ms.
    fn next(&mut self) -> Option<Vec<u8>> {
        let mut descriptor = self.descriptors[63];
        // SAFETY: the descriptor is overwritten with one that the kernel has filled and released.
        unsafe {
            (self.receive.poll_and_consume_one(&mut descriptor, 100).unwrap() == 1)
                .then(|| self.umem.data(&descriptor).contents().to_vec())
        }
    }
}

fn count(counters: Result<Vec<(&'static str, u64)>, SteerError>, name: &str) -> u64 {
    counters.unwrap().into_iter().collect::<HashMap<_, _>>()[name]
}

const MODES: [(AttachMode, XdpMode); 2] =
    [(AttachMode::Native, XdpMode::Native), (AttachMode::Generic, XdpMode::Generic)];

#[test]
fn wan_data_reaches_the_socket() {
    for (mode, expected) in MODES {
        in_namespace(|| {
            let mut wan = WanSteering::attach("near", index_of("near"), PORT, mode).unwrap();
            assert_eq!((wan.mode(), wan.fallback()), (expected, None));
            let (mut near, mut far) = (Port::new("near"), Port::new("far"));
            let data = ethernet(&[], 0x0800, ipv4(WAN_V4, 17, udp(PORT, transport(64))));
            let tagged = ethernet(&[0x8100_e000], 0x0800, data[14..].to_vec());
            let handshake = ethernet(&[], 0x0800, ipv4(WAN_V4, 17, udp(PORT, [1, 0, 0, 0].repeat(37))));

            far.send(&data);
            assert_eq!(near.next(), None, "the address is not ours yet");
            assert_eq!(count(wan.counters(), "other_address"), 1);

            OUR_ADDRESSES.into_iter().for_each(|address| wan.insert_local(address).unwrap());
            far.send(&data);
            assert_eq!(near.next(), None, "there is no socket yet");
            assert_eq!(count(wan.counters(), "no_socket"), 1);

            wan.set_socket(0, near.fd()).unwrap();
            for frame in [&data, &tagged] {
                far.send(frame);
                assert_eq!(near.next().as_ref(), Some(frame), "{mode:?}");
            }
            far.send(&handshake);
            assert_eq!(near.next(), None);
            assert_eq!(count(wan.counters(), "other_type"), 1);
            assert_eq!(count(wan.counters(), "redirect"), 2);
            assert_eq!(wan.redirected(2).unwrap(), [2, 0]);

            wan.attach_again("near", index_of("near")).unwrap();
            assert!(is_attached("near"));
            far.send(&data);
            assert_eq!(near.next().as_ref(), Some(&data), "addresses and sockets stay");
            assert_eq!(count(wan.counters(), "redirect"), 3);

            wan.remove_local(IpAddr::V4(WAN_V4)).unwrap();
            wan.remove_local(IpAddr::V4(WAN_V4)).unwrap();
            far.send(&data);
            assert_eq!(near.next(), None, "the address is not ours any more");
            wan.insert_local(IpAddr::V4(WAN_V4)).unwrap();
            wan.clear_socket(0).unwrap();
            wan.clear_socket(0).unwrap();
            far.send(&data);
            assert_eq!(near.next(), None, "there is no socket any more");
            assert_eq!(count(wan.counters(), "no_socket"), 2);
            assert!(is_attached("near"));
            drop(wan);
            assert!(!is_attached("near"));
        });
    }
}

#[test]
fn lan_packets_reach_the_socket_with_room_in_front() {
    let prefix = IpAddr::V4(Ipv4Addr::new(10, 102, 0, 0));
    let inside = Ipv4Addr::new(10, 102, 3, 4);
    for (mode, expected) in MODES {
        in_namespace(|| {
            let index = index_of("near");
            let mut lan = LanSteering::attach("near", index, LAN_CONFIG, mode).unwrap();
            assert_eq!((lan.mode(), lan.fallback()), (expected, None));
            let (mut near, mut far) = (Port::new("near"), Port::new("far"));
            lan.set_socket(0, near.fd()).unwrap();
            let frames = [
                ethernet(&[], 0x0800, ipv4(inside, 6, vec![0x5a; 1400])),
                ethernet(&[], 0x0800, ipv4(inside, 6, vec![0x5a; 40])),
                ethernet(&[0x8100_e000], 0x0800, ipv4(inside, 6, vec![0x5a; 1400])),
            ];
            far.send(&frames[0]);
            assert_eq!(near.next(), None, "the prefix is not remote yet");
            assert_eq!(count(lan.counters(), "not_remote"), 1);

            lan.insert_prefix(prefix, 16, OuterFamily::V4).unwrap();
            far.send(&frames[0]);
            assert_eq!(near.next(), None, "the source is not of this site");
            assert_eq!(count(lan.counters(), "other_source"), 1);
            lan.insert_own_prefix(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 24).unwrap();
            for (outer, shift) in [(OuterFamily::V4, 44), (OuterFamily::V6, 64)] {
                lan.insert_prefix(prefix, 16, outer).unwrap();
                for frame in &frames {
                    far.send(frame);
                    let received = near.next().unwrap();
                    assert_eq!(ethernet_offset(&received), Some(shift), "{mode:?}");
                    assert_eq!(&received[shift..], frame, "{mode:?}");
                }
            }
            assert_eq!(count(lan.counters(), "redirect_over_v4"), 3);
            assert_eq!(count(lan.counters(), "redirect_over_v6"), 3);
            assert_eq!(lan.redirected(1).unwrap(), [6]);

            lan.set_config(LanConfig { mac: [0x02, 0, 0, 0, 0, 0x77], ..LAN_CONFIG }).unwrap();
            far.send(&frames[0]);
            assert_eq!(near.next(), None, "the interface has another address now");
            assert_eq!(count(lan.counters(), "other_mac"), 1);
            lan.set_config(LAN_CONFIG).unwrap();

            lan.set_config(LanConfig { tunnel_mtu: 1000, ..LAN_CONFIG }).unwrap();
            far.send(&frames[0]);
            assert_eq!(near.next(), None, "the kernel fragments it");
            assert_eq!(count(lan.counters(), "needs_fragmenting"), 1);
            lan.set_config(LanConfig { link_mtu: 1000, ..LAN_CONFIG }).unwrap();
            far.send(&frames[0]);
            assert_eq!(near.next(), None, "the kernel takes it apart");
            assert_eq!(count(lan.counters(), "merged"), 1);
            lan.set_config(LAN_CONFIG).unwrap();

            lan.insert_local_prefix(IpAddr::V4(inside), 32).unwrap();
            far.send(&frames[1]);
            assert_eq!(near.next(), None, "the address is the gateway's own");
            lan.remove_prefix(IpAddr::V4(inside), 32).unwrap();
            far.send(&frames[1]);
            assert!(near.next().is_some());
            lan.remove_prefix(prefix, 16).unwrap();
            lan.remove_prefix(prefix, 16).unwrap();
            far.send(&frames[1]);
            assert_eq!(near.next(), None, "the prefix is not remote any more");
        });
    }
}

/// The gateway forwards a frame that it received with room in front by rewriting that room, so the inner packet must
/// begin where the outer headers end.
#[test]
fn outer_headers_fit_the_room() {
    in_namespace(|| {
        let index = index_of("near");
        let mut lan = LanSteering::attach("near", index, LAN_CONFIG, AttachMode::Auto).unwrap();
        let default_route = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        lan.insert_prefix(default_route, 0, OuterFamily::V6).unwrap();
        lan.insert_own_prefix("2001:db8:ffff::".parse().unwrap(), 64).unwrap();
        let (mut near, mut far) = (Port::new("near"), Port::new("far"));
        lan.set_socket(0, near.fd()).unwrap();
        let packet = ipv6("2001:db8:5::1".parse().unwrap(), 17, vec![7; 99]);
        far.send(&ethernet(&[], 0x86dd, packet.clone()));
        let received = near.next().unwrap();
        assert_eq!(&received[14 + 40 + 8 + 16..], packet);
        far.send(&ethernet(&[], 0x0800, ipv4(Ipv4Addr::new(10, 0, 0, 1), 17, vec![7; 99])));
        assert_eq!(near.next(), None, "an IPv6 default route covers no IPv4 address");
    });
}

#[test]
fn refusals_are_clear_sentences() {
    in_namespace(|| {
        let index = index_of("near");
        let attach = |mode| WanSteering::attach("near", index, PORT, mode);
        let first = attach(AttachMode::Native).unwrap();
        for mode in [AttachMode::Auto, AttachMode::Native, AttachMode::Generic] {
            let error = attach(mode).unwrap_err();
            assert!(matches!(error, AttachError::Busy { .. }), "{error:?}");
            let sentence = error.to_string();
            assert!(sentence.contains("near") && sentence.contains("penstock_wan"), "{sentence}");
        }
        drop(first);
        let first = attach(AttachMode::Generic).unwrap();
        let error = attach(AttachMode::Auto).unwrap_err();
        assert!(matches!(error, AttachError::Busy { .. }), "{error:?}");
        drop(first);
        drop(attach(AttachMode::Auto).unwrap());

        let error = WanSteering::attach("gone", 9999, PORT, AttachMode::Auto).unwrap_err();
        assert_eq!(error.to_string(), "interface gone (index 9999) is gone");
    });
}

#[test]
fn auto_falls_back_to_generic_and_says_why() {
    in_namespace(|| {
        let attach = |interface, mode| LanSteering::attach(interface, index_of(interface), LAN_CONFIG, mode);
        let lo = attach("lo", AttachMode::Auto).unwrap();
        assert_eq!((lo.mode(), lo.fallback()), (XdpMode::Generic, Some("its driver has none")));
        drop(lo);

        ip("link set far mtu 9000");
        let jumbo = attach("near", AttachMode::Auto).unwrap();
        assert_eq!(jumbo.mode(), XdpMode::Generic);
        assert!(jumbo.fallback().unwrap().contains("MTU"), "{jumbo:?}");
        drop(jumbo);
        let error = attach("near", AttachMode::Native).unwrap_err();
        assert!(matches!(error, AttachError::NoNative { .. }), "{error:?}");
        assert!(error.to_string().contains("the MTU is too large"), "{error}");
        ip("link set far mtu 1500");

        ip("link add few numrxqueues 1 numtxqueues 1 type veth peer name many numrxqueues 4 numtxqueues 4");
        let few = attach("few", AttachMode::Auto).unwrap();
        assert_eq!(few.mode(), XdpMode::Generic);
        assert!(few.fallback().unwrap().contains("queues"), "{few:?}");
    });
}

/// The kernel's type information is megabytes that take long to parse, while the whole gateway waits.
#[test]
fn attaching_again_does_not_read_the_kernels_types_again() {
    in_namespace(|| {
        let attach = || drop(WanSteering::attach("near", index_of("near"), PORT, AttachMode::Auto).unwrap());
        let read = || {
            let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
            io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse::<u64>().unwrap()
        };
        attach();
        let before = read();
        attach();
        let bytes = read() - before;
        assert!(bytes < 1 << 20, "{bytes} bytes");
    });
}

/// A child process that is just being started has copies of the links until its exec, which keep programs attached.
#[test]
fn a_program_whose_link_is_held_elsewhere_is_waited_for() {
    in_namespace(|| {
        let mut steering = WanSteering::attach("near", index_of("near"), PORT, AttachMode::Auto).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(hold(links()));
            steering.attach_again("near", index_of("near")).unwrap();
            scope.spawn(hold(links()));
            drop(steering);
            assert!(!is_attached("near"));
        });
    });
}

/// What holds the descriptors for a moment.
fn hold(descriptors: Vec<OwnedFd>) -> impl FnOnce() + Send {
    assert!(!descriptors.is_empty());
    move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(descriptors);
    }
}

/// Copies of the descriptors that keep programs of this process attached.
fn links() -> Vec<OwnedFd> {
    let itself = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    let links = open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("anon_inode:bpf_link")));
    let copy = |fd: DirEntry| {
        let number = fd.file_name().to_str().unwrap().parse().unwrap();
        pidfd_getfd(&itself, number, PidfdGetfdFlags::empty())
    };
    links.filter_map(|fd| copy(fd).ok()).collect()
}

#[test]
fn two_capabilities_are_enough_and_their_lack_is_named() {
    in_namespace(|| {
        let index = index_of("near");
        let attach = || WanSteering::attach("near", index, PORT, AttachMode::Auto);
        let enough = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
        let restrict = |effective| {
            let sets = capabilities(None).unwrap();
            set_capabilities(None, rustix::thread::CapabilitySets { effective, ..sets }).unwrap();
        };
        restrict(enough);
        drop(LanSteering::attach("near", index, LAN_CONFIG, AttachMode::Auto).unwrap());
        let attached = attach().unwrap();
        let error = attach().unwrap_err();
        assert!(error.to_string().contains("another XDP program (id "), "{error}");
        drop(attached);
        for (effective, names) in [
            (CapabilitySet::BPF, "CAP_NET_ADMIN is missing"),
            (CapabilitySet::NET_ADMIN, "CAP_BPF is missing"),
            (CapabilitySet::empty(), "CAP_BPF and CAP_NET_ADMIN are missing"),
        ] {
            restrict(effective);
            let error = attach().unwrap_err();
            assert!(matches!(error, AttachError::NotPermitted { .. }), "{error:?}");
            assert!(error.to_string().ends_with(names), "{error}");
        }
    });
}

#[test]
fn wrong_arguments_are_errors() {
    in_namespace(|| {
        let index = index_of("near");
        let mut lan = LanSteering::attach("near", index, LAN_CONFIG, AttachMode::Auto).unwrap();
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0));
        let error = lan.insert_prefix(v4, 33, OuterFamily::V4).unwrap_err();
        assert!(matches!(error, SteerError::PrefixTooLong { .. }), "{error}");
        let port = Port::new("near");
        let error = lan.set_socket(MAX_QUEUES, port.fd()).unwrap_err();
        assert!(matches!(error, SteerError::QueueOutOfRange { .. }), "{error}");
        lan.set_socket(MAX_QUEUES - 1, port.fd()).unwrap();
        let no_socket = std::fs::File::open("/dev/null").unwrap();
        let error = lan.set_socket(0, std::os::fd::AsFd::as_fd(&no_socket)).unwrap_err();
        assert!(matches!(error, SteerError::Map { .. }), "{error}");
    });
}

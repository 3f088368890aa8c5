//! The XDP program that redirects packets to the queue's socket: two dozen instructions, assembled here, so
//! that the bench needs neither an object file nor a dispatcher. It is attached by a bpf_link, which the
//! kernel removes with the process, however that ends.
//!
//! Untagged unicast IPv4 and IPv6 is looked at; ARP, multicast and everything else stays with the kernel,
//! so neighbours go on being resolved.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libxdp_sys as bpf;

/// Queues that can have a socket.
pub const MAX_QUEUES: u32 = 64;
const XDP_PASS: i32 = 2;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const UDP: i32 = 17;
const ICMPV6: i32 = 58;

/// Which packets go to the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// UDP: what a sink wants.
    Udp,
    /// All IP but ICMPv6, which the kernel needs to resolve neighbours: what a forwarder wants.
    Ip,
}

/// Where in the kernel the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// On socket buffers: works everywhere, slower.
    Generic,
}

/// An attached program and its map of sockets. Dropping it detaches the program.
#[derive(Debug)]
pub struct Redirect {
    _link: OwnedFd,
    sockets: OwnedFd,
    mode: XdpMode,
}

impl Redirect {
    /// Attaches the program, in native mode if the driver has it. Until [`Redirect::insert`] all passes.
    pub fn attach(interface_index: u32, filter: Filter) -> io::Result<Redirect> {
        let sockets = create_map()?;
        let program = load(&assemble(filter, sockets.as_raw_fd()))?;
        let native = create_link(program.as_fd(), interface_index, XDP_FLAGS_DRV_MODE);
        let (link, mode) = match native {
            Ok(link) => (link, XdpMode::Native),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let link = create_link(program.as_fd(), interface_index, XDP_FLAGS_SKB_MODE)?;
                (link, XdpMode::Generic)
            }
            Err(error) => return Err(error),
        };
        Ok(Redirect { _link: link, sockets, mode })
    }

    /// Sends the queue's packets to this socket from now on. Its fill ring should have frames already.
    pub fn insert(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        if queue >= MAX_QUEUES {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let value = socket.as_raw_fd();
        // SAFETY: key and value are four bytes each, as the map was created, and live during the call.
        let result = unsafe {
            bpf::bpf_map_update_elem(
                self.sockets.as_raw_fd(),
                ptr::from_ref(&queue).cast(),
                ptr::from_ref(&value).cast(),
                0,
            )
        };
        check(result).map(|_| ())
    }

    /// The mode the kernel accepted.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }
}

/// One instruction as the kernel reads it (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Source register in the high, destination in the low four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

/// The program. Its jumps are relative to the next instruction; the numbers at the left help to count.
fn assemble(filter: Filter, sockets: RawFd) -> Vec<Instruction> {
    let ipv4 = i32::from(0x0800_u16.to_be());
    let ipv6 = i32::from(0x86dd_u16.to_be());
    // "To the kernel with all but UDP" or "to the kernel with ICMPv6": jump if (not) equal.
    let (jump, protocol) = match filter {
        Filter::Udp => (0x55, UDP),
        Filter::Ip => (0x15, ICMPV6),
    };
    vec![
        /*  0 */ op(0x61, 2, 1, 0, 0), //            r2 = ctx.data
        /*  1 */ op(0x61, 3, 1, 4, 0), //            r3 = ctx.data_end
        /*  2 */ op(0xbf, 4, 2, 0, 0), //            r4 = r2
        /*  3 */
        op(0x07, 4, 0, 0, 24), //           r4 += Ethernet and the header up to IPv4's protocol
        /*  4 */ op(0x2d, 4, 3, 15, 0), //           if r4 > r3 goto 20
        /*  5 */ op(0x71, 5, 2, 0, 0), //            r5 = first byte of the destination
        /*  6 */ op(0x45, 5, 0, 13, 1), //           if group address goto 20
        /*  7 */ op(0x69, 5, 2, 12, 0), //           r5 = EtherType
        /*  8 */ op(0x15, 5, 0, 3, ipv4), //         if IPv4 goto 12
        /*  9 */ op(0x55, 5, 0, 10, ipv6), //        if not IPv6 goto 20
        /* 10 */ op(0x71, 5, 2, 20, 0), //           r5 = next header
        /* 11 */ op(0x05, 0, 0, 1, 0), //            goto 13
        /* 12 */ op(0x71, 5, 2, 23, 0), //           r5 = protocol
        /* 13 */ op(jump, 5, 0, 6, protocol), //     if not for the socket goto 20
        /* 14 */ op(0x61, 2, 1, 16, 0), //           r2 = ctx.rx_queue_index
        /* 15 */ op(0x18, 1, 1, 0, sockets), //      r1 = the map (two slots)
        /* 16 */ op(0x00, 0, 0, 0, 0),
        /* 17 */
        op(0xb7, 3, 0, 0, XDP_PASS), //     r3 = what to do when the queue has no socket
        /* 18 */ op(0x85, 0, 0, 0, BPF_FUNC_REDIRECT_MAP),
        /* 19 */ op(0x95, 0, 0, 0, 0), //            return r0
        /* 20 */ op(0xb7, 0, 0, 0, XDP_PASS),
        /* 21 */ op(0x95, 0, 0, 0, 0), //            return XDP_PASS
    ]
}

fn create_map() -> io::Result<OwnedFd> {
    let name = CString::from(c"bench_sockets");
    // SAFETY: the name is a C string that lives during the call, no options are passed.
    let fd = unsafe {
        bpf::bpf_map_create(bpf::bpf_map_type_BPF_MAP_TYPE_XSKMAP, name.as_ptr(), 4, 4, MAX_QUEUES, ptr::null())
    };
    own(fd)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    // SAFETY: Instruction has the layout of struct bpf_insn, the slice and both C strings live during the
    // call, no options are passed. The kernel's verifier judges the program itself.
    let fd = unsafe {
        bpf::bpf_prog_load(
            bpf::bpf_prog_type_BPF_PROG_TYPE_XDP,
            c"bench_redirect".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr().cast(),
            program.len(),
            ptr::null_mut(),
        )
    };
    own(fd)
}

fn create_link(program: BorrowedFd<'_>, interface_index: u32, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero bpf_link_create_opts is valid; it is plain old data.
    let mut options: bpf::bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of::<bpf::bpf_link_create_opts>();
    options.flags = flags;
    // SAFETY: the options live during the call and say their size; the program's fd is borrowed.
    let fd = unsafe {
        bpf::bpf_link_create(program.as_raw_fd(), interface_index.cast_signed(), bpf::bpf_attach_type_BPF_XDP, &options)
    };
    own(fd)
}

fn own(fd: i32) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel has just given this fd to us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// libbpf returns the negated errno.
fn check(result: i32) -> io::Result<i32> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::from_raw_os_error(-result)),
    }
}

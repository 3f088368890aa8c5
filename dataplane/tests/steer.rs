//! The XDP programs as the kernel runs them: the table of the pure decision with BPF_PROG_TEST_RUN, and then (`veth`)
//! attached, with AF_XDP sockets.
//!
//! Needs root; without it each test says so and passes.
#![allow(unsafe_code, clippy::unwrap_used)]

#[path = "../../ebpf/wire/tests/frames/mod.rs"]
mod frames;
#[path = "steer/veth.rs"]
mod veth;

use std::fmt::Debug;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapError, PerCpuArray, XskMap};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, TestRun as _, TestRunOptions};
use frames::{Case, LINK_MTU, OUR_ADDRESSES, OUR_MAC, OWN, PORT, PREFIXES, TUNNEL_MTU, decide_lan, decide_wan};
use penstock_wire::{
    AddressKey, COUNTERS, ETHERNET_LEN, LAN_CONFIG, LAN_PROGRAM, LOCAL, LanVerdict, MAX_LOCAL, OWN_SUBNET, OuterFamily,
    STAYS_LOCAL, WAN_CONFIG, WAN_PROGRAM, WanVerdict, address_key, ethernet_offset, prefix_bits,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/steer/penstock-steer.o");

const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// Whether the test can run; says why not.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: loading XDP programs needs root");
    }
    is_root
}

/// A program in the kernel, attached to nothing, with the table's configuration in its maps.
struct Loaded {
    object: Ebpf,
    program: &'static str,
    /// In the XSKMAP for queue 0, which a test run uses.
    _socket: Option<OwnedFd>,
}

impl Loaded {
    fn new(program: &'static str, with_socket: bool) -> Self {
        let mut object = Ebpf::load(OBJECT).unwrap();
        xdp(&mut object, program).load().unwrap();
        configure(&mut object);
        let socket = with_socket.then(|| {
            let socket =
                rustix::net::socket(rustix::net::AddressFamily::XDP, rustix::net::SocketType::RAW, None).unwrap();
            let map = object.map_mut(penstock_wire::SOCKETS).unwrap();
            XskMap::try_from(map).unwrap().set(0, socket.as_fd(), 0).unwrap();
            socket
        });
        Self { object, program, _socket: socket }
    }

    /// The action, and the frame after the program.
    fn run(&mut self, frame: &[u8]) -> Result<(u32, Vec<u8>), ProgramError> {
        self.run_in(frame, None)
    }

    fn run_in(&mut self, data: &[u8], context: Option<&[u8]>) -> Result<(u32, Vec<u8>), ProgramError> {
        let mut out = vec![0; 4096];
        let mut options = TestRunOptions::new();
        options.data_in = Some(data);
        options.data_out = Some(&mut out);
        options.ctx_in = context;
        let result = xdp(&mut self.object, self.program).test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    fn counters(&self, verdicts: usize) -> Vec<u64> {
        let counters = PerCpuArray::<_, u64>::try_from(self.object.map(COUNTERS).unwrap()).unwrap();
        (0..verdicts as u32).map(|slot| counters.get(&slot, 0).unwrap().iter().sum()).collect()
    }
}

fn xdp<'a>(object: &'a mut Ebpf, program: &str) -> &'a mut Xdp {
    object.program_mut(program).unwrap().try_into().unwrap()
}

fn configure(object: &mut Ebpf) {
    // The configurations as bytes: the programs must read what user space writes.
    let mut wan = Array::<_, [u8; 2]>::try_from(object.map_mut(WAN_CONFIG).unwrap()).unwrap();
    wan.set(0, PORT.to_ne_bytes(), 0).unwrap();
    let mut lan = Array::<_, [u8; 10]>::try_from(object.map_mut(LAN_CONFIG).unwrap()).unwrap();
    let bytes = [&OUR_MAC[..], &TUNNEL_MTU.to_ne_bytes(), &LINK_MTU.to_ne_bytes()].concat();
    lan.set(0, <[u8; 10]>::try_from(bytes).unwrap(), 0).unwrap();
    let mut local = HashMap::<_, AddressKey, u8>::try_from(object.map_mut(LOCAL).unwrap()).unwrap();
    for address in OUR_ADDRESSES {
        local.insert(address_key(address), 0, 0).unwrap();
    }
    let prefixes = object.map_mut(penstock_wire::PREFIXES).unwrap();
    let mut prefixes = LpmTrie::<_, AddressKey, u32>::try_from(prefixes).unwrap();
    for (address, len) in OWN {
        let key = Key::new(prefix_bits(len), address_key(address));
        prefixes.insert(&key, OWN_SUBNET, 0).unwrap();
    }
    for (address, len, outer) in PREFIXES {
        let key = Key::new(prefix_bits(len), address_key(address));
        prefixes.insert(&key, outer.map_or(STAYS_LOCAL, OuterFamily::shift), 0).unwrap();
    }
}

/// The effect of a frame on a verdict's counter, and on itself.
struct Effect<Verdict> {
    verdict: Verdict,
    action: u32,
    /// Bytes in front.
    shift: usize,
}

/// Runs the table and compares with the pure decision, as mapped by `effect`.
fn check<Verdict: PartialEq + Copy + Debug>(
    loaded: &mut Loaded,
    cases: &[Case<Verdict>],
    all: &[Verdict],
    decide: impl Fn(&[u8]) -> Verdict,
    effect: impl Fn(Verdict) -> Effect<Verdict>,
) {
    let mut before = loaded.counters(all.len());
    let mut runs = 0;
    for Case { name, frame, expected } in cases {
        if frame.len() < ETHERNET_LEN {
            // No driver delivers such a frame, and neither does a test run.
            assert!(loaded.run(frame).is_err(), "{name}");
            continue;
        }
        let verdict = decide(frame);
        if let Some(expected) = *expected {
            assert_eq!(verdict, expected, "{name}");
        }
        let Effect { verdict, action, shift } = effect(verdict);
        let (actual, out) = loaded.run(frame).unwrap();
        assert_eq!(actual, action, "{name}: {frame:02x?}");
        assert_eq!(&out[shift..], frame, "{name}: the frame has changed");
        if shift > 0 {
            assert_eq!(ethernet_offset(&out), Some(shift), "{name}");
        }
        let after = loaded.counters(all.len());
        for ((verdict_at, before), after) in all.iter().zip(&before).zip(&after) {
            assert_eq!(after - before, u64::from(*verdict_at == verdict), "{name}: {verdict_at:?}");
        }
        before = after;
        runs += 1;
    }
    println!("{runs} frames through {}", loaded.program);
}

#[test]
fn wan_agrees_with_the_pure_decision() {
    if !is_root() {
        return;
    }
    let mut loaded = Loaded::new(WAN_PROGRAM, true);
    check(&mut loaded, &frames::wan_cases(), WanVerdict::ALL, decide_wan, |verdict| {
        let redirected = verdict == WanVerdict::Redirect;
        Effect { verdict, action: if redirected { XDP_REDIRECT } else { XDP_PASS }, shift: 0 }
    });
}

#[test]
fn lan_agrees_with_the_pure_decision() {
    if !is_root() {
        return;
    }
    let mut loaded = Loaded::new(LAN_PROGRAM, true);
    check(&mut loaded, &frames::lan_cases(), LanVerdict::ALL, decide_lan, |verdict| match verdict.outer() {
        Some(outer) => Effect { verdict, action: XDP_REDIRECT, shift: outer.shift() as usize },
        None => Effect { verdict, action: XDP_PASS, shift: 0 },
    });
}

#[test]
fn without_a_socket_everything_passes_unchanged() {
    if !is_root() {
        return;
    }
    let mut loaded = Loaded::new(WAN_PROGRAM, false);
    check(&mut loaded, &frames::wan_cases(), WanVerdict::ALL, decide_wan, |verdict| {
        let redirected = verdict == WanVerdict::Redirect;
        let verdict = if redirected { WanVerdict::NoSocket } else { verdict };
        Effect { verdict, action: XDP_PASS, shift: 0 }
    });
    let mut loaded = Loaded::new(LAN_PROGRAM, false);
    check(&mut loaded, &frames::lan_cases(), LanVerdict::ALL, decide_lan, |verdict| {
        let verdict = verdict.outer().map_or(verdict, |_| LanVerdict::NoSocket);
        Effect { verdict, action: XDP_PASS, shift: 0 }
    });
}

#[test]
fn without_headroom_the_frame_passes_unchanged() {
    if !is_root() {
        return;
    }
    let mut loaded = Loaded::new(LAN_PROGRAM, true);
    let case = &frames::lan_cases()[0];
    assert_eq!(case.expected, Some(LanVerdict::RedirectOverV4));
    // Metadata in front of the frame leaves 256 - 200 bytes, and the kernel needs some of these.
    let metadata = 200;
    let data = [vec![0; metadata], case.frame.clone()].concat();
    let context = [metadata as u32, data.len() as u32, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
    let (action, _) = loaded.run_in(&data, Some(&context)).unwrap();
    assert_eq!(action, XDP_PASS);
    let counters = loaded.counters(LanVerdict::ALL.len());
    assert_eq!(counters[LanVerdict::NoHeadroom.index() as usize], 1);
    assert_eq!(counters.iter().sum::<u64>(), 1);
}

#[test]
fn the_maps_hold_what_they_promise() {
    if !is_root() {
        return;
    }
    let mut object = Ebpf::load(OBJECT).unwrap();
    let mut local = HashMap::<_, AddressKey, u8>::try_from(object.map_mut(LOCAL).unwrap()).unwrap();
    let address = |n: u32| address_key(std::net::Ipv4Addr::from(n).into());
    for n in 0..MAX_LOCAL {
        local.insert(address(n), 0, 0).unwrap();
    }
    assert!(matches!(local.insert(address(MAX_LOCAL), 0, 0), Err(MapError::SyscallError(_))));
}

#[test]
fn the_verifier_finds_little_to_do() {
    if !is_root() {
        return;
    }
    for (program, frame) in [(WAN_PROGRAM, &frames::wan_cases()[0].frame), (LAN_PROGRAM, &frames::lan_cases()[0].frame)]
    {
        let mut loaded = Loaded::new(program, true);
        let info = xdp(&mut loaded.object, program).info().unwrap();
        let verified = info.verified_instruction_count().unwrap();
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = if program == WAN_PROGRAM { 100_000 } else { 1 };
        let time = xdp(&mut loaded.object, program).test_run(options).unwrap().duration;
        println!(
            "{program}: {verified} instructions verified, {:?} bytes translated, {} jitted, \
             {time:?} a redirected frame",
            info.size_translated(),
            info.size_jitted(),
        );
        // The kernel's limit is a million; far below that, no version of the verifier will refuse.
        assert!(verified < 20_000, "{program}: {verified}");
    }
}

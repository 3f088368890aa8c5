//! The XDP programs: `penstock_wire`'s decision between the kernel's packet pointers and its maps.
//!
//! Each interface gets its own instance of one program with its own maps; user space writes them
//! (`dataplane/src/steer.rs`). A program decides, asks the XSKMAP for the receive queue's socket and
//! counts; whatever goes wrong, the frame passes to the kernel unchanged.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action::{XDP_PASS, XDP_REDIRECT},
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, XskMap, lpm_trie::Key},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use penstock_wire::{
    ADDRESS_BITS, AddressKey, BenchFilter, COUNTER_SLOTS, LanConfig, LanVerdict, MAX_LOCAL, MAX_PREFIXES,
    MAX_QUEUES, OuterFamily, SHIFT_LEN, Unread, WanConfig, WanVerdict, steer_lan, steer_wan,
};

#[btf_map]
static SOCKETS: XskMap<{ MAX_QUEUES as usize }> = XskMap::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, { COUNTER_SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
static REDIRECTED: PerCpuArray<u64, { MAX_QUEUES as usize }> = PerCpuArray::new();
#[btf_map]
static WAN_CONFIG: Array<WanConfig, 1> = Array::new();
#[btf_map]
static LAN_CONFIG: Array<LanConfig, 1> = Array::new();
#[btf_map]
static LOCAL: HashMap<AddressKey, u8, { MAX_LOCAL as usize }> = HashMap::new();
#[btf_map]
static PREFIXES: LpmTrie<AddressKey, u32, { MAX_PREFIXES as usize }> = LpmTrie::new();

#[xdp]
fn penstock_wan(ctx: XdpContext) -> u32 {
    let Some(config) = WAN_CONFIG.get(0) else {
        return XDP_PASS;
    };
    // SAFETY: the value is a byte that is never read, so a concurrent update is harmless.
    let is_local = |address: AddressKey| unsafe { LOCAL.get(&address) }.is_some();
    let mut verdict = steer_wan(Packet::of(&ctx), config, is_local);
    let mut action = XDP_PASS;
    if verdict == WanVerdict::Redirect {
        match SOCKETS.redirect(ctx.rx_queue_index(), XDP_PASS.into()) {
            Ok(redirect) => {
                count(&REDIRECTED, ctx.rx_queue_index());
                action = redirect;
            }
            Err(_) => verdict = WanVerdict::NoSocket,
        }
    }
    count(&COUNTERS, verdict.index());
    action
}

#[xdp]
fn penstock_lan(ctx: XdpContext) -> u32 {
    let Some(config) = LAN_CONFIG.get(0) else {
        return XDP_PASS;
    };
    let route = |address: AddressKey| PREFIXES.get(&Key::new(ADDRESS_BITS, address)).copied();
    let mut verdict = steer_lan(Packet::of(&ctx), config, route);
    let mut action = XDP_PASS;
    if let Some(outer) = verdict.outer() {
        match redirect_with_room(&ctx, outer) {
            Ok(()) => {
                count(&REDIRECTED, ctx.rx_queue_index());
                action = XDP_REDIRECT;
            }
            Err(reason) => verdict = reason,
        }
    }
    count(&COUNTERS, verdict.index());
    action
}

#[xdp]
fn penstock_bench_udp(ctx: XdpContext) -> u32 {
    redirect_for_bench(&ctx, BenchFilter::Udp)
}

#[xdp]
fn penstock_bench_ip(ctx: XdpContext) -> u32 {
    redirect_for_bench(&ctx, BenchFilter::Ip)
}

#[inline(always)]
fn redirect_for_bench(ctx: &XdpContext, filter: BenchFilter) -> u32 {
    if !filter.takes(Packet::of(ctx)) {
        return XDP_PASS;
    }
    let socket = SOCKETS.redirect(ctx.rx_queue_index(), XDP_PASS.into());
    socket.unwrap_or(XDP_PASS)
}

/// Makes room for the outer headers and redirects to the receive queue's socket. On an error the
/// frame is as it was.
#[inline(always)]
fn redirect_with_room(ctx: &XdpContext, outer: OuterFamily) -> Result<(), LanVerdict> {
    // The helper only looks up the socket; the kernel redirects when the program returns. So it can come first, and a
    // frame without a socket needs no room taken back.
    SOCKETS
        .redirect(ctx.rx_queue_index(), XDP_PASS.into())
        .map_err(|_| LanVerdict::NoSocket)?;
    let shift = outer.shift();
    // SAFETY: `ctx.ctx` is the context that the kernel passed to this program; no pointer into the
    // packet is alive.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(shift as i32)) } != 0 {
        return Err(LanVerdict::NoHeadroom);
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    // The verifier wants the check; the frame has just grown by more.
    if start + SHIFT_LEN > end {
        return Err(LanVerdict::NoHeadroom);
    }
    // SAFETY: `start` begins a packet of at least SHIFT_LEN bytes that this program alone accesses.
    unsafe { *(start as *mut [u8; SHIFT_LEN]) = (shift as u16).to_le_bytes() };
    Ok(())
}

#[inline(always)]
fn count<const N: usize>(counters: &PerCpuArray<u64, N>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own, and XDP programs don't nest on a CPU.
        unsafe { *counter += 1 };
    }
}

/// The received frame from `at` to the end, by the packet pointers of the context.
#[derive(Clone, Copy)]
struct Packet<'a> {
    ctx: &'a XdpContext,
    at: *const u8,
    /// Bytes before `at`.
    read: usize,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    fn of(ctx: &'a XdpContext) -> Self {
        Self {
            ctx,
            at: ctx.data() as *const u8,
            read: 0,
        }
    }
}

impl<'a> Unread<'a> for Packet<'a> {
    #[inline(always)]
    fn take<const N: usize>(self) -> Option<(&'a [u8; N], Self)> {
        let next = self.at.wrapping_add(N);
        if next as usize > self.ctx.data_end() {
            return None;
        }
        // Otherwise the compiler tells `None` from `Some` by comparing the pointer with null, which
        // requires CAP_PERFMON too.
        // SAFETY: the kernel's packet pointers aren't null.
        unsafe { core::hint::assert_unchecked(!self.at.is_null()) };
        // SAFETY: the N bytes lie between the packet's pointers (the verifier proves it again), a
        // byte array has no alignment, and nobody writes to the packet while `ctx` is borrowed.
        let bytes = unsafe { &*self.at.cast() };
        Some((
            bytes,
            Self {
                at: next,
                read: self.read + N,
                ..self
            },
        ))
    }

    #[inline(always)]
    fn holds(self, len: usize) -> bool {
        // SAFETY: `ctx` is the context that the kernel passed to this program.
        let frame_len = unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) };
        (self.read + len) as u64 <= frame_len
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

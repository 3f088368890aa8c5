//! Devices to put in the middle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use penstock_bench::traffic::BATCH;
use penstock_bench::traffic::payload::now;
use penstock_bench::traffic::socket::{Filter, Memory, RING_SIZE, Socket, wait};

use super::{RIGHT, Row};

impl Row {
    /// Has the kernel forward in the middle.
    pub fn route(&self) {
        let middle = &self.middle;
        middle.sysctl("net/ipv4/ip_forward", "1");
        middle.ip(&format!(
            "address add 198.18.0.254/24 dev west\naddress add 198.19.0.254/24 dev east\n\
             neighbor add 198.19.0.1 lladdr {RIGHT} dev east nud permanent"
        ));
    }
}

/// A forwarder from west to east that keeps every frame for some time.
pub struct Delay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Delay {
    pub fn start(row: &Row, delay: Duration) -> Delay {
        let (memory, mut free, mut west, mut east) = row.middle.enter(|| {
            let (memory, mut free) = Memory::new(4 * RING_SIZE).expect("memory");
            let mut open = |name| Socket::receiver(&memory, name, 0, Filter::Ip, &mut free).expect("a socket");
            let (west, east) = (open("west"), open("east"));
            (memory, free, west, east)
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut kept = VecDeque::new();
            while !stopped.load(Ordering::Relaxed) {
                let mut batch = memory.batch(BATCH);
                if west.receiver.receive(&mut batch, BATCH) > 0 {
                    kept.push_back((now() + delay.as_nanos() as u64, batch));
                }
                while kept.front().is_some_and(|(at, _)| *at <= now()) {
                    let Some((_, mut batch)) = kept.pop_front() else { break };
                    east.sender.transmit(&mut batch);
                    assert!(batch.is_empty(), "the ring is larger than what is kept");
                }
                east.sender.kick().expect("sent");
                east.sender.complete(&mut free);
                west.receiver.fill(&mut free);
                let nap = kept
                    .front()
                    .map_or(Duration::from_millis(20), |(at, _)| Duration::from_nanos(at.saturating_sub(now())));
                wait([&west.receiver], nap).expect("a poll");
            }
        });
        Delay { stop, thread: Some(thread) }
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the delaying forwarder failed");
        }
    }
}

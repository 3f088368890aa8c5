//! A queue that is fair between flows, in two classes, and bounded. It knows nothing of packets or time.
//!
//! Flows take turns by deficit round robin, with the two lists of fq_codel (RFC 8290, section 4): a flow that had
//! nothing waiting goes first for one quantum, so a sparse flow, such as a terminal session or a ping, never waits
//! behind a dense one. Urgent items go before bulk, but leave bulk a quarter of the bytes as long as both wait. A full
//! queue drops from the front of a flow that has more waiting than the average, so a flow can only crowd out itself.
//!
//! All memory is allocated at the start. Flows are told apart by a hash, in [`FLOWS`] places for each class.

/// Places for flows of a class.
pub(crate) const FLOWS: usize = 1024;
/// Bytes that a flow may send in its turn: one full packet of Ethernet.
pub(crate) const QUANTUM: i64 = 1514;
/// How many bytes urgent traffic may get ahead of bulk traffic that waits.
const URGENT_AHEAD: i64 = 8 * QUANTUM;
/// Urgent bytes for each byte of bulk, while both wait.
const URGENT_SHARE: i64 = 3;
/// No slot, or no flow.
const NONE: u32 = u32::MAX;

/// Which of two items goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Urgent = 0,
    Bulk = 1,
}

/// Items that wait.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    slots: Box<[Slot<T>]>,
    /// The first of the free slots.
    free: u32,
    /// Those of [`Class::Urgent`] and then those of [`Class::Bulk`].
    flows: Box<[Flow]>,
    classes: [Lists; 2],
    len: usize,
    bytes: usize,
    max_bytes: usize,
    /// The flow that had most waiting at the last search.
    fattest: u32,
    /// Flows that have anything waiting.
    busy: usize,
    /// Bytes by which the urgent class is ahead of waiting bulk traffic.
    ahead: i64,
}

#[derive(Debug)]
struct Slot<T> {
    item: Option<T>,
    bytes: usize,
    /// The next of the same flow, or the next free one.
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    head: u32,
    tail: u32,
    bytes: usize,
    deficit: i64,
    /// Whether it is in a list of its class.
    listed: bool,
    /// The next one in that list.
    next: u32,
}

/// The flows of a class that take turns.
#[derive(Debug)]
struct Lists {
    /// Those that had nothing waiting.
    new: List,
    old: List,
    /// Items of the class.
    len: usize,
}

#[derive(Debug)]
struct List {
    head: u32,
    tail: u32,
}

impl<T> FairQueue<T> {
    /// An empty queue for this many items.
    pub(crate) fn new(max_items: usize, max_bytes: usize) -> Self {
        // One more, so that an item can be added before another makes room for it.
        let slots = max_items as u32 + 1;
        let slot = |n: u32| Slot { item: None, bytes: 0, next: if n + 1 < slots { n + 1 } else { NONE } };
        let flow = Flow { head: NONE, tail: NONE, bytes: 0, deficit: 0, listed: false, next: NONE };
        Self {
            slots: (0..slots).map(slot).collect(),
            free: 0,
            flows: vec![flow; 2 * FLOWS].into(),
            classes: [Lists::EMPTY, Lists::EMPTY],
            len: 0,
            bytes: 0,
            max_bytes,
            fattest: 0,
            busy: 0,
            ahead: 0,
        }
    }

    /// Bounds the bytes; [`Self::overflow`] drops the excess.
    pub(crate) fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an item to its flow. [`Self::overflow`] must be called until it returns none.
    ///
    /// # Panics
    /// If that was not done after the previous item.
    pub(crate) fn push(&mut self, item: T, bytes: usize, class: Class, hash: u32) {
        let at = self.free;
        let slot = &mut self.slots[at as usize];
        self.free = std::mem::replace(&mut slot.next, NONE);
        (slot.item, slot.bytes) = (Some(item), bytes);

        let number = (class as usize * FLOWS + hash as usize % FLOWS) as u32;
        let flow = &mut self.flows[number as usize];
        match std::mem::replace(&mut flow.tail, at) {
            NONE => {
                flow.head = at;
                self.busy += 1;
            }
            before => self.slots[before as usize].next = at,
        }
        flow.bytes += bytes;
        let (listed, fat) = (std::mem::replace(&mut flow.listed, true), flow.bytes);
        if !listed {
            flow.deficit = QUANTUM;
            self.classes[class as usize].new.append(&mut self.flows, number);
        }
        if fat > self.flows[self.fattest as usize].bytes {
            self.fattest = number;
        }
        self.classes[class as usize].len += 1;
        self.len += 1;
        self.bytes += bytes;
    }

    /// Takes an item that the queue has no room for.
    pub(crate) fn overflow(&mut self) -> Option<T> {
        if self.len < self.slots.len() && (self.bytes <= self.max_bytes || self.len == 1) {
            return None;
        }
        if self.flows[self.fattest as usize].bytes * self.busy < self.bytes {
            let fattest = self.flows.iter().enumerate().max_by_key(|(_, flow)| flow.bytes)?;
            self.fattest = fattest.0 as u32;
        }
        self.take_from(self.fattest).map(|(item, _)| item)
    }

    /// Takes the item whose turn it is, and says how many bytes it has.
    pub(crate) fn pop(&mut self) -> Option<(T, usize)> {
        let [urgent, bulk] = self.classes.each_ref().map(|lists| lists.len > 0);
        if urgent && (!bulk || self.ahead < URGENT_AHEAD) {
            let popped = self.pop_of(Class::Urgent)?;
            if bulk {
                self.ahead += popped.1 as i64;
            }
            return Some(popped);
        }
        let popped = self.pop_of(Class::Bulk)?;
        self.ahead = (self.ahead - URGENT_SHARE * popped.1 as i64).max(0);
        Some(popped)
    }

    fn pop_of(&mut self, class: Class) -> Option<(T, usize)> {
        loop {
            let lists = &mut self.classes[class as usize];
            let is_new = lists.new.head != NONE;
            let list = if is_new { &mut lists.new } else { &mut lists.old };
            let number = list.head;
            let flow = self.flows.get_mut(number as usize)?;
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM;
                list.remove_first(&self.flows);
                lists.old.append(&mut self.flows, number);
                continue;
            }
            if let Some((item, bytes)) = self.take_from(number) {
                self.flows[number as usize].deficit -= bytes as i64;
                return Some((item, bytes));
            }
            let lists = &mut self.classes[class as usize];
            if is_new { &mut lists.new } else { &mut lists.old }.remove_first(&self.flows);
            // If the flow left the lists, its next item would go before the old flows again, and these might starve.
            if is_new && lists.old.head != NONE {
                lists.old.append(&mut self.flows, number);
            } else {
                self.flows[number as usize].listed = false;
            }
        }
    }

    /// Takes the first item of a flow.
    fn take_from(&mut self, number: u32) -> Option<(T, usize)> {
        let flow = &mut self.flows[number as usize];
        let at = flow.head;
        let slot = self.slots.get_mut(at as usize)?;
        let (item, bytes) = (slot.item.take()?, slot.bytes);
        flow.head = std::mem::replace(&mut slot.next, self.free);
        if flow.head == NONE {
            flow.tail = NONE;
            self.busy -= 1;
        }
        flow.bytes -= bytes;
        self.free = at;
        self.classes[number as usize / FLOWS].len -= 1;
        self.len -= 1;
        self.bytes -= bytes;
        Some((item, bytes))
    }
}

impl Lists {
    const EMPTY: Self = Self { new: List { head: NONE, tail: NONE }, old: List { head: NONE, tail: NONE }, len: 0 };
}

impl List {
    fn append(&mut self, flows: &mut [Flow], number: u32) {
        flows[number as usize].next = NONE;
        match std::mem::replace(&mut self.tail, number) {
            NONE => self.head = number,
            last => flows[last as usize].next = number,
        }
    }

    fn remove_first(&mut self, flows: &[Flow]) {
        self.head = flows[self.head as usize].next;
        if self.head == NONE {
            self.tail = NONE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: usize = 1500;

    /// A queue whose items are the numbers of their flows, and how much of each was taken out of it.
    struct Trial {
        queue: FairQueue<u32>,
        taken: [usize; 8],
        dropped: [usize; 8],
    }

    impl Trial {
        fn new(max_items: usize, max_bytes: usize) -> Self {
            Self { queue: FairQueue::new(max_items, max_bytes), taken: [0; 8], dropped: [0; 8] }
        }

        fn push(&mut self, flow: u32, class: Class, bytes: usize) {
            self.queue.push(flow, bytes, class, flow);
            while let Some(flow) = self.queue.overflow() {
                self.dropped[flow as usize] += 1;
            }
        }

        fn pop(&mut self) -> Option<u32> {
            let (flow, bytes) = self.queue.pop()?;
            self.taken[flow as usize] += bytes;
            Some(flow)
        }
    }

    #[test]
    fn a_flow_stays_in_order_and_all_memory_comes_back() {
        let mut queue = FairQueue::new(16, usize::MAX);
        for _ in 0..100 {
            for n in 0..16 {
                queue.push(n, 100, Class::Bulk, n % 3);
            }
            assert_eq!((queue.len(), queue.bytes(), queue.overflow()), (16, 1600, None));
            let mut all = Vec::new();
            while let Some((n, 100)) = queue.pop() {
                all.push(n);
            }
            for flow in 0..3 {
                let of_flow: Vec<u32> = all.iter().copied().filter(|n| n % 3 == flow).collect();
                assert!(of_flow.is_sorted() && !of_flow.is_empty(), "{all:?}");
            }
            assert_eq!((all.len(), queue.len(), queue.bytes(), queue.busy), (16, 0, 0, 0));
        }
    }

    /// Flows with packets of different sizes, one of which sends ten times as much, get the same bytes.
    #[test]
    fn flows_share_by_bytes() {
        let mut trial = Trial::new(300, usize::MAX);
        let sizes = [1500, 1500, 100, 700];
        for round in 0..5000 {
            for (flow, size) in sizes.into_iter().enumerate() {
                let packets = if flow == 0 { 10 } else { FULL / size };
                (0..packets).for_each(|_| trial.push(flow as u32, Class::Bulk, size));
            }
            for _ in 0..(if round % 2 == 0 { 3 } else { 4 }) {
                trial.pop();
            }
        }
        let (least, most) = (trial.taken[..4].iter().min().unwrap(), trial.taken[..4].iter().max().unwrap());
        assert!(most - least < most / 50, "{:?}", trial.taken);
    }

    /// A packet of a flow that has nothing waiting goes before flows that have, however many these are.
    #[test]
    fn a_sparse_flow_does_not_wait_behind_dense_ones() {
        let mut trial = Trial::new(400, usize::MAX);
        for n in 0..400 {
            trial.push(n % 7, Class::Bulk, FULL);
        }
        for _ in 0..100 {
            // Each dense flow has had its first turn.
            (0..14).for_each(|_| _ = trial.pop());
            trial.push(7, Class::Bulk, 84);
            assert_eq!(trial.pop(), Some(7));
            (0..14).for_each(|n| trial.push(n % 7, Class::Bulk, FULL));
        }
        assert_eq!(trial.dropped[7], 0);
    }

    #[test]
    fn urgent_goes_first_and_bulk_does_not_starve() {
        let mut trial = Trial::new(100, usize::MAX);
        (0..10).for_each(|_| trial.push(0, Class::Bulk, FULL));
        trial.push(1, Class::Urgent, 100);
        assert_eq!((trial.pop(), trial.pop()), (Some(1), Some(0)));
        // A flood of packets marked urgent.
        for _ in 0..4000 {
            trial.push(0, Class::Bulk, FULL);
            trial.push(1, Class::Urgent, FULL);
            trial.push(1, Class::Urgent, FULL);
            trial.pop();
        }
        let share = trial.taken[0] as f64 / (trial.taken[0] + trial.taken[1]) as f64;
        assert!((0.24..0.27).contains(&share), "{share}");
        // Without bulk, urgent traffic gets everything.
        while trial.queue.classes[Class::Bulk as usize].len > 0 {
            trial.pop();
        }
        (0..100).for_each(|_| trial.push(1, Class::Urgent, FULL));
        (0..100).for_each(|_| assert_eq!(trial.pop(), Some(1)));
    }

    /// The excess is lost by those who send most; packets and bytes are bounded.
    #[test]
    fn a_full_queue_drops_from_the_fattest_flow() {
        for (items, bytes) in [(50, usize::MAX), (1000, 50 * FULL)] {
            let mut trial = Trial::new(items, bytes);
            for _ in 0..200 {
                (0..40).for_each(|_| trial.push(0, Class::Bulk, FULL));
                (1..4).for_each(|flow| trial.push(flow, Class::Bulk, FULL));
                trial.push(4, Class::Urgent, 100);
                assert!(trial.queue.len() <= items && trial.queue.bytes() <= bytes);
                (0..6).for_each(|_| _ = trial.pop());
            }
            assert_eq!(trial.dropped[1..5], [0; 4], "{:?}", trial.dropped);
            assert!(trial.dropped[0] > 7000);
        }
    }

    /// The fattest flow has emptied; a flow of one small packet is not mistaken for the fattest.
    #[test]
    fn the_fattest_flow_is_looked_for_again() {
        let mut trial = Trial::new(1000, 20 * FULL);
        (0..5).for_each(|_| trial.push(0, Class::Bulk, FULL));
        (0..6).for_each(|_| trial.push(1, Class::Urgent, FULL));
        (0..6).for_each(|_| assert_eq!(trial.pop(), Some(1)));
        trial.push(2, Class::Bulk, 60);
        trial.queue.set_max_bytes(4 * FULL);
        trial.push(3, Class::Bulk, 60);
        assert_eq!(trial.dropped[..4], [2, 0, 0, 0]);
    }

    /// Two flows that never have more than one packet waiting, but always one of them, take turns with the others.
    #[test]
    fn who_is_always_sparse_starves_nobody() {
        let mut trial = Trial::new(1000, usize::MAX);
        (0..600).for_each(|_| trial.push(0, Class::Bulk, FULL));
        let (mut waits, mut last) = ([false; 3], None);
        for _ in 0..600 {
            for flow in [1, 2] {
                if !waits[flow] && last != Some(flow) {
                    waits[flow] = true;
                    trial.push(flow as u32, Class::Bulk, FULL);
                }
            }
            let flow = trial.pop().expect("there is enough") as usize;
            waits[flow] = false;
            last = Some(flow);
        }
        assert!(trial.taken[0] * 4 > trial.taken[1] + trial.taken[2], "{:?}", trial.taken);
    }

    #[test]
    fn one_packet_passes_however_small_the_bound_is() {
        let mut trial = Trial::new(10, 100);
        trial.push(0, Class::Bulk, FULL);
        assert_eq!(trial.pop(), Some(0));
    }
}

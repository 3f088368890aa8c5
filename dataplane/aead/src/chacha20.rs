//! ChaCha20 with one block in each 32-bit lane.

use crate::vector::Vector;

const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The input of the blocks, except their numbers.
pub(crate) struct Input<V> {
    words: [V; 16],
    /// After the quarter rounds of the first round that do not involve the blocks' numbers.
    begun: State<V>,
}

impl<V: Vector> Input<V> {
    /// Words 4 to 15 of the initial state of every lane: its key, a word that is ignored, and its nonce.
    #[inline(always)]
    pub(crate) fn new(cpu: V::Cpu, keys_and_nonces: [V; 12]) -> Self {
        let [c0, c1, c2, c3] = CONSTANTS.map(|constant| V::splat32(cpu, constant));
        let mut words = [c0; 16];
        (words[1], words[2], words[3]) = (c1, c2, c3);
        words[4..].copy_from_slice(&keys_and_nonces);
        let mut begun = State(words);
        begun.quarter_rounds([1, 2, 3], [5, 6, 7], [9, 10, 11], [13, 14, 15]);
        Self { words, begun }
    }

    /// The state of the blocks with these numbers after the first two rounds.
    #[inline(always)]
    pub(crate) fn begin(&self, counters: V) -> State<V> {
        let mut state = State(self.begun.0);
        state.0[12] = counters;
        state.quarter_rounds([0], [4], [8], [12]);
        state.diagonal_round();
        state
    }

    /// The key stream of the blocks with these numbers, in the form of [`State::finish`].
    #[inline(always)]
    pub(crate) fn key_stream(&self, counters: V) -> [[V; 8]; 2] {
        let mut state = self.begin(counters);
        for _ in 1..10 {
            state.double_round();
        }
        state.finish(self, counters)
    }
}

/// Blocks between the first and the last round.
pub(crate) struct State<V>([V; 16]);

impl<V: Vector> State<V> {
    #[inline(always)]
    pub(crate) fn double_round(&mut self) {
        self.quarter_rounds([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]);
        self.diagonal_round();
    }

    #[inline(always)]
    fn diagonal_round(&mut self) {
        self.quarter_rounds([0, 1, 2, 3], [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]);
    }

    /// Quarter rounds in step, since they do not depend on each other.
    #[inline(always)]
    fn quarter_rounds<const N: usize>(&mut self, a: [usize; N], b: [usize; N], c: [usize; N], d: [usize; N]) {
        self.steps::<16, N>(a, b, d);
        self.steps::<12, N>(c, d, b);
        self.steps::<8, N>(a, b, d);
        self.steps::<7, N>(c, d, b);
    }

    #[inline(always)]
    fn steps<const ROTATION: i32, const N: usize>(&mut self, sum: [usize; N], addend: [usize; N], mixed: [usize; N]) {
        let x = &mut self.0;
        for i in 0..N {
            x[sum[i]] = x[sum[i]].add32(x[addend[i]]);
        }
        for i in 0..N {
            x[mixed[i]] = x[mixed[i]].xor(x[sum[i]]).rotate_left32::<ROTATION>();
        }
    }

    /// The key stream as columns of 64-bit words: first those of the 32-bit lanes 0, 1, 4, 5, 8, …, which belong to the
    /// first half, then those of the lanes 2, 3, 6, 7, …, the second half's.
    #[inline(always)]
    pub(crate) fn finish(self, input: &Input<V>, counters: V) -> [[V; 8]; 2] {
        let mut x = self.0;
        let mut before = input.words;
        before[12] = counters;
        for (word, before) in x.iter_mut().zip(before) {
            *word = word.add32(before);
        }
        let (mut first, mut second) = ([x[0]; 8], [x[0]; 8]);
        for i in 0..8 {
            first[i] = x[2 * i].unpack_low32(x[2 * i + 1]);
            second[i] = x[2 * i].unpack_high32(x[2 * i + 1]);
        }
        [first, second]
    }
}

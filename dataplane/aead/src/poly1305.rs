//! Poly1305 of one message in each 64-bit lane.
//!
//! A message's blocks m1, m2, … are absorbed as h ← (h + m)·r, modulo p = 2^130 − 5. Four whole blocks at once are
//! (h + m1)·r⁴ + m2·r³ + m3·r² + m4·r, which needs one carry instead of four.

#[cfg(test)]
mod edges;
mod limbs26;
mod limbs44;

pub(crate) use limbs26::Limbs26;
#[cfg(target_arch = "x86_64")]
pub(crate) use limbs44::Limbs44;

use crate::vector::{MAX_LANES, Vector};

/// A number modulo 2^130 − 5 in each lane, in a representation that suits the CPU's multiplication.
pub(crate) trait Field: Copy {
    type Vector: Vector<Field = Self>;
    /// A number prepared for multiplying others by it.
    type Factor: Copy;
    /// A sum of products before carrying, with room for those of four blocks.
    type Products: Copy;

    fn zero(cpu: Cpu<Self>) -> Self;
    /// From sixteen little-endian bytes, and bit 128.
    fn from_block(cpu: Cpu<Self>, low: Self::Vector, high: Self::Vector, bit_128: bool) -> Self;
    fn add(self, other: Self) -> Self;
    fn select(mask: Self::Vector, yes: Self, no: Self) -> Self;
    fn factor(self) -> Self::Factor;
    fn no_products(cpu: Cpu<Self>) -> Self::Products;
    fn add_product(sum: Self::Products, a: Self, b: &Self::Factor) -> Self::Products;
    /// Carries, so that the limbs are small enough to be added to a block and multiplied again.
    fn carry(cpu: Cpu<Self>, sum: Self::Products) -> Self;
    /// The low 128 bits of the number, which is reduced below p: low and high half.
    fn to_bits(self, cpu: Cpu<Self>) -> [Self::Vector; 2];

    #[inline(always)]
    fn multiply(self, cpu: Cpu<Self>, by: &Self::Factor) -> Self {
        Self::carry(cpu, Self::add_product(Self::no_products(cpu), self, by))
    }
}

/// The proof for a field's vector that the CPU supports it.
pub(crate) type Cpu<F> = <<F as Field>::Vector as Vector>::Cpu;

/// The keys of one message per lane, and the state of their hashes.
pub(crate) struct Authenticator<V: Vector> {
    cpu: V::Cpu,
    /// r⁴, r³, r², r: the factors of the first to the fourth of four blocks.
    powers: [<V::Field as Field>::Factor; 4],
    h: V::Field,
    s: [V; 2],
}

impl<V: Vector> Authenticator<V> {
    /// Takes r and s from the first four 64-bit words of each message's first block of key stream.
    #[inline(always)]
    pub(crate) fn new(cpu: V::Cpu, key_stream: &[V; 8]) -> Self {
        let low = key_stream[0].and(V::splat64(cpu, 0x0fff_fffc_0fff_ffff));
        let high = key_stream[1].and(V::splat64(cpu, 0x0fff_fffc_0fff_fffc));
        let r1 = V::Field::from_block(cpu, low, high, false);
        let f1 = r1.factor();
        let r2 = r1.multiply(cpu, &f1);
        let f2 = r2.factor();
        let f3 = r2.multiply(cpu, &f1).factor();
        let f4 = r2.multiply(cpu, &f2).factor();
        Self { cpu, powers: [f4, f3, f2, f1], h: V::Field::zero(cpu), s: [key_stream[2], key_stream[3]] }
    }

    /// Begins to absorb 64 bytes of every message. `words` are the columns that [`Vector::transpose`] makes.
    #[inline(always)]
    pub(crate) fn begin<'a>(&self, words: &'a [V; 8]) -> Absorbing<'a, V> {
        Absorbing { words, products: V::Field::no_products(self.cpu) }
    }

    /// Absorbs 64 bytes of every message.
    #[inline(always)]
    pub(crate) fn absorb(&mut self, words: &[V; 8]) {
        let mut absorbing = self.begin(words);
        absorbing.block::<0>(self);
        absorbing.block::<1>(self);
        absorbing.block::<2>(self);
        absorbing.block::<3>(self);
        absorbing.finish(self);
    }

    /// Absorbs the blocks in the `left` bytes of each message, at most 64. An incomplete last block is filled up with
    /// zeros in `words`.
    #[inline(always)]
    pub(crate) fn absorb_up_to(&mut self, words: &[V; 8], left: &[u64; MAX_LANES]) {
        let (mut least, mut most) = (u64::MAX, 0);
        for left in &left[..V::LANES] {
            (least, most) = (least.min(*left), most.max(*left));
        }
        let left = V::from_lanes(self.cpu, left);
        for block in 0..4 {
            let begin = 16 * block as u64;
            if begin >= most {
                break;
            }
            let h = self.after_block(words[2 * block], words[2 * block + 1]);
            self.h = if begin < least {
                h
            } else {
                let has_it = V::splat64(self.cpu, begin).sub64(left).is_negative(self.cpu);
                V::Field::select(has_it, h, self.h)
            };
        }
    }

    /// The tags: low and high half of each.
    #[inline(always)]
    pub(crate) fn finish(self, lengths: &[u64; MAX_LANES]) -> [V; 2] {
        let no_associated_data = V::splat64(self.cpu, 0);
        let [low, high] = self.after_block(no_associated_data, V::from_lanes(self.cpu, lengths)).to_bits(self.cpu);
        // Modulo 2^128: the low halves carry where both had a bit, or one had and the sum has none.
        let [s_low, s_high] = self.s;
        let sum = low.add64(s_low);
        let all_ones = V::splat64(self.cpu, u64::MAX);
        let carry = low.and(s_low).or(low.or(s_low).and(sum.xor(all_ones))).shift_right64(63);
        [sum, high.add64(s_high).add64(carry)]
    }

    #[inline(always)]
    fn after_block(&self, low: V, high: V) -> V::Field {
        self.h.add(V::Field::from_block(self.cpu, low, high, true)).multiply(self.cpu, &self.powers[3])
    }
}

/// 64 bytes of every message on their way into the [`Authenticator`], so that other work can be interleaved.
pub(crate) struct Absorbing<'a, V: Vector> {
    words: &'a [V; 8],
    products: <V::Field as Field>::Products,
}

impl<V: Vector> Absorbing<'_, V> {
    /// Absorbs block `N` of the four, each once.
    #[inline(always)]
    pub(crate) fn block<const N: usize>(&mut self, to: &Authenticator<V>) {
        let mut block = V::Field::from_block(to.cpu, self.words[2 * N], self.words[2 * N + 1], true);
        if N == 0 {
            block = block.add(to.h);
        }
        self.products = V::Field::add_product(self.products, block, &to.powers[N]);
    }

    /// Finishes, after all four.
    #[inline(always)]
    pub(crate) fn finish(self, to: &mut Authenticator<V>) {
        to.h = V::Field::carry(to.cpu, self.products);
    }
}

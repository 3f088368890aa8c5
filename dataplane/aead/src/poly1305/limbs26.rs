//! Five limbs of 26 bits, for 32-bit multiplication.
//!
//! Limbs are *small* when they are below 2^26 + 2^10, as all are after a carry. A block's limbs are below 2^26, so the
//! sum that is multiplied is below 2^28; five times a small limb is below 2^29. Both fit into the 32 bits that are
//! multiplied.

use super::Field;
use crate::vector::{Multiply32, Vector};

const MASK: u64 = (1 << 26) - 1;

#[derive(Clone, Copy)]
pub(crate) struct Limbs26<V>([V; 5]);

#[derive(Clone, Copy)]
pub(crate) struct Factor<V> {
    limbs: [V; 5],
    /// Limbs 1 to 4 times 5: bits of a product from 2^130 on are worth 5 times as much at the bottom.
    wrapped: [V; 4],
}

impl<V: Multiply32<Field = Self>> Field for Limbs26<V> {
    type Vector = V;
    type Factor = Factor<V>;
    type Products = [V; 5];

    #[inline(always)]
    fn zero(cpu: V::Cpu) -> Self {
        Self([V::splat64(cpu, 0); 5])
    }

    #[inline(always)]
    fn from_block(cpu: V::Cpu, low: V, high: V, bit_128: bool) -> Self {
        let mask = V::splat64(cpu, MASK);
        let middle = low.shift_right64(52).or(high.shift_left64(12));
        let top = V::splat64(cpu, u64::from(bit_128) << 24);
        Self([
            low.and(mask),
            low.shift_right64(26).and(mask),
            middle.and(mask),
            high.shift_right64(14).and(mask),
            high.shift_right64(40).or(top),
        ])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let ([a0, a1, a2, a3, a4], [b0, b1, b2, b3, b4]) = (self.0, other.0);
        Self([a0.add64(b0), a1.add64(b1), a2.add64(b2), a3.add64(b3), a4.add64(b4)])
    }

    #[inline(always)]
    fn select(mask: V, yes: Self, no: Self) -> Self {
        let mut limbs = no.0;
        for (limb, yes) in limbs.iter_mut().zip(yes.0) {
            *limb = V::select(mask, yes, *limb);
        }
        Self(limbs)
    }

    #[inline(always)]
    fn factor(self) -> Factor<V> {
        let [_, r1, r2, r3, r4] = self.0;
        let times_5 = |limb: V| limb.add64(limb.shift_left64(2));
        Factor { limbs: self.0, wrapped: [times_5(r1), times_5(r2), times_5(r3), times_5(r4)] }
    }

    #[inline(always)]
    fn no_products(cpu: V::Cpu) -> [V; 5] {
        [V::splat64(cpu, 0); 5]
    }

    #[inline(always)]
    fn add_product(sum: [V; 5], a: Self, b: &Factor<V>) -> [V; 5] {
        let [mut s0, mut s1, mut s2, mut s3, mut s4] = sum;
        let [b0, b1, b2, b3, b4] = b.limbs;
        let [w1, w2, w3, w4] = b.wrapped;
        let rows = [
            [b0, b1, b2, b3, b4],
            [w4, b0, b1, b2, b3],
            [w3, w4, b0, b1, b2],
            [w2, w3, w4, b0, b1],
            [w1, w2, w3, w4, b0],
        ];
        for (a, [r0, r1, r2, r3, r4]) in a.0.into_iter().zip(rows) {
            s0 = s0.add64(a.product(r0));
            s1 = s1.add64(a.product(r1));
            s2 = s2.add64(a.product(r2));
            s3 = s3.add64(a.product(r3));
            s4 = s4.add64(a.product(r4));
        }
        [s0, s1, s2, s3, s4]
    }

    /// Twenty products of four blocks: the sums stay below 2^62. Two chains of carries run in parallel.
    #[inline(always)]
    fn carry(cpu: V::Cpu, sum: [V; 5]) -> Self {
        let mask = V::splat64(cpu, MASK);
        let [s0, s1, s2, s3, s4] = sum;
        let (s0, s1) = carried(mask, s0, s1);
        let (s3, s4) = carried(mask, s3, s4);
        let (s1, s2) = carried(mask, s1, s2);
        let over = s4.shift_right64(26);
        let (s0, s4) = (s0.add64(over).add64(over.shift_left64(2)), s4.and(mask));
        let (s2, s3) = carried(mask, s2, s3);
        let (s0, s1) = carried(mask, s0, s1);
        let (s3, s4) = carried(mask, s3, s4);
        Self([s0, s1, s2, s3, s4])
    }

    #[inline(always)]
    fn to_bits(self, cpu: V::Cpu) -> [V; 2] {
        let mask = V::splat64(cpu, MASK);
        let [h0, h1, h2, h3, h4] = self.0;
        // Once around, and up again: after that the number is below 2^130.
        let (h1, h2) = carried(mask, h1, h2);
        let (h2, h3) = carried(mask, h2, h3);
        let (h3, h4) = carried(mask, h3, h4);
        let over = h4.shift_right64(26);
        let (h0, h4) = (h0.add64(over).add64(over.shift_left64(2)), h4.and(mask));
        let h = up(mask, [h0, h1, h2, h3, h4]);
        // If h + 5 reaches 2^130, then h is not below p, and h − p is h + 5 without that bit.
        let [h0, h1, h2, h3, h4] = h;
        let [g0, g1, g2, g3, g4] = up(mask, [h0.add64(V::splat64(cpu, 5)), h1, h2, h3, h4]);
        let not_below = V::splat64(cpu, 0).sub64(g4.shift_right64(26));
        let reduced = Self([g0, g1, g2, g3, g4.and(mask)]);
        let [h0, h1, h2, h3, h4] = Self::select(not_below, reduced, Self(h)).0;
        [
            h0.or(h1.shift_left64(26)).or(h2.shift_left64(52)),
            h2.shift_right64(12).or(h3.shift_left64(14)).or(h4.shift_left64(40)),
        ]
    }
}

/// Moves the bits of `low` from bit 26 on into `high`.
#[inline(always)]
fn carried<V: Vector>(mask: V, low: V, high: V) -> (V, V) {
    (low.and(mask), high.add64(low.shift_right64(26)))
}

/// Carries from the lowest to the highest limb.
#[inline(always)]
fn up<V: Vector>(mask: V, [h0, h1, h2, h3, h4]: [V; 5]) -> [V; 5] {
    let (h0, h1) = carried(mask, h0, h1);
    let (h1, h2) = carried(mask, h1, h2);
    let (h2, h3) = carried(mask, h2, h3);
    let (h3, h4) = carried(mask, h3, h4);
    [h0, h1, h2, h3, h4]
}

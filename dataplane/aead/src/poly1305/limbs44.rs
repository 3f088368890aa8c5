//! Three limbs of 44, 44 and 42 bits, for 52-bit multiplication.
//!
//! Limbs are *small* when they are below 2^44 + 2^16, as all are after a carry. A block's limbs are below 2^44, so the
//! sum that is multiplied is below 2^46; twenty times a small limb is below 2^49. Both fit into the 52 bits that are
//! multiplied.

use super::Field;
use crate::vector::Multiply52;

const MASK_44: u64 = (1 << 44) - 1;
const MASK_42: u64 = (1 << 42) - 1;

#[derive(Clone, Copy)]
pub(crate) struct Limbs44<V>([V; 3]);

#[derive(Clone, Copy)]
pub(crate) struct Factor<V> {
    limbs: [V; 3],
    /// Limbs 1 and 2 times 20: bits of a product from 2^132 on are worth 2^2 · 5 times as much at the bottom.
    wrapped: [V; 2],
}

/// Low and high 52 bits of the products, by the limb that they belong to. The high ones are worth 2^52 times as much.
#[derive(Clone, Copy)]
pub(crate) struct Products<V> {
    low: [V; 3],
    high: [V; 3],
}

impl<V: Multiply52<Field = Self>> Field for Limbs44<V> {
    type Vector = V;
    type Factor = Factor<V>;
    type Products = Products<V>;

    #[inline(always)]
    fn zero(cpu: V::Cpu) -> Self {
        Self([V::splat64(cpu, 0); 3])
    }

    #[inline(always)]
    fn from_block(cpu: V::Cpu, low: V, high: V, bit_128: bool) -> Self {
        let mask = V::splat64(cpu, MASK_44);
        let middle = low.shift_right64(44).or(high.shift_left64(20));
        let top = V::splat64(cpu, u64::from(bit_128) << 40);
        Self([low.and(mask), middle.and(mask), high.shift_right64(24).or(top)])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let ([a0, a1, a2], [b0, b1, b2]) = (self.0, other.0);
        Self([a0.add64(b0), a1.add64(b1), a2.add64(b2)])
    }

    #[inline(always)]
    fn select(mask: V, yes: Self, no: Self) -> Self {
        let ([a0, a1, a2], [b0, b1, b2]) = (yes.0, no.0);
        Self([V::select(mask, a0, b0), V::select(mask, a1, b1), V::select(mask, a2, b2)])
    }

    #[inline(always)]
    fn factor(self) -> Factor<V> {
        let [_, r1, r2] = self.0;
        let times_20 = |limb: V| limb.shift_left64(4).add64(limb.shift_left64(2));
        Factor { limbs: self.0, wrapped: [times_20(r1), times_20(r2)] }
    }

    #[inline(always)]
    fn no_products(cpu: V::Cpu) -> Products<V> {
        let zero = V::splat64(cpu, 0);
        Products { low: [zero; 3], high: [zero; 3] }
    }

    #[inline(always)]
    fn add_product(mut sum: Products<V>, a: Self, b: &Factor<V>) -> Products<V> {
        let [a0, a1, a2] = a.0;
        let [b0, b1, b2] = b.limbs;
        let [w1, w2] = b.wrapped;
        sum = sum.plus(0, a0, b0).plus(1, a0, b1).plus(2, a0, b2);
        sum = sum.plus(0, a1, w2).plus(1, a1, b0).plus(2, a1, b1);
        sum.plus(0, a2, w1).plus(1, a2, w2).plus(2, a2, b0)
    }

    /// Twelve products of four blocks: the low sums stay below 2^56, the high ones below 2^47.
    #[inline(always)]
    fn carry(cpu: V::Cpu, sum: Products<V>) -> Self {
        let (mask_44, mask_42) = (V::splat64(cpu, MASK_44), V::splat64(cpu, MASK_42));
        let Products { low: [l0, l1, l2], high: [h0, h1, h2] } = sum;
        let l1 = l1.add64(l0.shift_right64(44)).add64(h0.shift_left64(8));
        let l2 = l2.add64(l1.shift_right64(44)).add64(h1.shift_left64(8));
        let over = l2.shift_right64(42).add64(h2.shift_left64(10));
        let l0 = l0.and(mask_44).add64(over).add64(over.shift_left64(2));
        let l1 = l1.and(mask_44).add64(l0.shift_right64(44));
        Self([l0.and(mask_44), l1, l2.and(mask_42)])
    }

    #[inline(always)]
    fn to_bits(self, cpu: V::Cpu) -> [V; 2] {
        let (mask_44, mask_42) = (V::splat64(cpu, MASK_44), V::splat64(cpu, MASK_42));
        let [h0, h1, h2] = self.0;
        // Once around, and up again: after that the number is below 2^130.
        let h2 = h2.add64(h1.shift_right64(44));
        let h1 = h1.and(mask_44);
        let over = h2.shift_right64(42);
        let h0 = h0.add64(over).add64(over.shift_left64(2));
        let h1 = h1.add64(h0.shift_right64(44));
        let h2 = h2.and(mask_42).add64(h1.shift_right64(44));
        let (h0, h1) = (h0.and(mask_44), h1.and(mask_44));
        // If h + 5 reaches 2^130, then h is not below p, and h − p is h + 5 without that bit.
        let g0 = h0.add64(V::splat64(cpu, 5));
        let g1 = h1.add64(g0.shift_right64(44));
        let g2 = h2.add64(g1.shift_right64(44));
        let not_below = V::splat64(cpu, 0).sub64(g2.shift_right64(42));
        let reduced = Self([g0.and(mask_44), g1.and(mask_44), g2.and(mask_42)]);
        let [h0, h1, h2] = Self::select(not_below, reduced, Self([h0, h1, h2])).0;
        [h0.or(h1.shift_left64(44)), h1.shift_right64(20).or(h2.shift_left64(24))]
    }
}

impl<V: Multiply52> Products<V> {
    #[inline(always)]
    fn plus(mut self, limb: usize, a: V, b: V) -> Self {
        self.low[limb] = self.low[limb].add_product_low(a, b);
        self.high[limb] = self.high[limb].add_product_high(a, b);
        self
    }
}

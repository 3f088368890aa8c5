//! Crafted cases: keys and messages for which h ends up next to 0, p and the limbs' limits, in every width.

use super::Authenticator;
use crate::vector::portable::Portable;
use crate::vector::{MAX_LANES, Vector};

/// 2^130 − 5.
const P: U = U { high: 3, low: u128::MAX - 4 };

/// A number below 2^192, with plain arithmetic for comparison.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct U {
    high: u64,
    low: u128,
}

fn add(a: U, b: U) -> U {
    let (low, carry) = a.low.overflowing_add(b.low);
    let sum = U { high: a.high + b.high + u64::from(carry), low };
    if sum >= P { subtract(sum, P) } else { sum }
}

fn subtract(a: U, b: U) -> U {
    let (low, borrow) = a.low.overflowing_sub(b.low);
    U { high: a.high - b.high - u64::from(borrow), low }
}

/// Bit by bit: slow, but short enough to check by eye.
fn multiply(a: U, b: U) -> U {
    let mut product = U { high: 0, low: 0 };
    for bit in (0..130).rev() {
        product = add(product, product);
        let set = if bit < 128 { b.low >> bit & 1 == 1 } else { b.high >> (bit - 128) & 1 == 1 };
        if set {
            product = add(product, a);
        }
    }
    product
}

/// a^(p − 2), the inverse modulo the prime p.
fn inverse(a: U) -> U {
    let exponent = subtract(P, U { high: 0, low: 2 });
    let mut power = U { high: 0, low: 1 };
    for bit in (0..130).rev() {
        power = multiply(power, power);
        let set = if bit < 128 { exponent.low >> bit & 1 == 1 } else { exponent.high >> (bit - 128) & 1 == 1 };
        if set {
            power = multiply(power, a);
        }
    }
    power
}

const R_BITS: u128 = 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;

fn block(low: u128) -> U {
    let low = U { high: 1, low };
    if low >= P { subtract(low, P) } else { low }
}

/// h after the blocks and the block of lengths.
fn hash(r: u128, blocks: &[u128]) -> U {
    let r = U { high: 0, low: r & R_BITS };
    let lengths = (blocks.len() as u128 * 16) << 64;
    blocks.iter().chain([&lengths]).fold(U { high: 0, low: 0 }, |h, m| multiply(add(h, block(*m)), r))
}

/// The last block with which h ends at `wanted`, if there is one.
fn last_block(r: u128, before: &[u128], wanted: U) -> Option<u128> {
    let inverse = inverse(U { high: 0, low: r & R_BITS });
    let lengths = block(((before.len() as u128 + 1) * 16) << 64);
    let r = U { high: 0, low: r & R_BITS };
    let h = before.iter().fold(U { high: 0, low: 0 }, |h, m| multiply(add(h, block(*m)), r));
    let minus = |a: U, b: U| add(a, subtract(P, b));
    let needed = minus(multiply(minus(multiply(wanted, inverse), lengths), inverse), h);
    // A block has bit 128 set and no higher one; the sum may be that plus p.
    [needed, U { high: needed.high + 4, low: needed.low.wrapping_sub(5) }]
        .into_iter()
        .find(|n| n.high == 1)
        .map(|n| n.low)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 ^ self.0 >> 29
    }

    /// Often one of the numbers at which something carries.
    fn number(&mut self) -> u128 {
        let edges = [
            0,
            1,
            4,
            5,
            u128::MAX,
            u128::MAX - 4,
            u128::MAX << 44,
            u128::MAX << 88,
            (1 << 44) - 1,
            u128::MAX << 26,
            (1 << 104) - 1,
            u128::MAX << 64,
        ];
        match self.next() % 24 {
            edge @ 0..12 => edges[edge as usize],
            _ => u128::from(self.next()) << 64 | u128::from(self.next()),
        }
    }
}

struct Case {
    r: u128,
    s: u128,
    blocks: Vec<u128>,
}

fn case(random: &mut Random, blocks: usize) -> Case {
    let (r, s) = (random.number(), random.number());
    let mut blocks: Vec<u128> = (0..blocks).map(|_| random.number()).collect();
    let k = random.next() % 8;
    let wanted = match random.next() % 4 {
        0 => U { high: 0, low: u128::from(k) },
        1 => subtract(P, U { high: 0, low: u128::from(k) + 1 }),
        2 => add(U { high: 0, low: 0_u128.wrapping_sub(k.into()) }, U { high: u64::from(k == 0), low: 0 }),
        _ => U { high: 0, low: (1 << 88) - u128::from(k) },
    };
    if r & R_BITS != 0
        && let Some(before) = blocks.len().checked_sub(1)
    {
        // Other second-to-last blocks are tried until a last block exists: for half of them there is none.
        for _ in 0..16 {
            if let Some(last) = last_block(r, &blocks[..before], wanted) {
                blocks[before] = last;
                assert_eq!(hash(r, &blocks), wanted);
                break;
            }
            match before {
                0 => break,
                _ => blocks[before - 1] = random.number(),
            }
        }
    }
    Case { r, s, blocks }
}

/// The tags of one message per lane.
#[inline(always)]
fn tags<V: Vector>(cpu: V::Cpu, cases: &[Case]) -> [[u64; MAX_LANES]; 2] {
    let column = |of: &dyn Fn(&Case) -> u64| {
        let mut lanes = [0; MAX_LANES];
        lanes.iter_mut().zip(cases).for_each(|(lane, case)| *lane = of(case));
        V::from_lanes(cpu, &lanes)
    };
    let mut keys = [V::splat64(cpu, 0); 8];
    keys[0] = column(&|c| c.r as u64);
    keys[1] = column(&|c| (c.r >> 64) as u64);
    keys[2] = column(&|c| c.s as u64);
    keys[3] = column(&|c| (c.s >> 64) as u64);
    let mut authenticator = Authenticator::<V>::new(cpu, &keys);
    let longest = cases.iter().map(|c| c.blocks.len()).max().unwrap();
    let shortest = cases.iter().map(|c| c.blocks.len()).min().unwrap();
    for at in (0..longest).step_by(4) {
        let mut words = [V::splat64(cpu, 0); 8];
        for (i, word) in words.iter_mut().enumerate() {
            *word = column(&|c| c.blocks.get(at + i / 2).map_or(0, |b| (b >> (64 * (i % 2))) as u64));
        }
        if at + 4 <= shortest {
            authenticator.absorb(&words);
        } else {
            let mut left = [0; MAX_LANES];
            left.iter_mut().zip(cases).for_each(|(l, c)| *l = (c.blocks.len().saturating_sub(at).min(4) * 16) as u64);
            authenticator.absorb_up_to(&words, &left);
        }
    }
    let mut lengths = [0; MAX_LANES];
    lengths.iter_mut().zip(cases).for_each(|(l, c)| *l = c.blocks.len() as u64 * 16);
    authenticator.finish(&lengths).map(V::to_lanes)
}

fn check(name: &str, lanes: usize, rounds: u64, tags: impl Fn(&[Case]) -> [[u64; MAX_LANES]; 2]) {
    let mut random = Random(rounds);
    let mut crafted = 0;
    for round in 0..rounds {
        let most = random.next() as usize % 12;
        let blocks = |random: &mut Random| if round % 2 == 0 { most } else { random.next() as usize % 12 };
        let cases: Vec<Case> = (0..lanes)
            .map(|_| {
                let blocks = blocks(&mut random);
                case(&mut random, blocks)
            })
            .collect();
        let [low, high] = tags(&cases);
        for (lane, case) in cases.iter().enumerate() {
            let h = hash(case.r, &case.blocks);
            crafted += usize::from(h.low < 8 || h >= subtract(P, U { high: 0, low: 8 }));
            let tag = h.low.wrapping_add(case.s);
            assert_eq!([low[lane], high[lane]], [tag as u64, (tag >> 64) as u64], "{name}, round {round}, lane {lane}");
        }
    }
    assert!(crafted as u64 > rounds / 4, "{crafted} ends next to 0 or p in {rounds} rounds");
}

#[test]
fn plain_arithmetic_is_right() {
    let a = U { high: 2, low: 0x1234_5678_9abc_def0_0fed_cba9_8765_4321 };
    assert_eq!(multiply(a, inverse(a)), U { high: 0, low: 1 });
    assert_eq!(add(subtract(P, U { high: 0, low: 1 }), U { high: 0, low: 1 }), U { high: 0, low: 0 });
}

#[test]
fn portable() {
    check("portable", 4, if cfg!(miri) { 8 } else { 100 }, |cases| tags::<Portable>((), cases));
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod registers {
    use super::*;
    use crate::vector::{avx2, avx512};

    #[test]
    fn avx2_26_bits() {
        match avx2::HasAvx2::detect() {
            Some(cpu) => check("avx2", 4, 100, |cases| tags::<avx2::Avx2>(cpu, cases)),
            None => println!("not run: this CPU has no AVX2"),
        }
    }

    #[test]
    fn avx512_44_bits() {
        match avx512::Avx512::detect() {
            Some(cpu) => {
                check("ifma256", 4, 100, |cases| tags::<avx512::Ifma256>(cpu, cases));
                check("ifma512", 8, 100, |cases| tags::<avx512::Ifma512>(cpu, cases));
            }
            None => println!("not run: this CPU has no AVX-512 with IFMA"),
        }
    }
}

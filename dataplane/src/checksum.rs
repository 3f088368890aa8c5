//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Partial sums are plain numbers, sums of big-endian 16-bit words: add them, and [`fold`] the total. A header's
//! checksum is the complement of the folded sum. For the sums to add up, every piece of a packet except the last must
//! have an even length.

/// From this length on, vectors are worth their setup.
const WIDE: usize = 64;

/// The sum of the bytes as big-endian 16-bit words; an odd last byte is the upper half of its word. At most 0xffff, so
/// that 65,537 of these can be added.
#[inline]
pub fn sum(bytes: &[u8]) -> u32 {
    let total = if bytes.len() < WIDE { words(bytes) } else { wide(bytes) };
    // 2^16 ≡ 1, so halves may be added to each other: 64 → 33 → 32 → 16 bits.
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 32) + (total & 0xffff_ffff);
    // The sum of byte-swapped words is the byte-swapped sum: swap once, at the end.
    u32::from(u16::from_be(fold(total as u32)))
}

/// The sum in native byte order.
fn wide(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(total) = avx2::sum(bytes) {
        return total;
    }
    lanes(bytes)
}

/// Adds 32-bit words in 64-bit lanes, in a form that compiles to the baseline's vectors.
fn lanes(bytes: &[u8]) -> u64 {
    let (strides, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0u64; 8];
    for stride in strides {
        for (lane, word) in lanes.iter_mut().zip(stride.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    lanes.iter().sum::<u64>() + words(rest)
}

/// The same by hand, since the compiler's AVX2 code for [`lanes`] changes with every edit. 55 GB/s at 1400 B, where the
/// baseline reaches 9.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code)]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_extract_epi64, _mm256_loadu_si256, _mm256_set1_epi64x,
        _mm256_setzero_si256, _mm256_srli_epi64,
    };

    /// The sum, if the processor has AVX2.
    #[inline]
    pub(super) fn sum(bytes: &[u8]) -> Option<u64> {
        // SAFETY: the processor has AVX2.
        std::arch::is_x86_feature_detected!("avx2").then(|| unsafe { vectors(bytes) })
    }

    #[target_feature(enable = "avx2")]
    fn vectors(bytes: &[u8]) -> u64 {
        let (strides, rest) = bytes.as_chunks::<64>();
        let lower = _mm256_set1_epi64x(0xffff_ffff);
        let mut sums = [_mm256_setzero_si256(); 4];
        for stride in strides {
            for half in 0..2 {
                // SAFETY: 32 bytes from 32 * half on lie in the stride; the load needs no alignment.
                let words = unsafe { _mm256_loadu_si256(stride.as_ptr().add(32 * half).cast::<__m256i>()) };
                sums[2 * half] = _mm256_add_epi64(sums[2 * half], _mm256_and_si256(words, lower));
                sums[2 * half + 1] = _mm256_add_epi64(sums[2 * half + 1], _mm256_srli_epi64::<32>(words));
            }
        }
        let sum = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
        let lanes = [
            _mm256_extract_epi64::<0>(sum),
            _mm256_extract_epi64::<1>(sum),
            _mm256_extract_epi64::<2>(sum),
            _mm256_extract_epi64::<3>(sum),
        ];
        lanes.iter().map(|lane| *lane as u64).sum::<u64>() + super::words(rest)
    }
}

/// Adds 32-bit words one by one.
#[inline(always)]
fn words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let total = words.iter().fold(0, |total, word| total + u64::from(u32::from_ne_bytes(*word)));
    let last = match *rest {
        [] => 0,
        [a] => u16::from_ne_bytes([a, 0]).into(),
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, ..] => u32::from_ne_bytes([a, b, c, 0]),
    };
    total + u64::from(last)
}

/// The ones' complement sum in 16 bits.
#[inline]
pub fn fold(partial: u32) -> u16 {
    let once = (partial >> 16) + (partial & 0xffff);
    ((once >> 16) + (once & 0xffff)) as u16
}

/// The checksum after one 16-bit word under it changed from `old` to `new` (RFC 1624, equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
///
/// `addresses` are source and destination as in the IP header, 8 or 32 bytes; `len` is the length of what follows the
/// IP header.
#[inline]
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> u32 {
    debug_assert!(matches!(addresses.len(), 8 | 32));
    sum(addresses) + u32::from(protocol) + (len >> 16) as u32 + (len & 0xffff) as u32
}

/// Completes the checksum at `field` over `packet[start..]`. The field holds the sum of the pseudo-header.
///
/// # Panics
/// If the field lies outside the packet.
#[inline]
pub fn complete(packet: &mut [u8], start: usize, field: usize) {
    let checksum = match !fold(sum(&packet[start..])) {
        // The two zeros are equal, and in UDP this one does not mean "no checksum".
        0 => 0xffff,
        checksum => checksum,
    };
    packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Writes the checksum of an SCTP packet if it has none (RFC 9260, section 6.8 and appendix A: CRC32c).
pub fn complete_sctp(packet: &mut [u8]) -> bool {
    const FIELD: std::ops::Range<usize> = 8..12;
    let missing = packet.get(FIELD) == Some(&[0; 4]);
    if missing {
        let checksum = crc32c(packet).to_le_bytes();
        packet[FIELD].copy_from_slice(&checksum);
    }
    missing
}

/// CRC32c, a byte at a time: hosts that leave it to the device are rare.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, byte| (crc >> 8) ^ TABLE[(crc as u8 ^ byte) as usize])
}

/// The right checksum for an IPv4 header, whatever its checksum field contains now.
///
/// # Panics
/// If the header is shorter than 20 bytes.
#[inline]
pub fn ipv4_header(header: &[u8]) -> u16 {
    let field = u16::from_be_bytes([header[10], header[11]]);
    !fold(sum(header) + u32::from(!field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_that_of_the_standard() {
        // RFC 3720, appendix B.4, and the usual check value.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// RFC 1071, literally.
    fn naive(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total >> 16) + (total & 0xffff);
        }
        total as u16
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn every_length_and_alignment_sums_as_the_naive_loop() {
        let bytes = noise(2200);
        for start in 0..64 {
            for len in 0..2000 {
                let piece = &bytes[start..start + len];
                assert_eq!(fold(sum(piece)), naive(piece), "start {start}, length {len}");
            }
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        for len in [1, 2, 63, 64, 65, 65_535, 65_536, 1_000_001] {
            let bytes = vec![0xff; len];
            assert_eq!(fold(sum(&bytes)), naive(&bytes), "length {len}");
            assert_eq!(lanes(&bytes) % 0xffff, words(&bytes) % 0xffff);
        }
        assert_eq!(sum(&[]), 0);
        assert_eq!(fold(u32::MAX), 0xffff);
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn update_equals_computing_anew() {
        let mut header = noise(20);
        for word in (0..20).step_by(2) {
            for new in [0, 1, 0x00ff, 0xff00, 0xfffe, 0xffff] {
                let before = !fold(sum(&header));
                let old = u16::from_be_bytes([header[word], header[word + 1]]);
                header[word..word + 2].copy_from_slice(&u16::to_be_bytes(new));
                assert_eq!(update(before, old, new), !fold(sum(&header)));
            }
        }
    }

    #[test]
    fn update_keeps_the_zero_of_rfc_1624() {
        // Section 4's example: equation 2 would give 0xffff.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn ipv4_header_ignores_its_field() {
        let mut header = noise(20);
        let checksum = ipv4_header(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(fold(sum(&header)), 0xffff);
        assert_eq!(ipv4_header(&header), checksum);
    }

    #[test]
    fn pseudo_headers_of_both_families() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2];
        let by_hand = [192, 0, 2, 1, 198, 51, 100, 2, 0, 17, 0x01, 0x02];
        assert_eq!(fold(pseudo_header(&v4, 17, 0x0102)), naive(&by_hand));
        let mut v6 = noise(32);
        let partial = pseudo_header(&v6, 6, 0x12345);
        v6.extend([0x00, 0x01, 0x23, 0x45, 0, 0, 0, 6]);
        assert_eq!(fold(partial), naive(&v6));
    }

    /// `cargo test --release -p penstock-dataplane checksum::tests::speed -- --ignored --nocapture`
    #[test]
    #[ignore = "prints throughput"]
    fn speed() {
        for len in [20, 64, 576, 1400, 65536] {
            let bytes = noise(len);
            for (name, function) in [
                ("sum", sum as fn(&[u8]) -> u32),
                ("baseline lanes", |b| lanes(b) as u32),
                ("naive", |b| naive(b).into()),
            ] {
                let rounds = 200_000_000 / (len + 100);
                let begun = std::time::Instant::now();
                for _ in 0..rounds {
                    std::hint::black_box(function(std::hint::black_box(&bytes)));
                }
                let each = begun.elapsed().as_secs_f64() / rounds as f64;
                println!("{len:6} B {name:15} {:8.1} ns {:7.1} GB/s", each * 1e9, len as f64 / each / 1e9);
            }
        }
    }
}

//! The table of cases, and the cases that both sides have in common.

use super::packet::ethernet;

pub struct Case<Verdict> {
    pub name: String,
    pub frame: Vec<u8>,
    /// The expected verdict; if none, both sides must merely agree.
    pub expected: Option<Verdict>,
}

pub struct Table<Verdict>(pub Vec<Case<Verdict>>);

impl<Verdict> Default for Table<Verdict> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<Verdict: Copy> Table<Verdict> {
    pub fn case(&mut self, name: String, frame: Vec<u8>, verdict: Verdict) {
        self.0.push(Case { name, frame, expected: Some(verdict) });
    }

    /// A good packet behind an EtherType other than IP, behind the tag of a VLAN, and behind two tags.
    pub fn link_layer(&mut self, packet: &[u8], not_ip: Verdict, other_vlan: Verdict, double_tagged: Verdict) {
        for vlan in [1, 10, 100, 4000, 4095] {
            let frame = ethernet(&[0x8100_0000 | vlan], 0x0800, packet.to_vec());
            self.case(format!("VLAN {vlan}"), frame, other_vlan);
        }
        for ethertype in [0x0000, 0x0806, 0x05dc, 0x0801, 0x8847, 0x8864, 0x88cc, 0xdd86, 0xffff] {
            let name = format!("EtherType {ethertype:04x}");
            self.case(name.clone(), ethernet(&[], ethertype, packet.to_vec()), not_ip);
            let frame = ethernet(&[0x8100_0000], ethertype, packet.to_vec());
            self.case(format!("tagged {name}"), frame, not_ip);
        }
        for tags in [
            &[0x8100_0000, 0x8100_0002][..],
            &[0x88a8_0001],
            &[0x88a8_0001, 0x8100_0002],
            &[0x8100_0000, 0x88a8_0002],
            &[0x8100_0000, 0x8100_0002, 0x8100_0003],
        ] {
            let frame = ethernet(tags, 0x0800, packet.to_vec());
            self.case(format!("tags {tags:x?}"), frame, double_tagged);
        }
    }

    /// The first frame of each family, untagged and tagged, cut at every byte.
    pub fn cut(&mut self, bad_length: Verdict, truncated: Verdict) {
        for name in ["v4 ", "v6 ", "priority-tagged v4 ", "priority-tagged v6 "] {
            let whole = self.0.iter().find(|case| case.name.starts_with(name));
            let whole = whole.expect("the table has one").frame.clone();
            let ip = if name.starts_with("priority-tagged") { 18 } else { 14 };
            let header = if name.ends_with("v4 ") { 20 } else { 40 };
            for len in 0..whole.len() {
                let verdict = if len < ip + header { truncated } else { bad_length };
                self.case(format!("{name}cut to {len}"), whole[..len].to_vec(), verdict);
            }
        }
    }

    /// Noise, and the table's frames with a few bytes changed; only the agreement counts.
    pub fn random(&mut self, seed: u64) {
        let mut random = Xorshift(seed);
        let frames = self.0.len();
        for round in 0..2000 {
            let mut frame = match round % 4 {
                0 => vec![0; random.below(200)],
                _ => self.0[random.below(frames)].frame.clone(),
            };
            if round % 4 == 0 {
                frame.fill_with(|| random.below(256) as u8);
            } else if !frame.is_empty() {
                for _ in 0..=random.below(3) {
                    let at = random.below(frame.len().min(64));
                    frame[at] = random.below(256) as u8;
                }
            }
            self.0.push(Case { name: format!("random {round}"), frame, expected: None });
        }
    }
}

/// Marsaglia's xorshift64, so that a failure can be repeated.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

//! Numbers that a seed decides: the same seed gives the same run.

/// A generator (xorshift64*).
pub struct Random(u64);

impl Random {
    /// From a seed, or from the one in `PGBQ_SEED`, which goes before it; it is printed, to be given again.
    pub fn new(seed: u64) -> Self {
        let seed = std::env::var("PGBQ_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(seed);
        eprintln!("PGBQ_SEED={seed}");
        Self(seed.wrapping_mul(2).wrapping_add(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// One of these.
    pub fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

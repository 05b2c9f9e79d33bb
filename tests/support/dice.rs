//! Chance for randomised tests, from a seed that is printed.
//! Never cryptographic. Invariant: the same seed gives the same throws.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator (`splitmix64`).
pub struct Dice(u64);

impl Dice {
    /// From `WALMGR_SEED`, or from the clock; prints it.
    pub fn thrown(what: &str) -> Dice {
        let given = std::env::var("WALMGR_SEED").ok();
        let given = given.and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::from(now.subsec_nanos()) ^ (now.as_secs() << 20)
        });
        println!("{what}: WALMGR_SEED={seed}");
        Dice(seed)
    }

    /// From this seed.
    pub const fn of(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Another generator, for one of several at work.
    pub fn split(&mut self) -> Dice {
        Dice(self.next())
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below this one.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// The same for an index.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// One of these.
    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Bytes of no meaning.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

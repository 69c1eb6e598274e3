//! The only source of chance in a run: the log's SplitMix64, seeded once, with what only a simulation draws.

use quorate_log::faulty::SplitMix;

#[derive(Clone, Debug)]
pub struct Rng(SplitMix);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(SplitMix::new(seed))
    }
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
    /// Uniform in `0..bound`. The bias of the plain remainder does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is a number to draw");
        self.0.below(bound)
    }
    /// Uniform in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() {
            return None;
        }
        let at = usize::try_from(self.below(items.len() as u64)).expect("an index fits");
        items.get(at)
    }
    /// A generator of its own for one part, so that drawing more there moves nothing elsewhere.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next_u64())
    }
}

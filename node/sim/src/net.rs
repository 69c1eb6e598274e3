//! The simulated network: what happens to each message on each directed link.

use std::collections::BTreeMap;

use quorate_raft::types::MemberId;

use crate::rng::Rng;

/// The state of one directed link. Zero everywhere is a perfect network.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    cut: bool,
    /// Cut and whole in turns of this length; 0 is steady.
    flap_us: u64,
}

/// Conditions that hold for the whole network for a while.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub loss_per_mille: u64,
    pub duplicate_per_mille: u64,
    pub delay_min_us: u64,
    pub delay_max_us: u64,
    /// Now and then a message takes this long, so that messages of old terms arrive late.
    pub straggler_per_mille: u64,
    pub straggler_us: u64,
}

/// A quiet local network.
pub const CALM: Weather = Weather {
    loss_per_mille: 0,
    duplicate_per_mille: 0,
    delay_min_us: 100,
    delay_max_us: 600,
    straggler_per_mille: 0,
    straggler_us: 0,
};

#[derive(Debug)]
pub struct Net {
    links: BTreeMap<(MemberId, MemberId), Link>,
    pub weather: Weather,
    rng: Rng,
    pub lost: u64,
    pub duplicated: u64,
    pub stragglers: u64,
}

impl Net {
    pub fn new(rng: Rng) -> Net {
        Net { links: BTreeMap::new(), weather: CALM, rng, lost: 0, duplicated: 0, stragglers: 0 }
    }

    pub fn cut(&mut self, from: MemberId, to: MemberId) {
        self.links.entry((from, to)).or_default().cut = true;
    }

    pub fn flap(&mut self, from: MemberId, to: MemberId, period_us: u64) {
        self.links.entry((from, to)).or_default().flap_us = period_us;
    }

    pub fn heal(&mut self) {
        self.links.clear();
        self.weather = CALM;
    }

    pub fn heal_links(&mut self) {
        self.links.clear();
    }

    pub fn is_cut(&self, from: MemberId, to: MemberId, now: u64) -> bool {
        self.links.get(&(from, to)).is_some_and(|l| l.cut || (l.flap_us > 0 && (now / l.flap_us) % 2 == 1))
    }

    /// Delays of the copies of one message that will arrive; empty when it is lost. Each copy is delayed on its own, so
    /// messages overtake one another.
    pub fn deliveries(&mut self, from: MemberId, to: MemberId, now: u64) -> Vec<u64> {
        if self.is_cut(from, to, now) || self.rng.chance(self.weather.loss_per_mille) {
            self.lost += 1;
            return Vec::new();
        }
        let mut copies = vec![self.delay()];
        if self.rng.chance(self.weather.duplicate_per_mille) {
            self.duplicated += 1;
            copies.push(self.delay());
        }
        copies
    }

    fn delay(&mut self) -> u64 {
        if self.rng.chance(self.weather.straggler_per_mille) {
            self.stragglers += 1;
            return self.rng.between(self.weather.delay_min_us, self.weather.straggler_us);
        }
        self.rng.between(self.weather.delay_min_us, self.weather.delay_max_us)
    }
}

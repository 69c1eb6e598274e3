//! The simulated network: what happens to each message on each directed link.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use quorate_raft::frame::{self, HEADER_BYTES};
use quorate_raft::types::MemberId;
use quorate_raft::wire::{self, Msg};

use crate::rng::Rng;

/// One in so many messages is remembered for a replay.
const REMEMBER_EVERY: u64 = 16;
/// And so many of them are kept.
const REMEMBERED_MAX: usize = 256;
/// What a sender may have under way to a receiver that does not read; more is lost with the connection.
const STUCK_MAX: u64 = 300;
/// Frames of the simulation are small.
const FRAME_BYTES_MAX: usize = 8 << 20;

/// The state of one directed link. Zero everywhere is a perfect network.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    cut: bool,
    /// Cut and whole in turns of this length; 0 is steady.
    flap_us: u64,
}

/// Conditions that hold for the whole network for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weather {
    pub loss_per_mille: u64,
    pub duplicate_per_mille: u64,
    pub corrupt_per_mille: u64,
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
    corrupt_per_mille: 0,
    delay_min_us: 100,
    delay_max_us: 600,
    straggler_per_mille: 0,
    straggler_us: 0,
};

/// A receiver that does not read for a while: what is sent to it waits, in order.
#[derive(Clone, Copy, Debug)]
struct Stuck {
    until: u64,
    waiting: u64,
}

/// A message that was on the wire once.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub from: MemberId,
    pub to: MemberId,
    pub msg: Msg,
}

/// What became of a frame whose bytes were damaged on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damaged {
    /// The envelope's check or the decoder refused it.
    Refused,
    /// It reads as the very message that was sent.
    Unchanged,
    /// It reads as something else.
    Accepted,
}

#[derive(Debug)]
pub struct Net {
    links: BTreeMap<(MemberId, MemberId), Link>,
    stuck: BTreeMap<MemberId, Stuck>,
    remembered: VecDeque<Remembered>,
    /// When the last message of a link arrives, while messages may overtake one another.
    arrivals: BTreeMap<(MemberId, MemberId), u64>,
    pub weather: Weather,
    rng: Rng,
    pub lost: u64,
    pub duplicated: u64,
    pub stragglers: u64,
    pub overtaken: u64,
    pub waited: u64,
}

impl Net {
    pub fn new(rng: Rng) -> Net {
        Net {
            links: BTreeMap::new(),
            stuck: BTreeMap::new(),
            remembered: VecDeque::new(),
            arrivals: BTreeMap::new(),
            weather: CALM,
            rng,
            lost: 0,
            duplicated: 0,
            stragglers: 0,
            overtaken: 0,
            waited: 0,
        }
    }

    pub fn cut(&mut self, from: MemberId, to: MemberId) {
        self.links.entry((from, to)).or_default().cut = true;
    }

    pub fn mend(&mut self, from: MemberId, to: MemberId) {
        self.links.remove(&(from, to));
    }

    pub fn flap(&mut self, from: MemberId, to: MemberId, period_us: u64) {
        self.links.entry((from, to)).or_default().flap_us = period_us;
    }

    /// `to` reads nothing until then.
    pub fn stick(&mut self, to: MemberId, until: u64) {
        self.stuck.insert(to, Stuck { until, waiting: 0 });
    }

    pub fn heal(&mut self) {
        self.links.clear();
        self.stuck.clear();
        self.weather = CALM;
    }

    pub fn heal_links(&mut self) {
        self.links.clear();
    }

    pub fn is_cut(&self, from: MemberId, to: MemberId, now: u64) -> bool {
        self.links.get(&(from, to)).is_some_and(|l| l.cut || (l.flap_us > 0 && (now / l.flap_us) % 2 == 1))
    }

    /// Nothing is wrong with the network.
    pub fn is_calm(&self, now: u64) -> bool {
        self.links.is_empty() && self.weather == CALM && self.stuck.values().all(|stuck| stuck.until <= now)
    }

    /// Delays of the copies of one message that will arrive; empty when it is lost. Each copy is delayed on its own, so
    /// messages overtake one another.
    pub fn deliveries(&mut self, from: MemberId, to: MemberId, now: u64) -> Vec<u64> {
        if self.is_cut(from, to, now) || self.rng.chance(self.weather.loss_per_mille) {
            self.lost += 1;
            return Vec::new();
        }
        if let Some(stuck) = self.stuck.get_mut(&to).filter(|stuck| stuck.until > now) {
            stuck.waiting += 1;
            if stuck.waiting > STUCK_MAX {
                self.lost += 1;
                return Vec::new();
            }
            self.waited += 1;
            return vec![stuck.until - now + stuck.waiting];
        }
        let mut copies = vec![self.delay()];
        if self.rng.chance(self.weather.duplicate_per_mille) {
            self.duplicated += 1;
            copies.push(self.delay());
        }
        if self.weather != CALM {
            let last = self.arrivals.entry((from, to)).or_default();
            self.overtaken += u64::from(now + copies[0] < *last);
            *last = (*last).max(now + copies[0]);
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

    /// Keeps a few messages for later.
    pub fn remember(&mut self, from: MemberId, to: MemberId, msg: &Msg) {
        if self.rng.below(REMEMBER_EVERY) != 0 {
            return;
        }
        if self.remembered.len() == REMEMBERED_MAX {
            self.remembered.pop_front();
        }
        self.remembered.push_back(Remembered { from, to, msg: msg.clone() });
    }

    /// Messages that were on the wire before and come again.
    pub fn replay(&mut self, count: u64) -> Vec<Remembered> {
        let kept = self.remembered.make_contiguous();
        (0..count).filter_map(|_| self.rng.pick(kept).cloned()).collect()
    }

    /// Whether the next frame is damaged on its way.
    pub fn is_damaging(&mut self) -> bool {
        self.weather.corrupt_per_mille > 0 && self.rng.chance(self.weather.corrupt_per_mille)
    }

    /// Puts a message on the wire, damages its bytes and reads it as a peer would. `trusting`: without the checksum.
    pub fn damage(&mut self, msg: &Msg, trusting: bool) -> (Damaged, Option<Msg>) {
        let mut bytes = framed(msg);
        match self.rng.below(4) {
            0 => {
                let keep = self.rng.below(bytes.len() as u64);
                bytes.truncate(usize::try_from(keep).expect("a length fits"));
            }
            1 => {
                // A run of bytes from elsewhere.
                let at = usize::try_from(self.rng.below(bytes.len() as u64)).expect("a length fits");
                let end = bytes.len().min(at + 16);
                for byte in &mut bytes[at..end] {
                    *byte = self.rng.below(256) as u8;
                }
            }
            _ => {
                for _ in 0..self.rng.between(1, 4) {
                    let at = usize::try_from(self.rng.below(bytes.len() as u64)).expect("a length fits");
                    bytes[at] ^= 1 << self.rng.below(8);
                }
            }
        }
        let read = if trusting { unframe_trusting(&bytes) } else { unframe(&bytes) };
        match read {
            None => (Damaged::Refused, None),
            Some(read) if read == *msg => (Damaged::Unchanged, Some(read)),
            Some(read) => (Damaged::Accepted, Some(read)),
        }
    }
}

/// A message as it is on the wire.
pub fn framed(msg: &Msg) -> BytesMut {
    let mut bytes = BytesMut::new();
    let start = frame::begin(&mut bytes);
    wire::encode(msg, &mut bytes);
    frame::seal(&mut bytes, start);
    bytes
}

/// Reads one frame with one message; `None` is refused.
pub fn unframe(bytes: &[u8]) -> Option<Msg> {
    let (header, body) = split(bytes)?;
    let length = frame::body_bytes(header, FRAME_BYTES_MAX).ok()?;
    let body = body.get(..length)?;
    frame::check(header, body).ok()?;
    decode_whole(body)
}

/// The same without the checksum: what the decoder makes of wild bytes.
fn unframe_trusting(bytes: &[u8]) -> Option<Msg> {
    decode_whole(split(bytes)?.1)
}

fn split(bytes: &[u8]) -> Option<([u8; HEADER_BYTES], &[u8])> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    Some((*header, body))
}

fn decode_whole(body: &[u8]) -> Option<Msg> {
    let mut body = Bytes::copy_from_slice(body);
    let msg = wire::decode(&mut body).ok()?;
    body.is_empty().then_some(msg)
}

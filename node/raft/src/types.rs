//! Words shared by the core, the log, the transport and the simulator.
//!
//! Nothing here decides anything. Sizes of what may come from peers or disks are bounded by the decoders in [`crate::wire`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;

/// A term number, as in the Raft thesis. 0 is before the first election.
pub type Term = u64;
/// A position in the log. The first entry has index 1; 0 is "before the log".
pub type Index = u64;

/// The identity of one member, never reused. 0 means "nobody" on the wire only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}
impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// An instant in microseconds since an origin that only this process knows. Monotonic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// The instant `micros` later, saturating.
    pub fn after(self, micros: u64) -> Time {
        Time(self.0.saturating_add(micros))
    }
    /// Microseconds since `earlier`, 0 if `earlier` is in the future.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Names one request of the shell; comes back in the effect that resolves it. Unique per process run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Number of a write handed to the log, strictly increasing within one process run, starting at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WriteSeq(pub u64);

/// What an entry carries.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Payload {
    /// The first entry of a leader's own term.
    Noop,
    /// A command of the replicated machine, opaque to the core.
    Data(Bytes),
    /// A configuration, active as soon as it is appended.
    Config(Config),
}

/// One log entry.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    pub term: Term,
    pub index: Index,
    pub payload: Payload,
}

impl Entry {
    /// Bytes this entry counts for in budgets: payload plus a fixed overhead.
    pub fn size_bytes(&self) -> usize {
        match &self.payload {
            Payload::Noop => ENTRY_OVERHEAD_BYTES,
            Payload::Data(data) => Entry::data_size_bytes(data),
            Payload::Config(config) => ENTRY_OVERHEAD_BYTES + config.size_bytes(),
        }
    }

    /// What an entry with this command counts for.
    pub fn data_size_bytes(data: &Bytes) -> usize {
        ENTRY_OVERHEAD_BYTES + data.len()
    }
}

/// Term, index, kind and length, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// How a member is reached, as written into the configuration. The core carries it and never looks inside.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MemberInfo {
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
}

/// A configuration: who votes, who learns, and how each is reached.
///
/// # Invariants
/// - `voters` is not empty (except in the empty configuration of a joiner that has heard from nobody yet).
/// - a learner is in neither `voters` nor `voters_outgoing`.
/// - every id in a set has an entry in `members`, and no other id has one.
/// - `removed` holds every id that ever left; none of them is a member again.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Config {
    pub voters: BTreeSet<MemberId>,
    /// The old half of a joint configuration; empty when not joint.
    pub voters_outgoing: BTreeSet<MemberId>,
    pub learners: BTreeSet<MemberId>,
    pub members: BTreeMap<MemberId, MemberInfo>,
    pub removed: BTreeSet<MemberId>,
}

impl Config {
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }
    pub fn is_voter(&self, id: MemberId) -> bool {
        self.voters.contains(&id) || self.voters_outgoing.contains(&id)
    }
    pub fn contains(&self, id: MemberId) -> bool {
        self.members.contains_key(&id)
    }
    pub fn size_bytes(&self) -> usize {
        let info = |i: &MemberInfo| {
            i.name.len() + i.peer_urls.iter().chain(&i.client_urls).map(|u| u.len() + 4).sum::<usize>() + 16
        };
        self.members.values().map(info).sum::<usize>()
            + 8 * (self.voters.len() + self.voters_outgoing.len() + self.learners.len() + self.removed.len())
    }
}

/// Identifies one configuration for compare-and-set. (incarnation, term, index): index alone is ABA after a truncation.
/// The bootstrap configuration of a cluster is at term 0, index 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ConfigAt {
    pub incarnation: u64,
    pub term: Term,
    pub index: Index,
}

/// Term and vote: what must be durable before a promise leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct HardState {
    pub term: Term,
    pub vote: Option<MemberId>,
}

/// Where a snapshot stands, with the configuration active there.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct SnapMeta {
    pub index: Index,
    pub term: Term,
    pub config: Config,
    /// Position of `config` (at or before `index`).
    pub config_at: ConfigAt,
}

/// One record of the durable log. The log applies them strictly in order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Record {
    HardState(HardState),
    /// Contiguous entries that follow the last one (after any `TruncateTo` before it).
    Append(Vec<Entry>),
    /// Drops every entry with an index above this one.
    TruncateTo(Index),
    /// The state up to `index` is held by the engine. Entries at or below may be dropped; if the log does not hold
    /// (index, term), everything in it is dropped and the log starts behind the mark.
    SnapshotMark(SnapMeta),
}

/// What the log gives back at start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    pub hard: HardState,
    /// The last snapshot mark, or the bootstrap mark (index 0) with the initial configuration.
    pub snapshot: SnapMeta,
    /// Entries behind the mark, contiguous from `snapshot.index + 1`.
    pub entries: Vec<Entry>,
    /// The incarnation stamped into the data directory.
    pub incarnation: u64,
}

//! The machine: committed entries in, answers and events out.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::cluster_version::{ClusterVersion, Feature};
use crate::command::Command;
use crate::error::StateError;
use crate::hash;
use crate::response::{Event, Response};
use crate::snapshot::{self, RestoreError, Restored};
use crate::store::{Store, TreeStore};
use crate::txn::Writer;
use crate::validate::Limits;
use crate::version::KeyValue;
use crate::view::View;

/// Most changes forgotten with one entry after a compaction. Bounds the stall to a few hundred microseconds, and is
/// twice what the largest ordinary transaction adds, so that a backlog always shrinks.
pub const COMPACTION_STEP: usize = 256;

/// The compact revision of a store that was never compacted. As in etcd, below every revision a client can name.
pub const NEVER_COMPACTED: i64 = -1;

/// Most alarms raised at one time: more than a cluster has members. Bounds what a view copies.
pub const ALARMS_MAX: usize = 64;

/// Everything a member holds, at one applied index.
///
/// # Invariants
/// - `hash` and `size_bytes` are the sums over every version in `store`.
/// - Every version above `compact_revision`, and per key the newest at or below it, is in `store`.
#[derive(Clone, Debug)]
pub(crate) struct State<S> {
    pub store: S,
    pub applied_index: u64,
    pub applied_term: u64,
    pub revision: i64,
    pub compact_revision: i64,
    pub hash: u64,
    pub size_bytes: u64,
    /// What every member understands.
    pub cluster_version: ClusterVersion,
    /// Members that a person has declared to be out of space.
    pub alarms: BTreeSet<u64>,
}

impl<S: Store> State<S> {
    pub fn new() -> State<S> {
        State {
            store: S::default(),
            applied_index: 0,
            applied_term: 0,
            revision: 1,
            compact_revision: NEVER_COMPACTED,
            hash: 0,
            size_bytes: 0,
            cluster_version: ClusterVersion::default(),
            alarms: BTreeSet::new(),
        }
    }

    pub fn append(&mut self, version: Arc<KeyValue>) {
        self.account(&version);
        self.store.append(version);
    }

    pub fn account(&mut self, version: &KeyValue) {
        self.hash = self.hash.wrapping_add(hash::of_version(version));
        self.size_bytes += version.size_bytes();
    }

    /// The hash of everything replicated but the applied index, so that an entry without effect leaves it alone.
    pub fn whole_hash(&self) -> u64 {
        let first = self.store.first_change().unwrap_or_default();
        let version = u64::from(self.cluster_version.major) << 16 | u64::from(self.cluster_version.minor);
        let alarms: Vec<u64> = self.alarms.iter().copied().collect();
        hash::of_numbers(&[
            version,
            hash::of_numbers(&alarms),
            self.hash,
            self.revision.cast_unsigned(),
            self.compact_revision.cast_unsigned(),
            first.0.cast_unsigned(),
            u64::from(first.1),
            self.store.bare_changes() as u64,
        ])
    }

    /// Whether a change is left to forget.
    pub fn compaction_pending(&self) -> bool {
        self.store.can_forget(self.compact_revision)
    }

    fn compact(&mut self, revision: i64) -> Result<Response, StateError> {
        if revision <= self.compact_revision {
            return Err(StateError::Compacted);
        }
        if revision > self.revision {
            return Err(StateError::FutureRevision);
        }
        self.compact_revision = revision;
        Ok(Response::Compact { revision: self.revision })
    }

    fn set_alarm(&mut self, member: u64, is_raised: bool) -> Result<Response, StateError> {
        self.require(Feature::RaisedAlarms)?;
        if !is_raised {
            self.alarms.remove(&member);
        } else if self.alarms.len() >= ALARMS_MAX && !self.alarms.contains(&member) {
            return Err(StateError::TooManyAlarms);
        } else {
            self.alarms.insert(member);
        }
        Ok(Response::Nothing { revision: self.revision })
    }

    /// Whether every member can do it, from this entry on.
    pub fn require(&self, feature: Feature) -> Result<(), StateError> {
        if self.cluster_version >= feature.since() { Ok(()) } else { Err(StateError::NotAllMembersCan) }
    }

    fn forget_some(&mut self) {
        for _ in 0..COMPACTION_STEP {
            let Some(forgotten) = self.store.forget_change(self.compact_revision) else { return };
            for version in forgotten.iter() {
                self.hash = self.hash.wrapping_sub(hash::of_version(version));
                self.size_bytes -= version.size_bytes();
            }
        }
    }
}

/// What one entry did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The answer for whoever proposed it. An error changed nothing.
    pub outcome: Result<Response, StateError>,
    /// Its changes in order, all of one main revision; empty if it changed nothing.
    pub events: Vec<Event>,
    /// Store revision after it.
    pub revision: i64,
}

/// The replicated machine. `S` is the data structure; there is one in use.
#[derive(Clone, Debug)]
pub struct Machine<S = TreeStore> {
    state: State<S>,
}

impl Machine {
    /// An empty store at revision 1, before the first log entry.
    pub fn new() -> Machine {
        Machine::with_store()
    }

    /// Rebuilds a machine from all chunks of [`View::snapshot_chunks`], in order.
    ///
    /// # Errors
    /// Any byte that differs, any chunk missing, doubled or out of place. Nothing of the chunks is to be trusted then.
    pub fn restore(chunks: impl IntoIterator<Item = Bytes>) -> Result<Restored, RestoreError> {
        snapshot::restore(chunks)
    }
}

impl Default for Machine {
    fn default() -> Machine {
        Machine::new()
    }
}

impl<S: Store> Machine<S> {
    pub fn with_store() -> Machine<S> {
        Machine { state: State::new() }
    }

    pub(crate) fn of(state: State<S>) -> Machine<S> {
        Machine { state }
    }

    /// Applies the entry at `index` of `term`. `None` is an entry that is no command of this machine: a leader's first
    /// entry, a configuration.
    ///
    /// Besides, up to [`COMPACTION_STEP`] changes below the compact revision are forgotten.
    ///
    /// # Panics
    /// If `index` is not the next one or `term` goes back: entries were lost, doubled or reordered on the way.
    pub fn apply(&mut self, index: u64, term: u64, command: Option<&Command>) -> Applied {
        let state = &mut self.state;
        assert_eq!(index, state.applied_index + 1, "entries are applied in order, without a gap");
        assert!(term >= state.applied_term, "terms never go back: {term} after {}", state.applied_term);
        state.applied_index = index;
        state.applied_term = term;
        let revision_before = state.revision;
        let (outcome, events) = match command {
            None => (Ok(Response::Nothing { revision: state.revision }), Vec::new()),
            Some(command) => execute(state, command),
        };
        state.forget_some();
        assert_eq!(state.revision, revision_before + i64::from(!events.is_empty()), "changes make one revision");
        Applied { outcome, events, revision: state.revision }
    }

    /// A picture of everything now, in O(1).
    pub fn view(&self) -> View<S> {
        View::of(self.state.clone())
    }

    pub fn applied_index(&self) -> u64 {
        self.state.applied_index
    }

    pub fn revision(&self) -> i64 {
        self.state.revision
    }

    pub fn compact_revision(&self) -> i64 {
        self.state.compact_revision
    }

    /// See [`View::state_hash`].
    pub fn state_hash(&self) -> u64 {
        self.state.whole_hash()
    }

    /// See [`View::cluster_version`].
    pub fn cluster_version(&self) -> ClusterVersion {
        self.state.cluster_version
    }

    /// See [`View::size_bytes`].
    pub fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }
}

fn execute<S: Store>(state: &mut State<S>, command: &Command) -> (Result<Response, StateError>, Vec<Event>) {
    if let Err(refused) = command.validate(Limits::APPLY) {
        return (Err(refused), Vec::new());
    }
    if command.grows() && !state.alarms.is_empty() {
        return (Err(StateError::NoSpace), Vec::new());
    }
    match command {
        Command::Compact { revision } => return (state.compact(*revision), Vec::new()),
        Command::ClusterVersion(version) => {
            state.cluster_version = state.cluster_version.max(*version);
            return (Ok(Response::Nothing { revision: state.revision }), Vec::new());
        }
        Command::Alarm { member, is_raised } => return (state.set_alarm(*member, *is_raised), Vec::new()),
        Command::Put(_) | Command::DeleteRange(_) | Command::Txn(_) => {}
    }
    let mut writer = Writer::new(state);
    let outcome = match command {
        Command::Put(put) => writer.put_alone(put).map(Response::Put),
        Command::DeleteRange(delete) => Ok(Response::DeleteRange(writer.delete(delete))),
        Command::Txn(txn) => writer.txn(txn).map(Response::Txn),
        Command::Compact { .. } | Command::ClusterVersion(_) | Command::Alarm { .. } => {
            unreachable!("handled above")
        }
    };
    let events = writer.finish();
    assert!(outcome.is_ok() || events.is_empty(), "a refused command changes nothing");
    (outcome, events)
}

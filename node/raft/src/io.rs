//! Inputs and effects: the whole interface of the core.
//!
//! The contract, obeyed by the driver and by the simulator alike:
//! - inputs are fed one at a time with the current time; effects are carried out in the order they were given;
//! - `Effect::Write`s go to the log in order; when all writes up to a number are durable the shell feeds `Input::Written`;
//! - `Effect::Send` with `after: Some(seq)` leaves this process only once write `seq` is durable (this is the only
//!   place where persist-before-promise is stated); `after: None` may leave at once;
//! - `Effect::Commit` entries may be applied at once; the shell feeds `Input::Applied` as the machine passes them. They
//!   may be ahead of the local disk: the engine persists no further than [`crate::Node::durable_index`];
//! - right after [`crate::Node::restart`], before anything else, the shell feeds `Input::Persisted` with the engine's own
//!   position if it is beyond the snapshot mark; `Effect::Commit` then starts behind it;
//! - messages that have arrived are fed before a `Tick` of the same instant;
//! - a snapshot: `SnapshotReady` → `Effect::Install` → (engine swaps durably) → `Installed` → `Write(SnapshotMark)`. A
//!   crash before the mark finds an engine at a position (index, term) that the log does not hold; the shell then restarts
//!   the core with that position as the mark and without entries. A `Persisted`
//!   of that state that overtakes `Installed` is ignored;
//! - every `Effect::SendSnapshot` is answered with one `Input::SnapshotSent`, whatever became of it.

use bytes::Bytes;

use crate::types::{Config, ConfigAt, Entry, Index, MemberId, Record, SnapMeta, Term, Token, WriteSeq};
use crate::wire::Msg;

/// How a read wants to be made linearizable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReadMode {
    /// One heartbeat round confirms leadership (batched with every read that waits).
    Index,
    /// Under a leader lease where leases are on; otherwise the same as `Index`.
    Lease,
}

/// Everything that can happen to a member.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// Time passed; due at [`crate::Node::deadline`] at the latest.
    Tick,
    Msg {
        from: MemberId,
        msg: Msg,
    },
    /// Commands to append, in order. Each token is resolved on its own. Only a leader accepts (others resolve
    /// `Outcome::Refused(Refusal::NotLeader{..})`; the shell forwards).
    Propose {
        batch: Vec<(Token, Bytes)>,
    },
    /// A linearizable read; on a follower the core asks the leader for an index. Ends in `Effect::ReadAt` or `Effect::Resolve`.
    Read {
        token: Token,
        mode: ReadMode,
    },
    /// A membership change under compare-and-set. `expect: None` compares with the current committed one (stock etcd calls).
    Change {
        token: Token,
        expect: Option<ConfigAt>,
        change: Change,
    },
    Transfer {
        token: Token,
        to: MemberId,
    },
    /// All writes up to and including this number are durable.
    Written {
        upto: WriteSeq,
    },
    /// The log failed: the core stops promising anything, forever.
    WriteFailed,
    /// A flush is older than the `stall` limit.
    DiskStalled,
    /// The replication connection to or from this peer broke (a hint, never proof of death).
    PeerGone {
        peer: MemberId,
    },
    /// The machine has applied everything up to this index.
    Applied {
        index: Index,
    },
    /// The engine holds everything up to this index durably: the log may be cut up to here.
    Persisted {
        meta: SnapMeta,
    },
    /// A snapshot that `Effect::SendSnapshot` asked for arrived at (`ok`) or failed to reach the peer. `index` is the snapshot's index.
    SnapshotSent {
        to: MemberId,
        index: Index,
        ok: bool,
    },
    /// A snapshot from the leader `from` (in `term`) has been received completely, verified and staged by the shell.
    SnapshotReady {
        from: MemberId,
        term: Term,
        meta: SnapMeta,
    },
    /// The engine swapped to the snapshot that `Effect::Install` named, durably.
    Installed {
        index: Index,
    },
}

/// One membership change.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    AddLearner {
        id: MemberId,
        info: crate::types::MemberInfo,
    },
    /// Refused while the learner's durable match is more than `lag_max` entries behind or its last answer is stale.
    Promote {
        id: MemberId,
        lag_max: u64,
    },
    /// A voter becomes a learner.
    Demote {
        id: MemberId,
    },
    /// Removes a voter or learner. A leader that is to go itself starts a transfer first and refuses with
    /// `Refusal::Transferring` (ask the new leader); without anybody to transfer to it appends the change and steps down
    /// once that is committed. The same holds for `Demote` and for `Swap` of the leader.
    Remove {
        id: MemberId,
    },
    /// One joint change: `new` (a caught-up learner) in, `old` (a voter) out; the joint state is left automatically.
    Swap {
        new: MemberId,
        old: MemberId,
        lag_max: u64,
    },
    /// New addresses or name of a member; voting sets unchanged.
    UpdateInfo {
        id: MemberId,
        info: crate::types::MemberInfo,
    },
}

/// Why a request was refused before it was given an index: it has certainly not been executed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    NotLeader {
        leader: Option<MemberId>,
    },
    /// This leader has not applied its own term's no-op yet (changes only; reads wait).
    NotReady,
    /// Uncommitted bytes are over budget.
    Overloaded {
        uncommitted_bytes: usize,
        limit_bytes: usize,
    },
    /// As many reads wait for an index as may.
    TooManyReads {
        limit: usize,
    },
    TooLarge {
        bytes: usize,
        limit_bytes: usize,
    },
    DiskStalled,
    Transferring {
        to: MemberId,
    },
    /// Compare-and-set failed; `current` is the committed configuration.
    ConfigMismatch {
        expected: ConfigAt,
        current: ConfigAt,
    },
    ChangeInFlight,
    UnknownMember {
        id: MemberId,
    },
    /// The id is (or was once) a member already.
    AlreadyMember {
        id: MemberId,
    },
    NotLearner {
        id: MemberId,
    },
    NotVoter {
        id: MemberId,
    },
    LearnerBehind {
        id: MemberId,
        behind: u64,
        lag_max: u64,
    },
    /// The member's last answer is older than an election timeout (or it never answered).
    MemberSilent {
        id: MemberId,
    },
    /// The change would leave a configuration without a live majority.
    QuorumAtRisk {
        live_after: usize,
        quorum_after: usize,
    },
    BadTransferee {
        to: MemberId,
    },
    /// The member is stopping or has been removed.
    Stopped,
}

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// A proposal: committed at this position (the machine's answer follows when it is applied). A change: active and
    /// committed as this configuration.
    Committed { term: Term, index: Index },
    /// Leadership moved to the target.
    Transferred,
    /// The transfer did not happen within one election timeout; held proposals were released.
    TransferAborted,
    /// Certainly not executed.
    Refused(Refusal),
    /// Leadership was lost before the outcome was known: it may or may not take effect.
    Unknown,
}

/// What the shell is asked to do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    Write {
        seq: WriteSeq,
        record: Record,
    },
    Send {
        to: MemberId,
        msg: Msg,
        after: Option<WriteSeq>,
    },
    /// Entries newly committed, contiguous behind the last `Commit`. May be applied at once.
    Commit {
        entries: Vec<Entry>,
    },
    /// The read may be answered by any view with applied ≥ `index`.
    ReadAt {
        token: Token,
        index: Index,
    },
    Resolve {
        token: Token,
        outcome: Outcome,
    },
    /// Durable match of a follower moved (acknowledgement policies, status).
    Acked {
        peer: MemberId,
        durable: Index,
    },
    /// Stream a snapshot to a peer that is behind the kept log; answer with `Input::SnapshotSent`.
    SendSnapshot {
        to: MemberId,
        term: Term,
    },
    /// Swap the engine to the staged snapshot and answer with `Input::Installed`; the `Write(SnapshotMark)` follows that.
    Install {
        meta: SnapMeta,
    },
    Event(Event),
}

/// Things worth telling people and metrics.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    BecameFollower {
        term: Term,
        leader: Option<MemberId>,
    },
    BecamePreCandidate {
        term: Term,
    },
    BecameCandidate {
        term: Term,
    },
    BecameLeader {
        term: Term,
    },
    /// The leader's own no-op is committed and applied: it serves. `since_last_leader_contact_us`: failover time as this
    /// member saw it, from the last word of the old leader.
    LeaderReady {
        term: Term,
        noop_index: Index,
        since_last_leader_contact_us: u64,
    },
    /// The newest configuration in the log changed (appended or rolled back).
    ConfigActive {
        at: ConfigAt,
        config: Config,
    },
    ConfigCommitted {
        at: ConfigAt,
        config: Config,
    },
    /// A committed configuration no longer contains this member.
    Removed {
        at: ConfigAt,
    },
    TransferStarted {
        to: MemberId,
    },
    SteppedDown {
        term: Term,
        why: StepDown,
    },
    /// A leader says that this log ends before `held`, which it was told to be durable here: this member's disk was lost or
    /// exchanged. It promises nothing any more, and must not after a restart either: it is replaced under another id.
    Reverted {
        held: Index,
        last_index: Index,
    },
    /// `peer` said that its log is durable up to `held` and now ends at `last_index`: its disk was lost or exchanged. It
    /// counts for nothing and must be replaced under another id.
    LogReverted {
        peer: MemberId,
        held: Index,
        last_index: Index,
    },
}

/// Why a leader stopped leading by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StepDown {
    QuorumLost,
    DiskStalled,
    DiskFailed,
    /// Its own log lacks what it once promised.
    LogReverted,
    HigherTerm,
    Removed,
}

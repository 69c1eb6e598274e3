//! Messages between members, and their bytes.
//!
//! Decoders trust nothing: lengths, counts and depths are checked against the limits below before anything is allocated.

use crate::types::{Entry, Index, Term};

/// A message between two members. The sender is known from the connection, the cluster and incarnation from its hello.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Msg {
    /// Would you vote for me in `term` (one above the sender's own)? Nothing changes at the receiver.
    PreVote {
        term: Term,
        last_term: Term,
        last_index: Index,
    },
    /// `term`: on a grant the term asked for, on a refusal the voter's own term.
    PreVoteReply {
        term: Term,
        granted: bool,
    },
    /// `forced`: sent because of TimeoutNow, skips the voter's leader-contact refusal.
    Vote {
        term: Term,
        last_term: Term,
        last_index: Index,
        forced: bool,
    },
    VoteReply {
        term: Term,
        granted: bool,
    },
    /// `commit` is the leader's commit index (the receiver caps it at what this append matched).
    Append {
        term: Term,
        prev_term: Term,
        prev_index: Index,
        entries: Vec<Entry>,
        commit: Index,
    },
    /// The log up to `matched` equals the leader's and is durable here. Sent only after the write.
    AppendReply {
        term: Term,
        matched: Index,
    },
    /// (prev_index, prev_term) is not in this log. `hint_index`/`hint_term`: the largest (index ≤ prev_index) of this log
    /// whose term is ≤ prev_term, so that the leader can skip whole terms.
    AppendReject {
        term: Term,
        prev_index: Index,
        hint_index: Index,
        hint_term: Term,
    },
    /// `commit` is capped at the receiver's match. `round` numbers heartbeat rounds of this leader's term.
    Heartbeat {
        term: Term,
        commit: Index,
        round: u64,
    },
    /// `received` and `durable` only up to the highest index an append of this term has matched (0 before that).
    /// `promise_us`: how long from receipt this member refuses votes; 0 while it honours disconnect hints.
    HeartbeatReply {
        term: Term,
        round: u64,
        received: Index,
        durable: Index,
        promise_us: u64,
    },
    TimeoutNow {
        term: Term,
    },
    /// A follower asks the leader for a read index; `ctx` is the follower's own number.
    ReadIndex {
        term: Term,
        ctx: u64,
    },
    /// `index`: None when the receiver is not a leader that can answer (ask again later).
    ReadIndexReply {
        term: Term,
        ctx: u64,
        index: Option<Index>,
    },
    /// The receiver's log is at or above the snapshot offered / staged by it; sent by a member that ignored or installed one.
    SnapshotReply {
        term: Term,
        index: Index,
    },
    /// Told by a member whose committed configuration no longer contains the receiver.
    YouAreRemoved {
        term: Term,
        config_index: Index,
    },
}

//! Messages between members. Their bytes are made and read in [`crate::codec`], re-exported here.

pub use crate::codec::{
    APPEND_ENTRIES_MAX, CONFIG_MEMBERS_MAX, CONFIG_REMOVED_MAX, ENTRY_DATA_BYTES_MAX, MEMBER_NAME_BYTES_MAX,
    MEMBER_URLS_MAX, URL_BYTES_MAX, WireError, decode, decode_config, decode_config_at, decode_entry,
    decode_hard_state, decode_snap_meta, encode, encode_config, encode_config_at, encode_entry, encode_hard_state,
    encode_snap_meta, entry_encoded_len,
};

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
    /// `last_index`: where its log ends, matched or not. Says only whether the log became shorter than it was.
    HeartbeatReply {
        term: Term,
        round: u64,
        received: Index,
        durable: Index,
        promise_us: u64,
        last_index: Index,
    },
    /// The commit index moved and there is no entry to send with it. Capped at the receiver's match; not answered.
    Commit {
        term: Term,
        commit: Index,
    },
    /// Start an election at once: the leader hands over.
    TimeoutNow {
        term: Term,
    },
    /// A follower asks the leader for a read index; `ctx` is the follower's own number. `lease`: a lease will do.
    ReadIndex {
        term: Term,
        ctx: u64,
        lease: bool,
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
        config_term: Term,
        config_index: Index,
    },
    /// Told by a leader: the receiver's log ends before `held`, which it had said to hold durably. What it promised is
    /// lost; it stops before its next vote or acknowledgement.
    YourLogReverted {
        term: Term,
        held: Index,
    },
}

impl Msg {
    /// The sender's term, except in `PreVote` and in a granted `PreVoteReply`, where it is the term asked for.
    pub fn term(&self) -> Term {
        match *self {
            Msg::PreVote { term, .. }
            | Msg::PreVoteReply { term, .. }
            | Msg::Vote { term, .. }
            | Msg::VoteReply { term, .. }
            | Msg::Append { term, .. }
            | Msg::AppendReply { term, .. }
            | Msg::AppendReject { term, .. }
            | Msg::Heartbeat { term, .. }
            | Msg::HeartbeatReply { term, .. }
            | Msg::Commit { term, .. }
            | Msg::TimeoutNow { term }
            | Msg::ReadIndex { term, .. }
            | Msg::ReadIndexReply { term, .. }
            | Msg::SnapshotReply { term, .. }
            | Msg::YouAreRemoved { term, .. }
            | Msg::YourLogReverted { term, .. } => term,
        }
    }
}

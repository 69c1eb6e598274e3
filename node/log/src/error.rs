//! Errors of the log and what the receiver must do about them.

use std::io;

/// What the receiver of an error must do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Trying again unchanged does not help; nothing was done.
    Reject,
    /// Nothing was done; trying again later may help.
    Retry,
    /// This member may not promise anything any more.
    Halt,
}

/// Who a data directory belongs to. Stamped into every segment, batch and meta slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
    /// Raised only by a restore or a forced recovery.
    pub incarnation: u64,
}

/// Why the log could not be created, opened or extended.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory holds no finished log.
    #[error("no log in the data directory: create one first (bootstrap or join)")]
    Missing,
    /// The directory holds a log already.
    #[error("the data directory already holds a log: open it, or use an empty directory")]
    Exists,
    /// Another program wrote the directory. Its bytes may be sound; this program cannot read them.
    #[error(
        "{file} is of format version {found}, this program reads version {wanted}: start the release that wrote it, or \
         replace this member under a new id"
    )]
    Format { file: String, found: u16, wanted: u16 },
    /// The directory belongs to somebody else.
    #[error("the data directory belongs to {found:?}, this process is {expected:?}: mount the right volume")]
    ForeignIdentity { expected: Identity, found: Identity },
    /// The disk is full. Nothing of this batch was accepted, and nothing promised before is touched.
    #[error("no space for {wanted_bytes} bytes of {file}: free or grow the volume")]
    NoSpace { file: String, wanted_bytes: u64, source: io::Error },
    /// An operation of the disk failed, so what was written may or may not be there.
    #[error("{operation} of {file} failed: stop this member and check its disk")]
    Io { operation: &'static str, file: String, source: io::Error },
    /// Something that was promised is damaged. The log is left as it is.
    #[error("{file} is damaged at byte {offset_bytes}: {what}; replace this member under a new id")]
    Corrupt { file: String, offset_bytes: u64, what: String },
    /// A copy of term and vote that could be the newest cannot be read, so this member must not vote.
    #[error(
        "meta slot {slot} is unreadable and the log's tail was cut: the last vote may be lost; replace this member under a new id"
    )]
    LostVote { slot: usize },
    /// The engine lost what the log was cut for.
    #[error(
        "the engine stands at {engine}, the log begins behind {mark}: entries between are gone here; replace this member under a new id"
    )]
    EngineBehind { engine: u64, mark: u64 },
    /// The caller broke the order of writes.
    #[error("write {seq} is out of order: {what}")]
    OutOfOrder { seq: u64, what: String },
    /// An earlier error already stopped this log.
    #[error("the log has stopped after an earlier error: restart this member")]
    Stopped,
}

impl LogError {
    /// What the receiver must do.
    pub fn verdict(&self) -> Verdict {
        match self {
            LogError::NoSpace { .. } => Verdict::Retry,
            LogError::Missing | LogError::Exists => Verdict::Reject,
            LogError::Format { .. }
            | LogError::ForeignIdentity { .. }
            | LogError::Io { .. }
            | LogError::Corrupt { .. }
            | LogError::LostVote { .. }
            | LogError::EngineBehind { .. }
            | LogError::OutOfOrder { .. }
            | LogError::Stopped => Verdict::Halt,
        }
    }
}

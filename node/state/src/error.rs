//! Why a command or a read was refused. All of these are deterministic: every member gives the same one.

/// A refusal with etcd's words. Clients recognise errors by this text, so it is part of the interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum StateError {
    /// The revision asked for is below the compact revision.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision asked for does not exist yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// A key is empty.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist; also what an operation without a request gets.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More compares or operations than the limit.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// One branch puts a key twice, or puts a key that it also deletes.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// The lease of a put does not exist.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// An alarm that was raised stands against what grows.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// More alarms than [`crate::machine::ALARMS_MAX`].
    #[error("etcdserver: too many alarms are raised: lower some first")]
    TooManyAlarms,
    /// The version that all members understand is below that of the feature.
    #[error("etcdserver: not every member can do that yet: upgrade all of them first")]
    NotAllMembersCan,
    /// A transaction that writes was given to a view. A fault of the caller, never of the client.
    #[error("etcdserver: txn with writes cannot be evaluated on a view")]
    NotReadOnly,
}

impl StateError {
    /// The exact text for the wire.
    pub fn message(self) -> &'static str {
        match self {
            StateError::Compacted => "etcdserver: mvcc: required revision has been compacted",
            StateError::FutureRevision => "etcdserver: mvcc: required revision is a future revision",
            StateError::EmptyKey => "etcdserver: key is not provided",
            StateError::KeyNotFound => "etcdserver: key not found",
            StateError::ValueProvided => "etcdserver: value is provided",
            StateError::LeaseProvided => "etcdserver: lease is provided",
            StateError::TooManyOps => "etcdserver: too many operations in txn request",
            StateError::DuplicateKey => "etcdserver: duplicate key given in txn request",
            StateError::LeaseNotFound => "etcdserver: requested lease not found",
            StateError::NoSpace => "etcdserver: mvcc: database space exceeded",
            StateError::TooManyAlarms => "etcdserver: too many alarms are raised: lower some first",
            StateError::NotAllMembersCan => "etcdserver: not every member can do that yet: upgrade all of them first",
            StateError::NotReadOnly => "etcdserver: txn with writes cannot be evaluated on a view",
        }
    }
}

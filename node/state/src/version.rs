//! One version of one key.

use bytes::Bytes;

use crate::store::ChangeAt;

/// Bytes that a stored version costs besides its key and value: the version itself, its places in the key map and in
/// the log of changes, and the heads of three allocations. An estimate, but the same on every member.
pub const VERSION_OVERHEAD_BYTES: u64 = 256;

/// One version of one key. A tombstone has version 0, no value and create revision 0.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// Main revision at which the key last came into being.
    pub create_revision: i64,
    /// Main revision that made this version.
    pub mod_revision: i64,
    /// Place among the changes of `mod_revision`, from 0. Orders watch events; not on the wire.
    pub sub_revision: u32,
    /// Counts the puts since the key came into being, from 1; 0 is a tombstone.
    pub version: i64,
    pub lease: i64,
}

impl KeyValue {
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Its place among all changes.
    pub fn at(&self) -> ChangeAt {
        (self.mod_revision, self.sub_revision)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.key.len() as u64 + self.value.len() as u64 + VERSION_OVERHEAD_BYTES
    }
}

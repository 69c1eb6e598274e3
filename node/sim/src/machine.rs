//! The replicated machine of one member, as the node drives it: commands wrapped with who asked.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_raft::types::{Entry, Index, MemberId, Payload};

/// A whole state, cheap to clone for the tiny states of a simulation.
pub type Image = Machine;

/// Who proposed a command, so that it is answered where it was asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RequestId {
    pub origin: MemberId,
    pub number: u64,
}

/// What one put made of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    pub revision: i64,
    pub key: Bytes,
    pub value: Bytes,
}

/// An applied command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    pub request: RequestId,
    pub written: Written,
}

#[derive(Clone, Debug, Default)]
pub struct Machine {
    applied: Index,
    revision: i64,
    pairs: BTreeMap<Bytes, (Bytes, i64)>,
    hash: u64,
}

impl Machine {
    pub fn new() -> Machine {
        Machine { revision: 1, ..Machine::default() }
    }
    pub fn applied(&self) -> Index {
        self.applied
    }
    pub fn revision(&self) -> i64 {
        self.revision
    }
    pub fn get(&self, key: &Bytes) -> Option<(Bytes, i64)> {
        self.pairs.get(key).cloned()
    }
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Applies the next entry.
    pub fn apply(&mut self, entry: &Entry) -> Option<Applied> {
        assert_eq!(entry.index, self.applied + 1, "entries are applied in order");
        self.applied = entry.index;
        let Payload::Data(data) = &entry.payload else { return None };
        let (request, key, value) = decode(data.clone());
        self.revision += 1;
        let revision = self.revision;
        self.hash = mix(self.hash ^ mix(fold(&key)) ^ fold(&value)).wrapping_add(revision.unsigned_abs());
        self.pairs.insert(key.clone(), (value.clone(), revision));
        Some(Applied { request, written: Written { revision, key, value } })
    }
}

pub fn encode_put(request: RequestId, key: &Bytes, value: &Bytes) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64(request.origin.0);
    out.put_u64(request.number);
    out.put_u32(u32::try_from(key.len()).expect("simulated keys are short"));
    out.put_slice(key);
    out.put_slice(value);
    out.freeze()
}

fn decode(mut data: Bytes) -> (RequestId, Bytes, Bytes) {
    let request = RequestId { origin: MemberId(data.get_u64()), number: data.get_u64() };
    let key_bytes = data.get_u32();
    let key = data.split_to(usize::try_from(key_bytes).expect("a u32 fits"));
    (request, key, data)
}

fn fold(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn mix(value: u64) -> u64 {
    (value ^ (value >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

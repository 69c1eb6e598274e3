//! How versions are laid out in a sorted store of bytes; the same for all such candidates.
//!
//! `v` key 0x00 0x00 revision → value, with 0x00 in keys written as 0x00 0xff, so that versions of a key are neighbours
//! and keys keep their order; `c` revision → keys changed; `a` → applied index.

pub const APPLIED: &[u8] = b"a";

pub fn version(key: &[u8], revision: u64) -> Vec<u8> {
    let mut out = prefix(key);
    out.extend_from_slice(&revision.to_be_bytes());
    out
}

pub fn prefix(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 11);
    out.push(b'v');
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 0]);
    out
}

/// Where keys at or after `key` begin.
pub fn from(key: &[u8]) -> Vec<u8> {
    let mut out = prefix(key);
    out.truncate(out.len() - 2);
    out
}

/// Key and revision of a version's place.
pub fn parse_version(place: &[u8]) -> (Vec<u8>, u64) {
    let (key, revision) = place[1..].split_at(place.len() - 9);
    let revision = u64::from_be_bytes(revision.try_into().expect("eight bytes"));
    let mut out = Vec::with_capacity(key.len());
    let mut bytes = key[..key.len() - 2].iter();
    while let Some(byte) = bytes.next() {
        out.push(*byte);
        if *byte == 0 {
            bytes.next();
        }
    }
    (out, revision)
}

pub fn change(revision: u64, sub: u32) -> Vec<u8> {
    let mut out = vec![b'c'];
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(&sub.to_be_bytes());
    out
}

pub fn parse_change(place: &[u8]) -> u64 {
    u64::from_be_bytes(place[1..9].try_into().expect("eight bytes"))
}

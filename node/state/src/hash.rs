//! A 64-bit hash of versions, added up without order, so that the hash of the whole state follows each change.
//!
//! It finds corruption and divergence; it is no defence against someone who chooses collisions.

use crate::version::KeyValue;

const K1: u64 = 0x9E37_79B9_7F4A_7C15;
const K2: u64 = 0xD6E8_FEB8_6659_FD93;
const LANES: usize = 4;

pub fn of_version(version: &KeyValue) -> u64 {
    let mut hash = bytes(K1, &version.key);
    hash = bytes(hash, &version.value);
    for number in [
        version.create_revision.cast_unsigned(),
        version.mod_revision.cast_unsigned(),
        u64::from(version.sub_revision),
        version.version.cast_unsigned(),
        version.lease.cast_unsigned(),
    ] {
        hash = word(hash, number);
    }
    finish(hash)
}

/// Mixes numbers into one hash.
pub fn of_numbers(numbers: &[u64]) -> u64 {
    finish(numbers.iter().fold(K2, |hash, number| word(hash, *number)))
}

/// The length goes in first, so that moving a byte from key to value changes the hash. Long data goes through lanes that
/// do not wait for each other: a member that starts hashes everything it has.
fn bytes(hash: u64, data: &[u8]) -> u64 {
    let mut hash = word(hash, data.len() as u64);
    let mut blocks = data.chunks_exact(8 * LANES);
    if blocks.len() > 0 {
        let mut lanes: [u64; LANES] = std::array::from_fn(|lane| hash ^ K2.rotate_left(lane as u32));
        for block in &mut blocks {
            for (lane, chunk) in lanes.iter_mut().zip(block.chunks_exact(8)) {
                *lane = word(*lane, number(chunk));
            }
        }
        hash = lanes.into_iter().fold(hash, word);
    }
    let mut chunks = blocks.remainder().chunks_exact(8);
    for chunk in &mut chunks {
        hash = word(hash, number(chunk));
    }
    let rest = chunks.remainder();
    if rest.is_empty() {
        return hash;
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    word(hash, u64::from_le_bytes(last))
}

fn number(chunk: &[u8]) -> u64 {
    u64::from_le_bytes(chunk.try_into().expect("chunks have 8 bytes"))
}

fn word(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(K1);
    (mixed ^ (mixed >> 32)).rotate_left(17).wrapping_add(K2)
}

fn finish(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 31)).wrapping_mul(K2);
    let hash = (hash ^ (hash >> 29)).wrapping_mul(K1);
    hash ^ (hash >> 32)
}

/// Continues the checksum that HashKV compares.
pub fn crc_of_version(crc: u32, version: &KeyValue) -> u32 {
    let mut numbers = [0; 44];
    numbers[0..8].copy_from_slice(&version.mod_revision.to_be_bytes());
    numbers[8..12].copy_from_slice(&version.sub_revision.to_be_bytes());
    numbers[12..20].copy_from_slice(&version.create_revision.to_be_bytes());
    numbers[20..28].copy_from_slice(&version.version.to_be_bytes());
    numbers[28..36].copy_from_slice(&version.lease.to_be_bytes());
    numbers[36..44].copy_from_slice(&(version.key.len() as u64).to_be_bytes());
    let crc = crc32c::crc32c_append(crc, &numbers);
    let crc = crc32c::crc32c_append(crc, &version.key);
    let crc = crc32c::crc32c_append(crc, &(version.value.len() as u64).to_be_bytes());
    crc32c::crc32c_append(crc, &version.value)
}

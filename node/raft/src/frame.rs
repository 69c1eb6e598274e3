//! The envelope of what members send each other: length, checksum, body. Little-endian.
//!
//! Pure, so that the transport and the simulator check the same bytes with the same code. What a body means is the
//! business of [`crate::codec`] and of the transport.

use bytes::{BufMut, BytesMut};

/// Length and checksum.
pub const HEADER_BYTES: usize = 8;

/// Why bytes of a peer were not a frame. The connection they came over is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {bytes} bytes is above the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("a frame's checksum does not match its bytes")]
    Checksum,
}

/// Leaves room for the header; the body follows, then [`seal`] with the number this gives.
pub fn begin(out: &mut BytesMut) -> usize {
    let start = out.len();
    out.put_u64_le(0);
    start
}

/// Writes the header of the frame that began at `start` and ends where `out` ends.
///
/// # Panics
/// If the body has 4 GiB or more; the senders' budgets are far below.
pub fn seal(out: &mut BytesMut, start: usize) {
    let body = start + HEADER_BYTES;
    let len = u32::try_from(out.len() - body).expect("a frame is below 4 GiB");
    let crc = crc32c::crc32c(&out[body..]);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 4..body].copy_from_slice(&crc.to_le_bytes());
}

/// Length of the body, from the header and before anything is allocated.
///
/// # Errors
/// `TooLarge` above `limit`.
pub fn body_bytes(header: [u8; HEADER_BYTES], limit: usize) -> Result<usize, FrameError> {
    let [a, b, c, d, ..] = header;
    let bytes = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if bytes > limit { Err(FrameError::TooLarge { bytes, limit }) } else { Ok(bytes) }
}

/// Whether the body is the one the header was written for.
///
/// # Errors
/// `Checksum` when it is not.
pub fn check(header: [u8; HEADER_BYTES], body: &[u8]) -> Result<(), FrameError> {
    let [.., a, b, c, d] = header;
    if crc32c::crc32c(body) == u32::from_le_bytes([a, b, c, d]) { Ok(()) } else { Err(FrameError::Checksum) }
}

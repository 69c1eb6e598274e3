//! The decoders of this crate, for `fuzz/` alone: what comes from a peer or a disk must never bring a member down.

use bytes::{Bytes, BytesMut};

use crate::snapshot::RunReader;
use crate::transport::{self, Frame};

/// A frame's body: what can be read is read the same again from its own encoding.
pub fn frame(data: &[u8]) {
    let Ok(frame) = Frame::decode(Bytes::copy_from_slice(data)) else { return };
    let encoded = encode(&frame);
    let again = Frame::decode(encoded.slice(transport::frame::FRAME_HEADER_BYTES..));
    assert_eq!(again.expect("what was encoded can be decoded"), frame);
}

/// Bytes as a socket gives them: frames until one is wrong.
pub fn frame_stream(mut data: &[u8]) {
    futures::executor::block_on(async { while transport::read_frame(&mut data).await.is_ok() {} });
}

/// What a member noted of others.
pub fn peers_file(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        transport::reread_identities(text);
    }
}

/// A file of a checkpoint, chunk by chunk, at `path`, which is written over.
pub fn run_file(path: &std::path::Path, data: &[u8]) {
    std::fs::write(path, data).expect("a temporary file can be written");
    let mut chunks = RunReader::open(path).expect("it is there");
    let mut at = 0;
    while let Ok(Some(chunk)) = chunks.next_chunk() {
        if quorate_state::snapshot::check(&chunk).is_ok() {
            let _ = quorate_state::snapshot::decode(&chunk, at);
        }
        at += 1;
    }
}

/// Frames of every kind, to begin with.
pub fn frame_seeds() -> Vec<Vec<u8>> {
    let body = |frame: &Frame| encode(frame)[transport::frame::FRAME_HEADER_BYTES..].to_vec();
    transport::frame::samples().iter().map(body).collect()
}

fn encode(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.freeze()
}

//! Reading finished segments again, slowly, so that rot is found while it can still be mended.
//!
//! One small step at a time; how often is the shell's business. Writes nothing and holds a piece of one batch at most.

use std::io;

use crate::disk::{Disk, FileId};
use crate::error::{Identity, LogError};
use crate::format::{BLOCK_BYTES, BatchHeader, HEADER_BYTES, SegmentHeader, batch_len_bytes};
use crate::log::{Options, failed, segment_name};
use crate::recover::{corrupt, live_segments};

/// Read by one step.
const STEP_BYTES: usize = 256 << 10;

/// What one step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scrubbed {
    /// Read so many bytes; there is more.
    Bytes(u64),
    /// Every finished segment has been read once.
    Pass { segments: u64, bytes: u64 },
}

/// A walk over the finished segments of a log that is in use.
#[derive(Debug)]
pub struct Scrub {
    options: Options,
    identity: Identity,
    last_done: u64,
    at: Option<Place>,
    segments: u64,
    bytes: u64,
}

/// Where the walk stands within one segment.
#[derive(Debug)]
struct Place {
    file: FileId,
    id: u64,
    header: SegmentHeader,
    seq: u64,
    chain: u32,
    offset_bytes: u64,
    len_bytes: u64,
    /// A batch whose body is being read: its header and CRC, bytes read so far and their CRC.
    body: Option<(BatchHeader, u32, u64, u32)>,
}

impl Scrub {
    pub fn new(options: Options, identity: Identity) -> Scrub {
        Scrub { options, identity, last_done: 0, at: None, segments: 0, bytes: 0 }
    }

    /// Reads a little.
    ///
    /// # Errors
    /// `Corrupt`: this segment is damaged; the next step goes on behind it.
    pub fn step<D: Disk>(&mut self, disk: &mut D) -> Result<Scrubbed, LogError> {
        let Some(mut place) = self.at.take() else { return self.begin(disk) };
        let name = segment_name(place.id);
        match place.read_on(disk, &self.options, &name) {
            Ok(Some(bytes)) => {
                self.bytes += bytes;
                self.at = Some(place);
                Ok(Scrubbed::Bytes(bytes))
            }
            ended => {
                self.segments += 1;
                let checked = ended.and_then(|_| place.check_end(disk, &name, &self.identity));
                disk.close(place.file);
                checked.map(|()| Scrubbed::Bytes(BLOCK_BYTES as u64))
            }
        }
    }

    /// Goes to the next finished segment.
    fn begin<D: Disk>(&mut self, disk: &mut D) -> Result<Scrubbed, LogError> {
        let names = disk.list().map_err(failed("listing", "."))?;
        let mut ids = live_segments(&names)?;
        ids.pop();
        let Some(id) = ids.into_iter().find(|id| *id > self.last_done) else {
            let pass = Scrubbed::Pass { segments: self.segments, bytes: self.bytes };
            *self = Scrub::new(self.options, self.identity);
            return Ok(pass);
        };
        self.last_done = id;
        let name = segment_name(id);
        let file = match disk.open(&name) {
            Ok(file) => file,
            // Dropped meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Scrubbed::Bytes(0)),
            Err(error) => return Err(failed("opening", &name)(error)),
        };
        // From the medium, not from memory: rot is there.
        disk.sync_and_forget(file).map_err(failed("flushing", &name))?;
        let len_bytes = disk.len_bytes(file).map_err(failed("measuring", &name))?;
        let mut block = vec![0u8; BLOCK_BYTES];
        let header = match disk.read_at(file, 0, &mut block) {
            Ok(()) => SegmentHeader::decode(&block),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(failed("reading", &name)(error)),
        };
        let Some(header) = header.filter(|header| header.identity == self.identity && header.segment_id == id) else {
            disk.close(file);
            return Err(corrupt(&name, 0, "the segment header cannot be read"));
        };
        let (seq, chain) = (header.first_seq - 1, header.chain);
        self.at = Some(Place { file, id, header, seq, chain, offset_bytes: BLOCK_BYTES as u64, len_bytes, body: None });
        Ok(Scrubbed::Bytes(BLOCK_BYTES as u64))
    }
}

impl Place {
    /// Reads one header or one piece of a body; `None` at the end of the batches.
    fn read_on<D: Disk>(&mut self, disk: &mut D, options: &Options, name: &str) -> Result<Option<u64>, LogError> {
        let Some((header, crc, done_bytes, body_crc)) = self.body.take() else {
            if self.offset_bytes + HEADER_BYTES as u64 > self.len_bytes {
                return Ok(None);
            }
            let mut block = [0u8; HEADER_BYTES];
            disk.read_at(self.file, self.offset_bytes, &mut block).map_err(failed("reading", name))?;
            let Some((header, crc)) = BatchHeader::decode(&block, &self.header) else { return Ok(None) };
            if header.seq != self.seq + 1 || header.chain != self.chain {
                return Ok(None);
            }
            self.body = Some((header, crc, 0, 0));
            return Ok(Some(HEADER_BYTES as u64));
        };
        let left_bytes = u64::from(header.body_bytes) - done_bytes;
        if left_bytes == 0 {
            if body_crc != header.body_crc && !planted!(options, ScrubSkipsBodies) {
                return Err(corrupt(name, self.offset_bytes, format!("batch {} does not match its crc", header.seq)));
            }
            self.offset_bytes += batch_len_bytes(header.body_bytes as usize) as u64;
            (self.seq, self.chain) = (header.seq, crc);
            return Ok(Some(0));
        }
        let mut piece = vec![0u8; left_bytes.min(STEP_BYTES as u64) as usize];
        let from = self.offset_bytes + HEADER_BYTES as u64 + done_bytes;
        match disk.read_at(self.file, from, &mut piece) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(corrupt(name, self.offset_bytes, format!("batch {} reaches beyond the file", header.seq)));
            }
            Err(error) => return Err(failed("reading", name)(error)),
        }
        let read_bytes = piece.len() as u64;
        self.body = Some((header, crc, done_bytes + read_bytes, crc32c::crc32c_append(body_crc, &piece)));
        Ok(Some(read_bytes))
    }

    /// The segment behind says where this one must end.
    fn check_end<D: Disk>(&self, disk: &mut D, name: &str, identity: &Identity) -> Result<(), LogError> {
        let next = segment_name(self.id + 1);
        let Ok(file) = disk.open(&next) else { return Ok(()) };
        let mut block = vec![0u8; BLOCK_BYTES];
        let read = disk.read_at(file, 0, &mut block);
        disk.close(file);
        let header = read.ok().and_then(|()| SegmentHeader::decode(&block)).filter(|h| h.identity == *identity);
        match header {
            Some(header) if (header.first_seq, header.chain) != (self.seq + 1, self.chain) => {
                let what = format!("batch {} was promised and cannot be read", self.seq + 1);
                Err(corrupt(name, self.offset_bytes, what))
            }
            // What is wrong with the next one is found when its turn comes.
            Some(_) | None => Ok(()),
        }
    }
}

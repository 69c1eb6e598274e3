//! What the log needs of a directory on a disk, and nothing more.
//!
//! The log is written against this trait only, so that the very same code runs on a real directory ([`crate::real`]) and
//! on a simulated disk that loses power ([`crate::faulty`]). Paths are plain names inside one directory.

use std::fmt;
use std::io;

/// An open file of one [`Disk`]. Numbers are not reused while the disk is open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u32);

/// One directory that holds one log.
///
/// # Durability
/// Bytes are durable after [`Disk::datasync`] of their file, names (create, rename, remove) after [`Disk::sync_dir`].
/// An error of either means that nothing may be promised any more: a kernel marks pages clean after a failed flush, so a
/// second try that succeeds proves nothing.
pub trait Disk: fmt::Debug {
    /// Names of all files, sorted.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&mut self, name: &str) -> io::Result<FileId>;
    /// Creates a file that must not exist, of `len_bytes` zeros that are really written, so that later writes inside
    /// change no metadata. Not durable on return.
    fn create(&mut self, name: &str, len_bytes: u64) -> io::Result<FileId>;
    /// Writes zeros over a range, extending the file when needed.
    fn zero_fill(&mut self, file: FileId, offset_bytes: u64, len_bytes: u64) -> io::Result<()>;
    /// Length of the file.
    fn len_bytes(&mut self, file: FileId) -> io::Result<u64>;
    /// Fills the whole buffer; a short file is `UnexpectedEof`.
    fn read_at(&mut self, file: FileId, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes the whole buffer.
    fn write_at(&mut self, file: FileId, offset_bytes: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes all bytes of the file durable.
    fn datasync(&mut self, file: FileId) -> io::Result<()>;
    /// Makes all bytes durable and then forgets every cached page, so that the next read comes from the medium: a killed
    /// process leaves unflushed bytes in the page cache, a failed flush leaves wrong ones.
    fn sync_and_forget(&mut self, file: FileId) -> io::Result<()>;
    fn close(&mut self, file: FileId);
    /// Atomically replaces `to`.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Bytes that may still be allocated on the volume this directory is on.
    fn free_bytes(&mut self) -> io::Result<u64>;
    /// Makes all names durable.
    fn sync_dir(&mut self) -> io::Result<()>;
}

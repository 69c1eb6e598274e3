//! A real directory. The only module of this crate that touches the file system.
//!
//! Must not retry a failed flush, and must not decide anything about what is found.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FlockOperation, fadvise, fdatasync, flock};

use crate::disk::{Disk, FileId};

/// Name of the file whose lock says "a process uses this directory". The kernel drops the lock with the process.
const LOCK_NAME: &str = "lock";
/// Zeros are written in pieces of this size, so that filling a segment needs little memory.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// A directory of the file system, locked for this process.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
    dir_handle: File,
    /// Held for its lock; `None` beside the process's own handle.
    _lock: Option<File>,
    files: BTreeMap<FileId, File>,
    next_file: u32,
}

impl RealDisk {
    /// Opens the directory, creating it when absent, and takes its exclusive lock.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds the directory.
    pub fn open_dir(dir: &Path) -> io::Result<RealDisk> {
        std::fs::create_dir_all(dir)?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK_NAME))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(RealDisk {
            dir: dir.to_path_buf(),
            dir_handle: File::open(dir)?,
            _lock: Some(lock),
            files: BTreeMap::new(),
            next_file: 0,
        })
    }

    /// A second handle for a process that holds the lock already: a scrub reads files nobody writes any more.
    pub fn beside(dir: &Path) -> io::Result<RealDisk> {
        let dir_handle = File::open(dir)?;
        Ok(RealDisk { dir: dir.to_path_buf(), dir_handle, _lock: None, files: BTreeMap::new(), next_file: 0 })
    }

    fn file(&self, file: FileId) -> io::Result<&File> {
        self.files.get(&file).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the file is not open"))
    }

    fn keep(&mut self, file: File) -> FileId {
        self.next_file += 1;
        let id = FileId(self.next_file);
        self.files.insert(id, file);
        id
    }
}

impl Disk for RealDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in std::fs::read_dir(&self.dir)? {
            let item = item?;
            if item.file_type()?.is_file()
                && let Ok(name) = item.file_name().into_string()
                && name != LOCK_NAME
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let file = OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
        Ok(self.keep(file))
    }

    fn create(&mut self, name: &str, len_bytes: u64) -> io::Result<FileId> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.dir.join(name))?;
        let id = self.keep(file);
        if let Err(error) = self.zero_fill(id, 0, len_bytes) {
            self.close(id);
            return Err(error);
        }
        Ok(id)
    }

    fn zero_fill(&mut self, file: FileId, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let handle = self.file(file)?;
        let zeros = vec![0u8; ZERO_CHUNK_BYTES.min(len_bytes as usize)];
        let mut done_bytes = 0u64;
        while done_bytes < len_bytes {
            let chunk = (len_bytes - done_bytes).min(zeros.len() as u64) as usize;
            handle.write_all_at(&zeros[..chunk], offset_bytes + done_bytes)?;
            done_bytes += chunk as u64;
        }
        Ok(())
    }

    fn len_bytes(&mut self, file: FileId) -> io::Result<u64> {
        Ok(self.file(file)?.metadata()?.len())
    }

    fn read_at(&mut self, file: FileId, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file(file)?.read_exact_at(buf, offset_bytes)
    }

    fn write_at(&mut self, file: FileId, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(file)?.write_all_at(bytes, offset_bytes)
    }

    fn datasync(&mut self, file: FileId) -> io::Result<()> {
        Ok(fdatasync(self.file(file)?)?)
    }

    fn sync_and_forget(&mut self, file: FileId) -> io::Result<()> {
        let handle = self.file(file)?;
        fdatasync(handle)?;
        Ok(fadvise(handle, 0, None, Advice::DontNeed)?)
    }

    fn close(&mut self, file: FileId) {
        self.files.remove(&file);
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        let volume = rustix::fs::fstatvfs(&self.dir_handle)?;
        Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.dir_handle.sync_all()
    }
}

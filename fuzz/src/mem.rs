//! A directory in memory, as plain as can be: a fuzzer opens thousands of them a second.

use std::collections::BTreeMap;
use std::io;

use quorate_log::{Disk, FileId};

#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    pub files: BTreeMap<String, Vec<u8>>,
    open: Vec<String>,
}

impl MemDisk {
    pub fn of(files: BTreeMap<String, Vec<u8>>) -> MemDisk {
        MemDisk { files, open: Vec::new() }
    }

    fn file(&mut self, file: FileId) -> io::Result<&mut Vec<u8>> {
        let name = self.open.get(file.0 as usize).ok_or(io::ErrorKind::NotFound)?;
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }
    fn open(&mut self, name: &str) -> io::Result<FileId> {
        if !self.files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.open.push(name.to_owned());
        Ok(FileId(self.open.len() as u32 - 1))
    }
    fn create(&mut self, name: &str, len_bytes: u64) -> io::Result<FileId> {
        if self.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.files.insert(name.to_owned(), vec![0; len_bytes as usize]);
        self.open(name)
    }
    fn zero_fill(&mut self, file: FileId, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.write_at(file, offset_bytes, &vec![0; len_bytes as usize])
    }
    fn len_bytes(&mut self, file: FileId) -> io::Result<u64> {
        Ok(self.file(file)?.len() as u64)
    }
    fn read_at(&mut self, file: FileId, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = offset_bytes as usize;
        let bytes = self.file(file)?.get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
    fn write_at(&mut self, file: FileId, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let (start, content) = (offset_bytes as usize, self.file(file)?);
        content.resize(content.len().max(start + bytes.len()), 0);
        content[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn datasync(&mut self, _: FileId) -> io::Result<()> {
        Ok(())
    }
    fn sync_and_forget(&mut self, _: FileId) -> io::Result<()> {
        Ok(())
    }
    fn close(&mut self, _: FileId) {}
    /// Handles follow names here; the log opens nothing it then renames and goes on using, but for new segments.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let content = self.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.files.insert(to.to_owned(), content);
        self.open.iter_mut().filter(|name| *name == from).for_each(|name| to.clone_into(name));
        Ok(())
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.files.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn free_bytes(&mut self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
    fn sync_dir(&mut self) -> io::Result<()> {
        Ok(())
    }
}

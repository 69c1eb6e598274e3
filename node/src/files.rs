//! Small files that must survive power loss.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Writes a file whole: temporary name, flush, rename, flush of the directory. Durable on return.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename_durably(&temporary, path)
}

/// The text and its checksum as one line: a flipped bit may turn one digit into another. Who reads it back takes nothing but what
/// this would give, whatever else would parse.
pub fn checked_line(text: &str) -> String {
    format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// Renames and flushes the directory.
pub fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    let dir = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

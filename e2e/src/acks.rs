//! The file in which a writer keeps its acknowledgements: flushed before the next write of that writer starts.
//!
//! The form of a line and the judgement are the auditor's.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use quorate_audit::acks::{self, Ack};

#[derive(Debug)]
pub struct AckFile {
    file: File,
}

impl AckFile {
    /// A file that must not exist yet: no line may follow one that a crash cut.
    pub fn create(path: &Path) -> Result<AckFile> {
        let file = OpenOptions::new().create_new(true).append(true).open(path);
        Ok(AckFile {
            file: file.with_context(|| format!("cannot make the record of acknowledgements {}", path.display()))?,
        })
    }

    /// Durable when this returns.
    pub fn record(&mut self, ack: &Ack) -> Result<()> {
        self.file.write_all(ack.to_line().as_bytes())?;
        self.file.sync_data().context("cannot fsync the record of acknowledgements")
    }
}

pub fn read(path: &Path) -> Result<Vec<Ack>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    acks::parse(&text).with_context(|| format!("{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_back() {
        let path = std::env::temp_dir().join(format!("quorate-acks-{}", std::process::id()));
        let ack = Ack { key: "w/0/1".into(), value: "x".into(), revision: 7 };
        AckFile::create(&path).and_then(|mut f| f.record(&ack)).expect("temp dir is writable");
        assert_eq!(read(&path).expect("just written"), [ack]);
        std::fs::remove_file(path).expect("just written");
    }
}

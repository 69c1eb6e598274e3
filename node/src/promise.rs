//! What this member may have promised before it started: to vote for nobody for one election timeout.
//!
//! A start with a shorter election timeout must not shorten a promise somebody reads under. The longest one that may
//! still bind is kept in a small file beside the log, and lowered only after it has run out.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::files::{checked_line, write_durably};

pub(crate) struct Promise {
    file: PathBuf,
    own_us: u64,
    longest_us: u64,
}

impl Promise {
    /// Before the first message leaves: what is promised from now on is durable.
    pub(crate) fn begin(file: PathBuf, own_us: u64) -> Result<Promise> {
        let kept_us = match std::fs::read(&file) {
            Ok(bytes) => parse(&bytes).with_context(|| {
                format!(
                    "{} should hold microseconds with their checksum and holds {:?}: wait for the longest election \
                     timeout this member ever had, then delete the file",
                    file.display(),
                    String::from_utf8_lossy(&bytes)
                )
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let promise = Promise { file, own_us, longest_us: own_us.max(kept_us) };
        if promise.longest_us > kept_us {
            promise.write(promise.longest_us)?;
        }
        Ok(promise)
    }

    /// How long after its start this member votes for nobody.
    pub(crate) fn refusal_us(&self) -> u64 {
        self.longest_us
    }

    /// That time is over: only the present election timeout binds.
    pub(crate) fn lower(&self) -> Result<()> {
        if self.longest_us > self.own_us { self.write(self.own_us) } else { Ok(()) }
    }

    fn write(&self, us: u64) -> Result<()> {
        write_durably(&self.file, line(us).as_bytes()).with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// Without its checksum a flipped bit could make it a shorter promise.
fn line(us: u64) -> String {
    checked_line(&us.to_string())
}

fn parse(bytes: &[u8]) -> Option<u64> {
    let us = std::str::from_utf8(bytes).ok()?.split(' ').next()?.parse().ok()?;
    (line(us).as_bytes() == bytes).then_some(us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_promise_binds_every_start_until_it_has_run_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("promise");
        assert_eq!(Promise::begin(file.clone(), 1_000).unwrap().refusal_us(), 1_000);
        assert_eq!(Promise::begin(file.clone(), 150).unwrap().refusal_us(), 1_000);
        // A crash before the time was over changes nothing.
        let again = Promise::begin(file.clone(), 150).unwrap();
        assert_eq!(again.refusal_us(), 1_000);
        again.lower().unwrap();
        assert_eq!(Promise::begin(file.clone(), 150).unwrap().refusal_us(), 150);
        assert_eq!(Promise::begin(file.clone(), 2_000).unwrap().refusal_us(), 2_000);
        assert_eq!(Promise::begin(file, 150).unwrap().refusal_us(), 2_000);
    }

    #[test]
    fn no_flipped_bit_makes_another_promise() {
        let right = line(300_000);
        assert_eq!(parse(right.as_bytes()), Some(300_000));
        for bit in 0..right.len() * 8 {
            let mut bytes = right.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn a_file_that_says_nothing_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("promise");
        std::fs::write(&file, "soon").unwrap();
        let error = Promise::begin(file, 150).err().unwrap();
        assert!(error.to_string().contains("soon"), "{error}");
    }
}

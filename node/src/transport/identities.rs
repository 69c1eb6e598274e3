//! What this member remembers about the data directories of others, durably.
//!
//! Each start of a data directory raises its generation and draws a nonce. A lower generation is an old copy; an equal
//! one with another nonce is a second copy, or a member that lost its disk and begins anew under its old id. Neither
//! may vote: what it promised is forgotten.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use quorate_raft::types::MemberId;

use super::Hello;
use crate::files;

/// One line per member: id, generation, nonce, all in hexadecimal; the last line is a checksum of those above.
#[derive(Debug)]
pub(crate) struct Identities {
    file: PathBuf,
    seen: Mutex<BTreeMap<MemberId, (u64, u64)>>,
}

impl Identities {
    /// Reads what an earlier run noted.
    pub(crate) fn open(file: PathBuf) -> Result<Identities> {
        let seen = match std::fs::read_to_string(&file) {
            Ok(text) => parse(&text).with_context(|| {
                format!(
                    "{} is damaged: replace this member under a new id, its peers' identities are lost",
                    file.display()
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Identities { file, seen: Mutex::new(seen) })
    }

    /// Members that have introduced themselves at some time: they have had a data directory.
    pub(crate) fn started(&self) -> Vec<MemberId> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Notes who introduces itself, durably, before it is welcomed. May block on the disk.
    pub(crate) fn admit(&self, hello: &Hello) -> Result<(), String> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.get(&hello.member).copied();
        judge(known, (hello.generation, hello.boot_nonce))?;
        if known == Some((hello.generation, hello.boot_nonce)) {
            return Ok(());
        }
        let mut next = seen.clone();
        next.insert(hello.member, (hello.generation, hello.boot_nonce));
        files::write_durably(&self.file, print(&next).as_bytes())
            .map_err(|error| format!("cannot note its generation in {}: {error}", self.file.display()))?;
        *seen = next;
        Ok(())
    }
}

fn judge(known: Option<(u64, u64)>, told: (u64, u64)) -> Result<(), String> {
    match known {
        Some((generation, _)) if generation > told.0 => Err(format!(
            "its data directory is at generation {}, but {generation} was seen before: an old copy, or its disk was lost; \
             replace it under a new id",
            told.0
        )),
        Some((generation, nonce)) if generation == told.0 && nonce != told.1 => Err(format!(
            "two data directories at generation {generation} with one id: a copy, or its disk was lost; replace it under \
             a new id"
        )),
        Some(_) | None => Ok(()),
    }
}

fn print(seen: &BTreeMap<MemberId, (u64, u64)>) -> String {
    let mut text = String::new();
    for (id, (generation, nonce)) in seen {
        writeln!(text, "{:x} {generation:x} {nonce:x}", id.0).expect("writing to a string does not fail");
    }
    let crc = crc32c::crc32c(text.as_bytes());
    writeln!(text, "{crc:08x}").expect("writing to a string does not fail");
    text
}

fn parse(text: &str) -> Result<BTreeMap<MemberId, (u64, u64)>> {
    let body = text.trim_end_matches('\n');
    let at = body.rfind('\n').map_or(0, |newline| newline + 1);
    let crc = u32::from_str_radix(&body[at..], 16).context("no checksum")?;
    anyhow::ensure!(crc32c::crc32c(&text.as_bytes()[..at]) == crc, "the checksum is wrong");
    let number = |word: Option<&str>| Ok::<_, anyhow::Error>(u64::from_str_radix(word.context("a short line")?, 16)?);
    let line = |line: &str| {
        let mut words = line.split(' ');
        Ok((MemberId(number(words.next())?), (number(words.next())?, number(words.next())?)))
    };
    text[..at].lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Purpose;

    fn hello(generation: u64, boot_nonce: u64) -> Hello {
        Hello {
            purpose: Purpose::Control,
            cluster_id: 1,
            incarnation: 1,
            member: MemberId(7),
            generation,
            boot_nonce,
            to: MemberId(8),
            token_hash: 0,
            peer_urls: Vec::new(),
        }
    }

    #[test]
    fn a_lost_disk_and_an_old_copy_are_refused_even_by_a_later_run() {
        let dir = std::env::temp_dir().join(format!("quorate-identities-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        let file = dir.join("peers");
        let first = Identities::open(file.clone()).expect("nothing there yet");
        first.admit(&hello(1, 50)).expect("new");
        first.admit(&hello(1, 50)).expect("again");
        first.admit(&hello(3, 51)).expect("restarted");
        let later = Identities::open(file.clone()).expect("readable");
        assert_eq!(later.started(), [MemberId(7)]);
        assert!(later.admit(&hello(1, 60)).is_err());
        assert!(later.admit(&hello(3, 60)).is_err());
        later.admit(&hello(4, 60)).expect("restarted again");
        std::fs::write(&file, "7 1 1\n00000000\n").expect("writable");
        assert!(Identities::open(file).is_err());
        std::fs::remove_dir_all(&dir).expect("removable");
    }
}

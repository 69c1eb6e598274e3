//! What this member remembers about the data directories of others, durably.
//!
//! The rule is [`quorate_log::judge`]'s. An old copy is refused. Two directories of one member are both told to halt, now
//! and for ever: nobody can know which of them keeps the member's promises, so the member comes back under a new id.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use quorate_log::{Boot, Imposture, judge};
use quorate_raft::types::MemberId;

use super::Hello;
use crate::files;

/// Why a peer is not welcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub why: String,
    /// The peer must stop: it may not even go on with others.
    pub halts: bool,
}

impl From<String> for Refused {
    fn from(why: String) -> Refused {
        Refused { why, halts: false }
    }
}

/// One line per member: id, generation, nonce, all in hexadecimal, and `halted` for one that was seen twice; the last
/// line is a checksum of those above.
#[derive(Debug)]
pub(crate) struct Identities {
    file: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Seen {
    boots: BTreeMap<MemberId, Boot>,
    /// Members with two data directories.
    halted: BTreeSet<MemberId>,
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
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Seen::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Identities { file, seen: Mutex::new(seen) })
    }

    /// Members that have introduced themselves at some time: they have had a data directory.
    pub(crate) fn started(&self) -> Vec<MemberId> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).boots.keys().copied().collect()
    }

    /// Whether nothing more may be taken from this member: two data directories speak for it.
    pub(crate) fn is_halted(&self, member: MemberId) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).halted.contains(&member)
    }

    /// Notes who introduces itself, durably, before it is welcomed. May block on the disk.
    pub(crate) fn admit(&self, hello: &Hello) -> Result<(), Refused> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let told = Boot { generation: hello.generation, nonce: hello.boot_nonce };
        let known = seen.boots.get(&hello.member).copied();
        if seen.halted.contains(&hello.member) {
            let generation = known.map_or(0, |boot| boot.generation);
            return Err(Refused { why: Imposture::Twin { generation }.to_string(), halts: true });
        }
        let mut next = seen.clone();
        let judged = match judge(known, told, &hello.before) {
            Ok(()) if known == Some(told) => return Ok(()),
            Ok(()) => {
                next.boots.insert(hello.member, told);
                Ok(())
            }
            Err(twin @ Imposture::Twin { .. }) => {
                next.halted.insert(hello.member);
                Err(Refused { why: twin.to_string(), halts: true })
            }
            Err(old @ Imposture::OldCopy { .. }) => return Err(old.to_string().into()),
        };
        files::write_durably(&self.file, print(&next).as_bytes())
            .map_err(|error| format!("cannot note its generation in {}: {error}", self.file.display()))?;
        *seen = next;
        judged
    }
}

/// Reads a file as it stands and with its checksum put right; what is read is written the same again.
#[doc(hidden)]
pub(crate) fn reread_identities(text: &str) {
    let _ = parse(text);
    let body = text.rsplit_once('\n').map_or("", |(body, _)| body);
    let lines = if body.is_empty() { String::new() } else { format!("{body}\n") };
    if let Ok(seen) = parse(&format!("{lines}{:08x}\n", crc32c::crc32c(lines.as_bytes()))) {
        assert_eq!(parse(&print(&seen)).expect("what was written can be read"), seen);
    }
}

fn print(seen: &Seen) -> String {
    let mut text = String::new();
    for (id, boot) in &seen.boots {
        let halted = if seen.halted.contains(id) { " halted" } else { "" };
        writeln!(text, "{:x} {:x} {:x}{halted}", id.0, boot.generation, boot.nonce)
            .expect("writing to a string does not fail");
    }
    let crc = crc32c::crc32c(text.as_bytes());
    writeln!(text, "{crc:08x}").expect("writing to a string does not fail");
    text
}

fn parse(text: &str) -> Result<Seen> {
    let body = text.trim_end_matches('\n');
    let at = body.rfind('\n').map_or(0, |newline| newline + 1);
    let crc = u32::from_str_radix(&body[at..], 16).context("no checksum")?;
    anyhow::ensure!(crc32c::crc32c(&text.as_bytes()[..at]) == crc, "the checksum is wrong");
    let number = |word: Option<&str>| Ok::<_, anyhow::Error>(u64::from_str_radix(word.context("a short line")?, 16)?);
    let mut seen = Seen::default();
    for line in text[..at].lines() {
        let mut words = line.split(' ');
        let id = MemberId(number(words.next())?);
        let boot = Boot { generation: number(words.next())?, nonce: number(words.next())? };
        seen.boots.insert(id, boot);
        match words.next() {
            None => {}
            Some("halted") => {
                seen.halted.insert(id);
            }
            Some(word) => anyhow::bail!("{word:?} at the end of a line"),
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use quorate_state::ClusterVersion;

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
            before: quorate_log::Lineage::default(),
            to: MemberId(8),
            token_hash: 0,
            version: ClusterVersion::SPOKEN,
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
        let old = later.admit(&hello(1, 60)).expect_err("an old copy");
        assert!(!old.halts, "{old:?}");
        later.admit(&hello(4, 60)).expect("restarted again");
        std::fs::write(&file, "7 1 1\n00000000\n").expect("writable");
        assert!(Identities::open(file).is_err());
        std::fs::remove_dir_all(&dir).expect("removable");
    }

    #[test]
    fn two_directories_of_one_member_are_both_halted_for_ever() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("peers");
        let first = Identities::open(file.clone()).expect("nothing there yet");
        first.admit(&hello(3, 51)).expect("the one");
        assert!(!first.is_halted(MemberId(7)));
        let twin = first.admit(&hello(3, 52)).expect_err("the other");
        assert!(twin.halts, "{twin:?}");
        assert!(first.is_halted(MemberId(7)), "what comes over open connections counts no more");
        assert!(first.admit(&hello(3, 51)).expect_err("the one too").halts);
        let later = Identities::open(file).expect("readable");
        for boot in [(3, 51), (3, 52), (4, 53)] {
            assert!(later.admit(&hello(boot.0, boot.1)).expect_err("for ever").halts, "{boot:?}");
        }
        let other = Hello { member: MemberId(9), ..hello(3, 52) };
        later.admit(&other).expect("others are not concerned");
    }
}

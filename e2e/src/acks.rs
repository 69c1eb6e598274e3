//! The writer's own record of what was acknowledged: one line a write, fsynced before the next write of that worker starts.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// An acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub key: String,
    pub value: String,
    pub revision: i64,
}

#[derive(Debug)]
pub struct AckFile {
    file: File,
}

impl AckFile {
    pub fn append_to(path: &Path) -> Result<AckFile> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(AckFile {
            file: file.with_context(|| format!("cannot open the record of acknowledgements {}", path.display()))?,
        })
    }

    /// Durable when this returns.
    pub fn record(&mut self, ack: &Ack) -> Result<()> {
        writeln!(self.file, "{} {} {}", ack.key, ack.value, ack.revision)?;
        self.file.sync_data().context("cannot fsync the record of acknowledgements")
    }
}

pub fn read(path: &Path) -> Result<Vec<Ack>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A line without its end is being written: nobody was promised anything by it yet.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(parse).collect()
}

fn parse(line: &str) -> Result<Ack> {
    let mut words = line.split(' ');
    let mut next = || words.next().with_context(|| format!("broken line in the record: {line:?}"));
    Ok(Ack { key: next()?.to_owned(), value: next()?.to_owned(), revision: next()?.parse()? })
}

/// Every acknowledged write must be among `found` (key, value, mod revision) exactly as acknowledged. Keys are written once.
pub fn lost(acks: &[Ack], found: &std::collections::BTreeMap<String, (String, i64)>) -> Vec<String> {
    acks.iter()
        .filter_map(|ack| match found.get(&ack.key) {
            None => Some(format!("{} acknowledged at revision {} is gone", ack.key, ack.revision)),
            Some((value, revision)) if *value != ack.value || *revision != ack.revision => Some(format!(
                "{} acknowledged as {:?} at revision {} reads {value:?} at {revision}",
                ack.key, ack.value, ack.revision
            )),
            Some(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_and_a_changed_write_are_both_named() {
        let ack = |k: &str, v: &str, r| Ack { key: k.into(), value: v.into(), revision: r };
        let acks = [ack("a", "1", 2), ack("b", "2", 3), ack("c", "3", 4)];
        let found = [("a", ("1", 2)), ("b", ("9", 3))].map(|(k, (v, r))| (k.to_owned(), (v.to_owned(), r)));
        let lost = lost(&acks, &found.into_iter().collect());
        assert_eq!(lost.len(), 2, "{lost:?}");
        assert!(lost[0].starts_with("b acknowledged") && lost[1].ends_with("is gone"), "{lost:?}");
    }

    #[test]
    fn what_was_recorded_is_read_back() {
        let path = std::env::temp_dir().join(format!("quorate-acks-{}", std::process::id()));
        let ack = Ack { key: "w/0/1".into(), value: "x".into(), revision: 7 };
        AckFile::append_to(&path).and_then(|mut f| f.record(&ack)).expect("temp dir is writable");
        assert_eq!(read(&path).expect("just written"), [ack]);
        std::fs::remove_file(path).expect("just written");
    }
}

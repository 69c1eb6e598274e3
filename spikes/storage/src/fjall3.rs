//! fjall 3: a log-structured merge tree in Rust. Its journal cannot be switched off; it is not flushed per batch.

use std::ops::Bound;
use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use crate::engine::{Engine, Pair, View};
use crate::layout;

pub struct Fjall {
    db: Database,
    data: Keyspace,
    applied: u64,
    /// Changes below are compacted: a search for the first one would pass every tombstone of theirs.
    compacted: u64,
}

pub struct FjallView {
    snapshot: Snapshot,
    data: Keyspace,
}

impl Engine for Fjall {
    const NAME: &'static str = "fjall";
    type View = FjallView;

    fn open(dir: &Path) -> Result<Fjall> {
        let db = Database::builder(dir).cache_size(256 << 20).open()?;
        let data = db.keyspace("data", KeyspaceCreateOptions::default)?;
        let applied = match data.get(layout::APPLIED)? {
            Some(bytes) => u64::from_be_bytes(bytes[..].try_into()?),
            None => 0,
        };
        Ok(Fjall { db, data, applied, compacted: 0 })
    }

    fn applied(&self) -> u64 {
        self.applied
    }

    fn apply(&mut self, puts: &[Pair]) -> Result<u64> {
        let revision = self.applied + 1;
        let mut batch = self.db.batch();
        for (sub, (key, value)) in (0..).zip(puts) {
            let versions = self.data.prefix(layout::prefix(key));
            if let Some(before) = versions.rev().next() {
                std::hint::black_box(before.into_inner()?);
            }
            batch.insert(&self.data, layout::version(key, revision), &value[..]);
            batch.insert(&self.data, layout::change(revision, sub), &key[..]);
        }
        batch.insert(&self.data, layout::APPLIED, revision.to_be_bytes());
        batch.commit()?;
        self.applied = revision;
        Ok(revision)
    }

    fn compact(&mut self, revision: u64, steps: usize) -> Result<usize> {
        let mut batch = self.db.batch();
        let mut done = 0;
        for change in self.data.range(layout::change(self.compacted, 0)..layout::change(revision, 0)).take(steps) {
            let (place, key) = change.into_inner()?;
            let at = layout::parse_change(&place);
            let older = layout::version(&key, 0)..layout::version(&key, at);
            for version in self.data.range(older) {
                batch.remove(&self.data, version.into_inner()?.0);
            }
            batch.remove(&self.data, place);
            self.compacted = at + 1;
            done += 1;
        }
        batch.commit()?;
        Ok(done)
    }

    fn view(&self) -> Result<FjallView> {
        Ok(FjallView { snapshot: self.db.snapshot(), data: self.data.clone() })
    }

    fn persist(&mut self) -> Result<JoinHandle<Result<()>>> {
        let db = self.db.clone();
        Ok(std::thread::spawn(move || Ok(db.persist(PersistMode::SyncAll)?)))
    }

    fn settle(&mut self) -> Result<()> {
        while self.db.active_compactions() > 0 || self.db.outstanding_flushes() > 0 {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(())
    }
}

impl View for FjallView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get_at(key, u64::MAX)
    }

    fn get_at(&self, key: &[u8], revision: u64) -> Result<Option<Vec<u8>>> {
        let versions = layout::version(key, 0)..=layout::version(key, revision);
        let newest = self.snapshot.range(&self.data, versions).next_back();
        newest.map(|version| Ok(version.into_inner()?.1.to_vec())).transpose()
    }

    fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Pair>> {
        let range = (Bound::Included(layout::from(from)), Bound::Excluded(b"w".to_vec()));
        let mut out: Vec<Pair> = Vec::new();
        for version in self.snapshot.range(&self.data, range) {
            let (place, value) = version.into_inner()?;
            let (key, _) = layout::parse_version(&place);
            let is_full = out.len() == limit;
            match out.last_mut() {
                Some(last) if last.0 == key => last.1 = value.to_vec(),
                Some(_) | None if is_full => break,
                Some(_) | None => out.push((key, value.to_vec())),
            }
        }
        Ok(out)
    }

    fn changes(&self, from: u64, limit: usize) -> Result<Vec<Vec<u8>>> {
        let range = layout::change(from, 0)..layout::change(u64::MAX, 0);
        let changes = self.snapshot.range(&self.data, range).take(limit);
        changes.map(|change| Ok(change.into_inner().context("a change")?.1.to_vec())).collect()
    }
}

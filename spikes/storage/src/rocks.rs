//! RocksDB, Debian's shared library. Its write-ahead log is off: our own log is before it, and it persists by flushing
//! its memory tables.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Result;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, Options, ReadOptions, WriteBatch,
    WriteOptions,
};

use crate::engine::{Engine, Pair, View};
use crate::layout;

pub struct Rocks {
    db: Arc<DB>,
    applied: u64,
    /// Changes below are compacted: a search for the first one would pass every tombstone of theirs.
    compacted: u64,
}

/// Holds a RocksDB snapshot for as long as the database lives.
pub struct RocksView {
    // Before the database, which it points into.
    snapshot: rocksdb::Snapshot<'static>,
    _db: Arc<DB>,
}

fn write_options() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

impl Engine for Rocks {
    const NAME: &'static str = "rocksdb";
    type View = RocksView;

    fn open(dir: &Path) -> Result<Rocks> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(256 << 20)?);
        table.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::None);
        options.set_block_based_table_factory(&table);
        options.increase_parallelism(2);
        let db = DB::open(&options, dir)?;
        let applied = match db.get(layout::APPLIED)? {
            Some(bytes) => u64::from_be_bytes(bytes[..].try_into()?),
            None => 0,
        };
        Ok(Rocks { db: Arc::new(db), applied, compacted: 0 })
    }

    fn applied(&self) -> u64 {
        self.applied
    }

    fn apply(&mut self, puts: &[Pair]) -> Result<u64> {
        let revision = self.applied + 1;
        let mut batch = WriteBatch::default();
        for (sub, (key, value)) in (0..).zip(puts) {
            let newest = layout::version(key, u64::MAX);
            let mut options = ReadOptions::default();
            options.set_iterate_lower_bound(layout::prefix(key));
            let mut versions = self.db.iterator_opt(IteratorMode::From(&newest, Direction::Reverse), options);
            if let Some(before) = versions.next() {
                std::hint::black_box(before?);
            }
            batch.put(layout::version(key, revision), value);
            batch.put(layout::change(revision, sub), key);
        }
        batch.put(layout::APPLIED, revision.to_be_bytes());
        self.db.write_opt(batch, &write_options())?;
        self.applied = revision;
        Ok(revision)
    }

    fn compact(&mut self, revision: u64, steps: usize) -> Result<usize> {
        let mut batch = WriteBatch::default();
        let mut done = 0;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(layout::change(revision, 0));
        let first = layout::change(self.compacted, 0);
        for change in self.db.iterator_opt(IteratorMode::From(&first, Direction::Forward), options).take(steps) {
            let (place, key) = change?;
            let at = layout::parse_change(&place);
            let mut options = ReadOptions::default();
            options.set_iterate_upper_bound(layout::version(&key, at));
            let oldest = layout::version(&key, 0);
            for version in self.db.iterator_opt(IteratorMode::From(&oldest, Direction::Forward), options) {
                batch.delete(version?.0);
            }
            batch.delete(place);
            self.compacted = at + 1;
            done += 1;
        }
        self.db.write_opt(batch, &write_options())?;
        Ok(done)
    }

    fn view(&self) -> Result<RocksView> {
        let snapshot = self.db.snapshot();
        // SAFETY: the database is kept alive beside it, and dropped after it.
        let snapshot = unsafe { std::mem::transmute::<rocksdb::Snapshot<'_>, rocksdb::Snapshot<'static>>(snapshot) };
        Ok(RocksView { snapshot, _db: self.db.clone() })
    }

    fn persist(&mut self) -> Result<JoinHandle<Result<()>>> {
        let db = self.db.clone();
        Ok(std::thread::spawn(move || Ok(db.flush()?)))
    }
}

impl View for RocksView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get_at(key, u64::MAX)
    }

    fn get_at(&self, key: &[u8], revision: u64) -> Result<Option<Vec<u8>>> {
        let newest = layout::version(key, revision);
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(layout::prefix(key));
        let mut versions = self.snapshot.iterator_opt(IteratorMode::From(&newest, Direction::Reverse), options);
        versions.next().map(|version| Ok(version?.1.to_vec())).transpose()
    }

    fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Pair>> {
        let first = layout::from(from);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(b"w".to_vec());
        let mut out: Vec<Pair> = Vec::new();
        for version in self.snapshot.iterator_opt(IteratorMode::From(&first, Direction::Forward), options) {
            let (place, value) = version?;
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
        let first = layout::change(from, 0);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(layout::change(u64::MAX, 0));
        let changes = self.snapshot.iterator_opt(IteratorMode::From(&first, Direction::Forward), options);
        changes.take(limit).map(|change| Ok(change?.1.to_vec())).collect()
    }
}

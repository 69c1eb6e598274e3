//! redb 4: a copy-on-write B+ tree in one file. A batch is a transaction without durability; a checkpoint is an empty one
//! with it.

use std::ops::Bound;
use std::path::Path;
use std::thread::JoinHandle;

use anyhow::Result;
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};

use crate::engine::{Engine, Pair, View};
use crate::layout;

const DATA: TableDefinition<&[u8], &[u8]> = TableDefinition::new("data");

pub struct Redb {
    db: Database,
    applied: u64,
    /// Changes below are compacted: a search for the first one would pass every tombstone of theirs.
    compacted: u64,
}

pub struct RedbView(ReadTransaction);

impl Engine for Redb {
    const NAME: &'static str = "redb";
    type View = RedbView;

    fn open(dir: &Path) -> Result<Redb> {
        std::fs::create_dir_all(dir)?;
        let db = Database::builder().set_cache_size(256 << 20).create(dir.join("data.redb"))?;
        let write = db.begin_write()?;
        let applied = match write.open_table(DATA)?.get(layout::APPLIED)? {
            Some(bytes) => u64::from_be_bytes(bytes.value().try_into()?),
            None => 0,
        };
        write.commit()?;
        Ok(Redb { db, applied, compacted: 0 })
    }

    fn applied(&self) -> u64 {
        self.applied
    }

    fn apply(&mut self, puts: &[Pair]) -> Result<u64> {
        let revision = self.applied + 1;
        let mut write = self.db.begin_write()?;
        write.set_durability(Durability::None)?;
        {
            let mut table = write.open_table(DATA)?;
            for (sub, (key, value)) in (0..).zip(puts) {
                let versions = layout::version(key, 0)..=layout::version(key, u64::MAX);
                let bounds = (Bound::Included(&versions.start()[..]), Bound::Included(&versions.end()[..]));
                if let Some(before) = table.range::<&[u8]>(bounds)?.next_back() {
                    std::hint::black_box(before?.1.value().len());
                }
                table.insert(&layout::version(key, revision)[..], &value[..])?;
                table.insert(&layout::change(revision, sub)[..], &key[..])?;
            }
            table.insert(layout::APPLIED, &revision.to_be_bytes()[..])?;
        }
        write.commit()?;
        self.applied = revision;
        Ok(revision)
    }

    fn compact(&mut self, revision: u64, steps: usize) -> Result<usize> {
        let mut write = self.db.begin_write()?;
        write.set_durability(Durability::None)?;
        let mut doomed = Vec::new();
        let mut done = 0;
        {
            let mut table = write.open_table(DATA)?;
            let (low, high) = (layout::change(self.compacted, 0), layout::change(revision, 0));
            for change in table.range::<&[u8]>(&low[..]..&high[..])?.take(steps) {
                let (place, key) = change?;
                let at = layout::parse_change(place.value());
                let (low, high) = (layout::version(key.value(), 0), layout::version(key.value(), at));
                for version in table.range::<&[u8]>(&low[..]..&high[..])? {
                    doomed.push(version?.0.value().to_vec());
                }
                doomed.push(place.value().to_vec());
                self.compacted = at + 1;
                done += 1;
            }
            for place in doomed {
                table.remove(&place[..])?;
            }
        }
        write.commit()?;
        Ok(done)
    }

    fn view(&self) -> Result<RedbView> {
        Ok(RedbView(self.db.begin_read()?))
    }

    /// A durable commit takes the one write lock, so it cannot go on beside batches.
    fn persist(&mut self) -> Result<JoinHandle<Result<()>>> {
        let mut write = self.db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        write.commit()?;
        Ok(std::thread::spawn(|| Ok(())))
    }
}

impl View for RedbView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get_at(key, u64::MAX)
    }

    fn get_at(&self, key: &[u8], revision: u64) -> Result<Option<Vec<u8>>> {
        let table = self.0.open_table(DATA)?;
        let (low, high) = (layout::version(key, 0), layout::version(key, revision));
        let newest = table.range::<&[u8]>(&low[..]..=&high[..])?.next_back();
        newest.map(|version| Ok(version?.1.value().to_vec())).transpose()
    }

    fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Pair>> {
        let table = self.0.open_table(DATA)?;
        let low = layout::from(from);
        let mut out: Vec<Pair> = Vec::new();
        for version in table.range::<&[u8]>(&low[..]..&b"w"[..])? {
            let (place, value) = version?;
            let (key, _) = layout::parse_version(place.value());
            let is_full = out.len() == limit;
            match out.last_mut() {
                Some(last) if last.0 == key => last.1 = value.value().to_vec(),
                Some(_) | None if is_full => break,
                Some(_) | None => out.push((key, value.value().to_vec())),
            }
        }
        Ok(out)
    }

    fn changes(&self, from: u64, limit: usize) -> Result<Vec<Vec<u8>>> {
        let table = self.0.open_table(DATA)?;
        let (low, high) = (layout::change(from, 0), layout::change(u64::MAX, 0));
        let changes = table.range::<&[u8]>(&low[..]..&high[..])?.take(limit);
        changes.map(|change| Ok(change?.1.value().to_vec())).collect()
    }
}

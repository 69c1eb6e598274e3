//! What local mode keeps: one file for the cluster, one for each record, one directory for each volume.
//!
//! ```text
//! DIR/lock                    held while a command runs the cluster
//! DIR/cluster.json            identity, generation, the bootstrapped mark
//! DIR/records/NAME.json       a member record
//! DIR/volumes/NAME/           volume.json beside the member's data/
//! DIR/logs/NAME.log
//! DIR/status.json, endpoints  for people and scripts; read back for the history only
//! ```
//!
//! Files are replaced whole (written, flushed, renamed), so that a crash leaves the old or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use quorate_plan::{MemberId, RetireReason, Retirement, Running, StartAs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ports::Ports;
use crate::clock;

/// The cluster's own objects.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(super) struct ClusterFile {
    pub name: String,
    pub uid: String,
    pub generation: i64,
    /// The manifest of that generation, as text.
    pub manifest: String,
    pub has_finalizer: bool,
    pub objects_hash: Option<String>,
    #[serde(default)]
    pub policy_hash: Option<String>,
    pub budget_min_available: Option<u32>,
    /// The cluster's id, once it durably exists.
    pub bootstrapped: Option<u64>,
}

/// What a process is started from; changed by the planner only.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    pub hash: String,
    pub image: String,
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordFile {
    pub name: String,
    pub uid: String,
    pub version: u64,
    pub member_id: Option<u64>,
    pub start: Option<Start>,
    pub is_running: bool,
    pub template: Template,
    pub retirement: Option<RetirementFile>,
    pub created_ms: u64,
    pub ports: Ports,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Seed,
    Member,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(super) struct RetirementFile {
    pub member_id: Option<u64>,
    pub incarnation: u64,
    pub term: u64,
    pub index: u64,
    pub reason: String,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeFile {
    pub record: String,
    pub uid: String,
    pub version: u64,
    pub record_uid: String,
    pub size_bytes: u64,
}

impl From<StartAs> for Start {
    fn from(start: StartAs) -> Start {
        match start {
            StartAs::Seed => Start::Seed,
            StartAs::Member => Start::Member,
        }
    }
}

impl From<Start> for StartAs {
    fn from(start: Start) -> StartAs {
        match start {
            Start::Seed => StartAs::Seed,
            Start::Member => StartAs::Member,
        }
    }
}

impl RecordFile {
    pub fn running(&self) -> Running {
        if self.is_running { Running::Started } else { Running::Stopped }
    }

    pub fn retirement(&self) -> Option<Retirement> {
        let file = self.retirement.as_ref()?;
        Some(Retirement {
            member_id: file.member_id.map(MemberId),
            config_at: quorate_plan::ConfigAt { incarnation: file.incarnation, term: file.term, index: file.index },
            reason: RetireReason::parse(&file.reason)?,
        })
    }
}

#[derive(Debug)]
pub(super) struct Store {
    pub dir: PathBuf,
    pub cluster: Option<ClusterFile>,
    pub records: BTreeMap<String, RecordFile>,
    _lock: File,
}

/// A data directory that nobody else uses.
#[derive(Debug)]
pub(super) struct Taken {
    dir: PathBuf,
    lock: File,
}

/// # Errors
/// Another command holds it.
pub(super) fn take(dir: &Path) -> Result<Taken> {
    Ok(Taken { dir: dir.to_path_buf(), lock: lock(dir)? })
}

impl Taken {
    /// Reads it, or begins anew. Nothing may run on what is thrown away.
    ///
    /// # Errors
    /// A file in it cannot be read, or not be removed.
    pub fn open(self, fresh: bool) -> Result<Store> {
        let Taken { dir, lock } = self;
        if fresh {
            clear(&dir)?;
        }
        for part in ["records", "volumes", "logs"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(dir.join("records"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "json") {
                let record: RecordFile = read(&path)?.with_context(|| format!("{} vanished", path.display()))?;
                records.insert(record.name.clone(), record);
            }
        }
        Ok(Store { cluster: read(&dir.join("cluster.json"))?, records, dir, _lock: lock })
    }
}

impl Store {
    pub fn save_cluster(&self) -> Result<()> {
        write_json(&self.dir.join("cluster.json"), &self.cluster)
    }

    pub fn save_record(&mut self, record: RecordFile) -> Result<()> {
        write_json(&self.dir.join("records").join(format!("{}.json", record.name)), &record)?;
        self.records.insert(record.name.clone(), record);
        Ok(())
    }

    pub fn drop_record(&mut self, name: &str) -> Result<()> {
        fs::remove_file(self.dir.join("records").join(format!("{name}.json")))?;
        self.records.remove(name);
        Ok(())
    }

    pub fn volume_dir(&self, record: &str) -> PathBuf {
        self.dir.join("volumes").join(record)
    }

    /// Every volume that is whole. One whose directory somebody took away is gone.
    pub fn volumes(&self) -> Result<Vec<VolumeFile>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join("volumes"))? {
            let dir = entry?.path();
            if let Some(volume) = read::<VolumeFile>(&dir.join("volume.json"))?
                && dir.join("data").is_dir()
            {
                found.push(volume);
            }
        }
        found.sort_by(|a, b| a.record.cmp(&b.record));
        Ok(found)
    }

    pub fn volume(&self, record: &str) -> Result<Option<VolumeFile>> {
        Ok(self.volumes()?.into_iter().find(|v| v.record == record))
    }

    pub fn create_volume(&self, record: &RecordFile, size_bytes: u64) -> Result<()> {
        let dir = self.volume_dir(&record.name);
        fs::create_dir_all(dir.join("data"))?;
        let volume = VolumeFile {
            record: record.name.clone(),
            uid: clock::uuid()?,
            version: 1,
            record_uid: record.uid.clone(),
            size_bytes,
        };
        write_json(&dir.join("volume.json"), &volume)
    }

    pub fn save_volume(&self, volume: &VolumeFile) -> Result<()> {
        write_json(&self.volume_dir(&volume.record).join("volume.json"), volume)
    }

    pub fn delete_volume(&self, record: &str) -> Result<()> {
        Ok(fs::remove_dir_all(self.volume_dir(record))?)
    }

    /// Out of the cluster's care, data and all.
    pub fn release_volume(&self, record: &str) -> Result<()> {
        let released = self.dir.join("released");
        fs::create_dir_all(&released)?;
        Ok(fs::rename(self.volume_dir(record), released.join(record))?)
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "--data-dir {}: another quorate-operator runs a cluster there; stop it or use another one",
            dir.display()
        );
    }
    Ok(file)
}

/// Removes what local mode makes, and nothing else that may lie there.
fn clear(dir: &Path) -> Result<()> {
    for part in ["records", "volumes", "logs", "released"] {
        let path = dir.join(part);
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("--fresh: cannot remove {}", path.display()))?;
        }
    }
    for part in ["cluster.json", "status.json", "endpoints"] {
        let path = dir.join(part);
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("--fresh: cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => {
            let value = serde_json::from_slice(&text);
            value.with_context(|| format!("{} is damaged: restore it, or start over with --fresh", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    write_whole(path, &json)
}

pub(super) fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    write_whole(path, text.as_bytes())
}

/// Replaces a file. On return the new content is durable.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().with_context(|| format!("{} has no directory", path.display()))?;
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn record(name: &str) -> RecordFile {
        let template =
            Template { hash: "t".into(), image: "i".into(), heartbeat_ms: 50, election_ms: 150, quota_bytes: None };
        RecordFile {
            name: name.into(),
            uid: format!("uid-{name}"),
            version: 1,
            member_id: Some(u64::MAX),
            start: Some(Start::Member),
            is_running: true,
            template,
            retirement: None,
            created_ms: 5,
            ports: Ports { client: 1, peer: 2, admin: 3 },
        }
    }

    fn open(dir: &Path, fresh: bool) -> Result<Store> {
        take(dir)?.open(fresh)
    }

    #[test]
    fn records_and_volumes_come_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path(), false).unwrap();
        store.save_record(record("a")).unwrap();
        store.create_volume(&record("a"), 7).unwrap();
        drop(store);
        let store = open(dir.path(), false).unwrap();
        assert_eq!(store.records["a"], record("a"));
        let volume = store.volume("a").unwrap().unwrap();
        assert_eq!((volume.record_uid.as_str(), volume.size_bytes), ("uid-a", 7));
    }

    #[test]
    fn one_command_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _held = open(dir.path(), false).unwrap();
        let error = open(dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("another quorate-operator"), "{error}");
    }

    #[test]
    fn a_volume_whose_data_was_taken_away_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), false).unwrap();
        store.create_volume(&record("a"), 7).unwrap();
        fs::remove_dir_all(store.volume_dir("a").join("data")).unwrap();
        assert_eq!(store.volume("a").unwrap(), None);
    }

    #[test]
    fn fresh_leaves_strangers_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine.txt"), "keep").unwrap();
        let mut store = open(dir.path(), false).unwrap();
        store.save_record(record("a")).unwrap();
        drop(store);
        let store = open(dir.path(), true).unwrap();
        assert!(store.records.is_empty());
        assert!(dir.path().join("mine.txt").exists());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cluster.json"), "{").unwrap();
        let error = format!("{:#}", open(dir.path(), false).unwrap_err());
        assert!(error.contains("cluster.json is damaged"), "{error}");
    }
}

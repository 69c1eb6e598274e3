//! Damage in the log: asks other members for the entries that are gone, so that the log becomes again what it was.
//!
//! What is believed is the log's to judge, by the checksums it kept; see `quorate_log::Repair`. This file only carries
//! questions and answers, at start for the whole log and, from the scrub, for finished segments of a log in use.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_log::{Identity, LogError, Mended, Options, Progress, RealDisk, Repair, Scrub, Scrubbed, Wanted};
use quorate_raft::types::{Entry, SnapMeta};
use quorate_state::ClusterVersion;
use tokio::sync::oneshot;

use crate::driver::{DriverInput, Inbox};
use crate::handle::Shared;
use crate::tls::Plane;
use crate::transport::{self, Hello, Purpose};

/// Members are asked this often before the log counts as beyond repair: those that restart at the same time come up.
const ROUNDS_MAX: u32 = 20;
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// The scrub reads no faster than this: a fraction of what a slow disk gives.
const SCRUB_BYTES_PER_SECOND: u64 = 8 << 20;
/// How often the scrub looks whether the process is ending.
const SCRUB_NAP: Duration = Duration::from_millis(200);

/// Whether an error of opening is damage that may be mended.
pub(crate) fn is_damage(error: &LogError) -> bool {
    matches!(error, LogError::Corrupt { .. } | LogError::Io { operation: "reading", .. })
}

/// Mends a log that could not be opened. `disk` is given back, its files whole; otherwise the error is the reason why the
/// member must be replaced, and nothing was changed.
pub(crate) async fn at_start(
    mut disk: RealDisk,
    options: &Options,
    hints: Vec<SnapMeta>,
    plane: &Plane,
    urls: &[String],
    token_hash: u64,
    found: LogError,
) -> Result<RealDisk> {
    tracing::error!("{found}; trying to repair it from what is left and from other members");
    let mut repair = Repair::new(*options, hints);
    for round in 0..ROUNDS_MAX {
        match repair.look(&mut disk, None).context("the log cannot be repaired")? {
            // Not damage of a kind that can be mended.
            Progress::Whole => return Err(found.into()),
            Progress::Ready(mended) => {
                repair.write(&mut disk)?;
                tell(&mended);
                return Ok(disk);
            }
            Progress::Wants(_) if urls.is_empty() => break,
            Progress::Wants(wanted) => {
                if round > 0 {
                    tokio::time::sleep(ROUND_PAUSE).await;
                }
                let identity = repair.identity().expect("a log that was looked at has an identity");
                let hello = hello(identity, token_hash);
                for range in &wanted {
                    repair.offer(ask(urls, plane, &hello, *range).await);
                }
            }
        }
    }
    Err(found).context("no other member could give the entries that are damaged here")
}

fn hello(identity: Identity, token_hash: u64) -> Hello {
    Hello {
        purpose: Purpose::Repair,
        cluster_id: identity.cluster_id,
        incarnation: identity.incarnation,
        member: quorate_raft::types::MemberId(identity.member_id),
        generation: 0,
        boot_nonce: 0,
        before: quorate_log::Lineage::default(),
        to: quorate_raft::types::MemberId(0),
        token_hash,
        version: ClusterVersion::SPOKEN,
        peer_urls: Vec::new(),
    }
}

/// Everything others hold in the range: they may differ, and the log knows which is right.
async fn ask(urls: &[String], plane: &Plane, hello: &Hello, range: Wanted) -> Vec<Entry> {
    let mut entries = Vec::new();
    for url in urls {
        match transport::ask_entries(url, plane, hello, range).await {
            Ok(given) => entries.extend(given),
            Err(error) => tracing::info!("no entries from {url}: {error:#}"),
        }
    }
    entries
}

fn tell(mended: &[Mended]) {
    for Mended { file, offset_bytes, what } in mended {
        tracing::warn!("repaired {file} at byte {offset_bytes}: {what}; the damaged file is kept beside it");
    }
}

/// Reads finished segments again, for ever, one pass each `interval`, and mends what rotted while it is still in memory
/// here or elsewhere.
pub(crate) struct Scrubber {
    pub dir: PathBuf,
    pub interval: Duration,
    pub identity: Identity,
    pub options: Options,
    pub inbox: Inbox,
    pub shared: Arc<Shared>,
    pub local: Arc<transport::Local>,
    pub runtime: tokio::runtime::Handle,
}

impl Scrubber {
    pub(crate) fn run(&self) {
        let mut known_bad = BTreeSet::new();
        loop {
            if self.sleep(self.interval) {
                return;
            }
            // A failure of the scrub itself is no failure of the log: it is told and tried again with the next pass.
            if let Err(error) = self.pass(&mut known_bad) {
                tracing::warn!("the scrub could not finish: {error:#}");
            }
        }
    }

    /// True when the process is ending.
    fn sleep(&self, pause: Duration) -> bool {
        let mut left = pause;
        while !left.is_zero() && !self.shared.is_ending() {
            let nap = left.min(SCRUB_NAP);
            std::thread::sleep(nap);
            left -= nap;
        }
        self.shared.is_ending()
    }

    fn pass(&self, known_bad: &mut BTreeSet<String>) -> Result<()> {
        let mut disk = RealDisk::beside(&self.dir)?;
        let mut scrub = Scrub::new(self.options, self.identity);
        let health = &self.shared.disk;
        loop {
            match scrub.step(&mut disk) {
                Ok(Scrubbed::Bytes(bytes)) => {
                    health.scrub_bytes.fetch_add(bytes, Ordering::Relaxed);
                    if self.sleep(Duration::from_micros(bytes * 1_000_000 / SCRUB_BYTES_PER_SECOND)) {
                        return Ok(());
                    }
                }
                Ok(Scrubbed::Pass { segments, bytes }) => {
                    health.scrub_passes.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(segments, bytes, "scrubbed the log");
                    return Ok(());
                }
                Err(LogError::Corrupt { file, offset_bytes, what }) => {
                    if known_bad.insert(file.clone()) {
                        health.rot_found.fetch_add(1, Ordering::Relaxed);
                    }
                    tracing::error!("rot: {file} is damaged at byte {offset_bytes}: {what}");
                    match self.mend(&mut disk) {
                        Ok(()) => {
                            if known_bad.remove(&file) {
                                health.rot_mended.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        Err(error) => tracing::error!("{file} is not repaired yet: {error:#}"),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is damaged on disk is still in this member's memory, or in another's.
    fn mend(&self, disk: &mut RealDisk) -> Result<()> {
        let hints = vec![];
        let mut repair = Repair::of_finished_segments(self.options, hints);
        for _ in 0..2 {
            match repair.look(disk, Some(&self.identity))? {
                Progress::Whole => return Ok(()),
                Progress::Ready(mended) => {
                    repair.write(disk)?;
                    tell(&mended);
                    return Ok(());
                }
                Progress::Wants(wanted) => {
                    for range in wanted {
                        repair.offer(self.own_entries(range)?);
                        let hello = Hello { purpose: Purpose::Repair, ..self.local.hello.clone() };
                        repair.offer(self.runtime.block_on(ask(&self.urls(), &self.local.plane, &hello, range)));
                    }
                }
            }
        }
        bail!("nobody holds the entries any more: replace this member under a new id before it restarts");
    }

    fn urls(&self) -> Vec<String> {
        let config = self.shared.status.load().raft.committed_config.config.clone();
        let others = config.members.iter().filter(|(id, _)| **id != self.local.hello.member);
        others.flat_map(|(_, info)| info.peer_urls.clone()).collect()
    }

    fn own_entries(&self, range: Wanted) -> Result<Vec<Entry>> {
        let (sender, entries) = oneshot::channel();
        self.inbox.send(DriverInput::Entries { range, sender })?;
        Ok(entries.blocking_recv()?)
    }
}

/// Where the log of a data directory is.
pub(crate) fn log_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("log")
}

//! What survives a crash of one member: its log on a simulated disk, and its engine's last durable image.

use quorate_raft::types::{MemberId, Record, Recovered, SnapMeta, WriteSeq};

use crate::machine::Image;
use crate::oracle::Durable;
use crate::rng::Rng;

/// A disk that keeps exactly what was flushed.
#[derive(Debug)]
pub struct Storage {
    bootstrap: SnapMeta,
    kept: Durable,
    id: MemberId,
    /// The engine's last durable image with its position; `None` before the first.
    pub engine: Option<(SnapMeta, Image)>,
}

impl Storage {
    pub fn create(bootstrap: SnapMeta, id: MemberId, _rng: &mut Rng) -> Storage {
        let kept = Durable { snapshot: bootstrap.clone(), ..Durable::default() };
        Storage { bootstrap, kept, id, engine: None }
    }

    pub fn open(&mut self, _nonce: u64) -> Result<Recovered, String> {
        let kept = &self.kept;
        Ok(Recovered {
            hard: kept.hard,
            snapshot: kept.snapshot.clone(),
            entries: kept.entries.clone(),
            incarnation: 1,
        })
    }

    pub fn append(&mut self, batch: &[(WriteSeq, Record)]) -> Result<(), String> {
        for (_, record) in batch {
            self.kept.follow(self.id, record).map_err(|v| v.0)?;
        }
        Ok(())
    }

    /// The process died, with this batch on its way to the disk: any prefix of it may have arrived.
    pub fn crash(&mut self, flushing: Option<&[(WriteSeq, Record)]>, _power: bool, rng: &mut Rng) {
        let Some(batch) = flushing else { return };
        let arrived = usize::try_from(rng.below(batch.len() as u64 + 1)).expect("a batch is short");
        // A whole prefix follows the rules, because the core wrote it.
        self.append(&batch[..arrived]).expect("a prefix of a valid batch is valid");
    }

    pub fn bootstrap(&self) -> &SnapMeta {
        &self.bootstrap
    }
}

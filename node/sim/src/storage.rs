//! What survives a crash of one member: a simulated disk with the shipped log on it, and its engine's last durable image.

use quorate_log::faulty::Survival;
use quorate_log::{FaultyDisk, Identity, Log, LogError, Options};
use quorate_raft::types::{MemberId, Record, Recovered, SnapMeta, WriteSeq};

use crate::machine::Machine;
use crate::rng::Rng;

const CLUSTER_ID: u64 = 0x51;
/// Disk operations of one append, at most: write and flush of batch and slot, a rotation, removals.
const OPS_PER_APPEND: u64 = 9;

/// A log on a simulated disk.
pub type SimLog = Log<FaultyDisk>;

#[derive(Debug)]
pub struct Storage {
    pub disk: FaultyDisk,
    identity: Identity,
    bootstrap: SnapMeta,
    segment_bytes: u64,
    exists: bool,
    #[cfg(feature = "mutants")]
    pub mutant: Option<quorate_log::mutant::Mutant>,
    /// The engine's last durable image with its position.
    pub engine: (SnapMeta, Machine),
}

impl Storage {
    pub fn new(id: MemberId, bootstrap: SnapMeta, segment_bytes: u64, rng: &mut Rng) -> Storage {
        Storage {
            disk: FaultyDisk::new(rng.next_u64()),
            identity: Identity { cluster_id: CLUSTER_ID, member_id: id.0, incarnation: 1 },
            engine: (bootstrap.clone(), Machine::new()),
            bootstrap,
            segment_bytes,
            exists: false,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Opens the log, creating it at the first start, and brings it together with the engine.
    pub fn open(&mut self, nonce: u64) -> Result<(SimLog, Recovered), LogError> {
        let options = Options {
            segment_bytes: self.segment_bytes,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
            ..Options::new(nonce)
        };
        if !self.exists {
            let disk = self.disk.clone();
            drop(Log::create(disk, options, self.identity, self.bootstrap.clone())?);
            self.exists = true;
        }
        let (mut log, mut recovered) = Log::open(self.disk.clone(), options, Some(&self.identity))?;
        log.adopt_engine(&mut recovered, &self.engine.0)?;
        Ok((log, recovered))
    }

    /// The process died, perhaps with a batch on its way to the disk: it gets as far as some operation of the disk.
    pub fn crash(&mut self, mut log: SimLog, flushing: Option<&[(WriteSeq, Record)]>, power: bool, rng: &mut Rng) {
        if let Some(batch) = flushing {
            self.disk.crash_at(self.disk.op_count() + 1 + rng.below(OPS_PER_APPEND));
            // Whether it got through is found at the next start; nobody was told.
            let _ = log.append(batch);
        }
        drop(log);
        if !power {
            return self.disk.process_crash();
        }
        let survival = match rng.below(4) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            _ => Survival::Subset,
        };
        self.disk.power_loss(survival);
    }

    /// Damages one byte or sector of what was promised. The member must be down and its tail sealed.
    pub fn rot(&self, rng: &mut Rng) {
        let names: Vec<String> = self.segment_names();
        let Some(name) = rng.pick(&names) else { return };
        let Some(bytes) = self.disk.medium(name) else { return };
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        let anywhere = rng.below(used + 1);
        // Batches begin at blocks, and most of a block is padding that nobody reads.
        let at = if rng.chance(700) { anywhere / 4096 * 4096 + rng.below(300) } else { anywhere };
        let at = usize::try_from(at).expect("a simulated file is small");
        if rng.chance(700) {
            self.disk.rot(name, at, 1 << rng.below(8));
        } else {
            let sector = usize::try_from(rng.below(used / 512 + 1)).expect("a simulated file is small");
            self.disk.misdirect(name, sector, at / 512);
        }
    }

    fn segment_names(&self) -> Vec<String> {
        use quorate_log::Disk;
        let names = self.disk.clone().list().unwrap_or_default();
        names.into_iter().filter(|name| name.ends_with(".seg")).collect()
    }
}

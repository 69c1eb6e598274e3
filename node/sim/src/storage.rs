//! What survives a crash of one member: a simulated disk with the shipped log on it, and its engine's last durable image.

use quorate_log::faulty::Survival;
use quorate_log::{FaultyDisk, Identity, Log, LogError, Options, Progress, Repair};
use quorate_raft::types::{MemberId, Record, Recovered, SnapMeta, WriteSeq};

use crate::machine::Machine;
use crate::rng::Rng;

const CLUSTER_ID: u64 = 0x51;
/// Disk operations of one append, at most: write and flush of batch and slot, a rotation, removals.
const OPS_PER_APPEND: u64 = 9;
/// Disk operations of a start, about.
const OPS_PER_START: u64 = 12;
const META_NAME: &str = "meta";
const SECTOR_BYTES: usize = 512;
const BLOCK_BYTES: u64 = 4096;

/// A log on a simulated disk.
pub type SimLog = Log<FaultyDisk>;

#[derive(Debug)]
pub struct Storage {
    pub disk: FaultyDisk,
    identity: Identity,
    bootstrap: SnapMeta,
    segment_bytes: u64,
    exists: bool,
    /// The next start dies at this operation of the disk.
    dies_at: Option<u64>,
    #[cfg(feature = "mutants")]
    pub mutant: Option<quorate_log::mutant::Mutant>,
    /// An engine beyond its log is not taken as a mark: a planted bug, always false in a release build.
    pub ignores_engine: bool,
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
            dies_at: None,
            #[cfg(feature = "mutants")]
            mutant: None,
            ignores_engine: false,
        }
    }

    /// A copy of the whole volume.
    pub fn fork(&self, seed: u64) -> Storage {
        let disk = self.disk.fork(seed);
        disk.power_loss(Survival::Everything);
        Storage {
            disk,
            identity: self.identity,
            engine: self.engine.clone(),
            bootstrap: self.bootstrap.clone(),
            segment_bytes: self.segment_bytes,
            exists: self.exists,
            dies_at: None,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
            ignores_engine: self.ignores_engine,
        }
    }

    /// A new volume for the same member, with nothing on it.
    pub fn empty(&self, seed: u64) -> Storage {
        let mut rng = Rng::new(seed);
        Storage::new(MemberId(self.identity.member_id), self.bootstrap.clone(), self.segment_bytes, &mut rng)
    }

    /// An empty volume of this member bootstraps a cluster of one.
    pub fn founded_alone(&self) -> bool {
        let config = &self.bootstrap.config;
        config.voters.len() == 1 && config.voters.contains(&MemberId(self.identity.member_id))
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The same member of another cluster.
    pub fn foreign_identity(&self) -> Identity {
        Identity { cluster_id: CLUSTER_ID + 1, ..self.identity }
    }

    /// Whether a process that is `expected` finds the volume to be somebody else's.
    pub fn is_refused_as(&self, expected: Identity, is_trusting: bool) -> bool {
        let expected = (!is_trusting).then_some(&expected);
        let opened = Log::open(self.disk.clone(), Options::new(1), expected);
        // A volume that was lost is empty until its member joins anew: nobody starts on that either.
        matches!(opened, Err(LogError::ForeignIdentity { .. } | LogError::Missing))
    }

    /// Looks at damage; `Wants` is answered through [`Repair::offer`].
    ///
    /// # Errors
    /// What cannot be rebuilt whatever others give.
    pub fn look(&mut self, repair: &mut Repair) -> Result<Progress, LogError> {
        repair.look(&mut self.disk, Some(&self.identity))
    }

    /// Writes what was rebuilt.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write_repaired(&mut self, repair: &mut Repair) -> Result<(), LogError> {
        repair.write(&mut self.disk)
    }

    /// A repair of this log, which knows the marks the engine and the bootstrap name.
    pub fn repair(&self) -> Repair {
        Repair::new(self.options(1), vec![self.bootstrap.clone(), self.engine.0.clone()])
    }

    fn options(&self, nonce: u64) -> Options {
        Options {
            segment_bytes: self.segment_bytes,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
            ..Options::new(nonce)
        }
    }

    /// The next start dies in the middle of some operation of the disk.
    pub fn die_at_start(&mut self, rng: &mut Rng) {
        self.dies_at = Some(1 + rng.below(OPS_PER_START));
    }

    /// Opens the log, creating it at the first start, and brings it together with the engine.
    pub fn open(&mut self, nonce: u64) -> Result<(SimLog, Recovered), LogError> {
        if let Some(op) = self.dies_at.take() {
            self.disk.crash_at(self.disk.op_count() + op);
        }
        let options = self.options(nonce);
        if !self.exists {
            let disk = self.disk.clone();
            match Log::create(disk, options, self.identity, self.bootstrap.clone()) {
                // A crash came after the last step of an earlier try.
                Ok(_) | Err(LogError::Exists) => self.exists = true,
                Err(error) => return Err(error),
            }
        }
        let (mut log, mut recovered) = Log::open(self.disk.clone(), options, Some(&self.identity))?;
        if !self.ignores_engine {
            log.adopt_engine(&mut recovered, &self.engine.0)?;
        }
        Ok((log, recovered))
    }

    /// The process died, perhaps with a batch on its way to the disk: it gets as far as some operation of the disk.
    pub fn crash(&mut self, mut log: SimLog, flushing: Option<&[(WriteSeq, Record)]>, power: bool, rng: &mut Rng) {
        if let Some(batch) = flushing {
            if !self.disk.is_crashed() {
                self.disk.crash_at(self.disk.op_count() + 1 + rng.below(OPS_PER_APPEND));
            }
            // Whether it got through is found at the next start; nobody was told.
            let _ = log.append(batch);
        }
        drop(log);
        self.go_down(power, rng);
    }

    /// What a process that ended, or a machine that lost power, leaves behind.
    pub fn go_down(&self, power: bool, rng: &mut Rng) {
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

    /// Damages something that was promised and says what. The member must be down and its tail sealed.
    pub fn rot(&self, rng: &mut Rng) -> &'static str {
        if rng.chance(150) {
            let at = usize::try_from(rng.below(2) * BLOCK_BYTES + rng.below(200)).expect("a small number fits");
            self.disk.rot(META_NAME, at, 1 << rng.below(8));
            return "rot in the vote file";
        }
        let names: Vec<String> = self.segment_names();
        let Some(name) = rng.pick(&names) else { return "rot" };
        let Some(bytes) = self.disk.medium(name) else { return "rot" };
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        let anywhere = rng.below(used + 1);
        // Batches begin at blocks, and most of a block is padding that nobody reads.
        let at = if rng.chance(700) { anywhere / BLOCK_BYTES * BLOCK_BYTES + rng.below(300) } else { anywhere };
        let at = usize::try_from(at).expect("a simulated file is small");
        match rng.below(10) {
            0..=5 => {
                self.disk.rot(name, at, 1 << rng.below(8));
                "rot"
            }
            6..=7 => {
                let sector = usize::try_from(rng.below(used / 512 + 1)).expect("a simulated file is small");
                self.disk.misdirect(name, sector, at / SECTOR_BYTES);
                "misdirected write"
            }
            _ => {
                // A write that never arrived: the place holds what it held before, zeros.
                let sectors = usize::try_from(rng.between(1, 8)).expect("a small number fits");
                self.disk.overwrite(name, at / SECTOR_BYTES * SECTOR_BYTES, &vec![0; sectors * SECTOR_BYTES]);
                "stale read"
            }
        }
    }

    fn segment_names(&self) -> Vec<String> {
        use quorate_log::Disk;
        let names = self.disk.clone().list().unwrap_or_default();
        names.into_iter().filter(|name| name.ends_with(".seg")).collect()
    }
}

//! Tests of the log on a simulated disk. Each checks one promise; `mutants` shows that each can fail.

mod basics;
#[cfg(feature = "mutants")]
mod mutants;
mod repair;
mod space;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use quorate_log::{Disk, FaultyDisk, Identity, Log, Options, Verdict};
use quorate_raft::types::{
    Config, ConfigAt, Entry, HardState, MemberId, MemberInfo, Payload, Record, Recovered, SnapMeta, WriteSeq,
};

pub(crate) const ID: Identity = Identity { cluster_id: 0xC1, member_id: 0xA1, incarnation: 3 };

pub(crate) fn options(nonce: u64) -> Options {
    Options {
        segment_bytes: 40 << 10,
        #[cfg(feature = "mutants")]
        mutant: mutants::planted(),
        ..Options::new(nonce)
    }
}

pub(crate) fn config(ids: &[u64]) -> Config {
    let ids: BTreeSet<MemberId> = ids.iter().map(|id| MemberId(*id)).collect();
    let info = |id: &MemberId| MemberInfo { name: format!("m{id}"), ..MemberInfo::default() };
    let members: BTreeMap<_, _> = ids.iter().map(|id| (*id, info(id))).collect();
    Config { voters: ids, members, ..Config::default() }
}

pub(crate) fn mark(index: u64, term: u64) -> SnapMeta {
    SnapMeta { index, term, config: config(&[1, 2, 3]), config_at: ConfigAt { incarnation: 3, term: 0, index: 0 } }
}

pub(crate) fn entry(term: u64, index: u64, size: usize) -> Entry {
    let payload = match index % 7 {
        0 => Payload::Noop,
        1 => Payload::Config(config(&[1, index + 1])),
        _ => Payload::Data(Bytes::from(vec![(index * 31 + term) as u8; size])),
    };
    Entry { term, index, payload }
}

pub(crate) fn hard(term: u64, vote: u64) -> Record {
    Record::HardState(HardState { term, vote: (vote != 0).then_some(MemberId(vote)) })
}

/// What a log should hold, by the words of `Record` alone.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Model {
    pub(crate) hard: HardState,
    pub(crate) mark: SnapMeta,
    pub(crate) entries: Vec<Entry>,
}

impl Model {
    pub(crate) fn new() -> Model {
        Model { hard: HardState::default(), mark: mark(0, 0), entries: Vec::new() }
    }
    fn take(&mut self, record: &Record) {
        match record {
            Record::HardState(hard) => self.hard = *hard,
            Record::Append(entries) => self.entries.extend(entries.iter().cloned()),
            Record::TruncateTo(to) => self.entries.retain(|e| e.index <= *to),
            Record::SnapshotMark(meta) => {
                let term = |e: &Entry| (e.index, e.term) == (meta.index, meta.term);
                let holds =
                    self.entries.iter().any(term) || (self.mark.index, self.mark.term) == (meta.index, meta.term);
                self.entries.retain(|e| holds && e.index > meta.index);
                self.mark = meta.clone();
            }
        }
    }
    pub(crate) fn of(recovered: &Recovered) -> Model {
        Model { hard: recovered.hard, mark: recovered.snapshot.clone(), entries: recovered.entries.clone() }
    }
}

pub(crate) type Batch = Vec<(WriteSeq, Record)>;

/// A run with votes, appends of several sizes, truncations, marks that keep and marks that replace, over many segments.
pub(crate) fn script() -> Vec<Batch> {
    let mut seq = 0;
    let mut batch = |records: Vec<Record>| -> Batch {
        let number = |record| {
            seq += 1;
            (WriteSeq(seq), record)
        };
        records.into_iter().map(number).collect()
    };
    let run = |term, from, to, size| Record::Append((from..=to).map(|i| entry(term, i, size)).collect());
    vec![
        batch(vec![hard(1, 2)]),
        batch(vec![run(1, 1, 3, 10)]),
        batch(vec![run(1, 4, 4, 9000)]),
        batch(vec![run(1, 5, 8, 3000), hard(2, 0)]),
        batch(vec![Record::TruncateTo(6), run(2, 7, 9, 100)]),
        batch(vec![Record::SnapshotMark(mark(5, 1))]),
        batch(vec![run(2, 10, 12, 6000)]),
        batch(vec![hard(3, 7)]),
        batch(vec![Record::TruncateTo(9), run(3, 10, 11, 50), Record::SnapshotMark(mark(9, 2))]),
        batch(vec![run(3, 12, 20, 4000)]),
        batch(vec![run(3, 21, 21, 60_000)]),
        batch(vec![Record::SnapshotMark(mark(20, 3))]),
        batch(vec![hard(4, 1), Record::TruncateTo(20), run(4, 21, 22, 20)]),
        batch(vec![Record::SnapshotMark(mark(100, 4))]),
        batch(vec![run(4, 101, 103, 10), hard(5, 5)]),
        batch(vec![run(5, 104, 104, 30_000)]),
        batch(vec![Record::SnapshotMark(mark(103, 4)), run(5, 105, 105, 7)]),
    ]
}

/// Runs the script, opening anew (a clean restart) before the batches named, and returns how many were acknowledged.
pub(crate) fn run_script(disk: &FaultyDisk, restarts: &[usize]) -> Result<usize, usize> {
    run_script_full(disk, restarts, 0..0)
}

/// The same on a disk that is full while these batches are appended; what finds no room at all gets some and is repeated.
pub(crate) fn run_script_full(disk: &FaultyDisk, restarts: &[usize], full: Range<usize>) -> Result<usize, usize> {
    let Ok(mut log) = Log::create(disk.clone(), options(1), ID, mark(0, 0)) else { return Err(0) };
    let mut base = 0;
    for (at, batch) in script().into_iter().enumerate() {
        if restarts.contains(&at) {
            drop(log);
            let Ok((reopened, _)) = Log::open(disk.clone(), options(at as u64 + 9), Some(&ID)) else { return Err(at) };
            log = reopened;
            base = batch[0].0.0 - 1;
        }
        let batch: Batch = batch.into_iter().map(|(seq, record)| (WriteSeq(seq.0 - base), record)).collect();
        let is_full = full.contains(&at);
        disk.set_capacity(is_full.then(|| disk.used_bytes()));
        let mut appended = log.append(&batch);
        if matches!(&appended, Err(error) if error.verdict() == Verdict::Retry) {
            disk.set_capacity(None);
            appended = log.append(&batch);
        }
        if appended.is_err() {
            return Err(at);
        }
        let tended = if at % 3 == 0 || is_full { log.tend().map(|_| ()) } else { log.seal_tail() };
        if tended.is_err() {
            return Err(at + 1);
        }
    }
    Ok(script().len())
}

pub(crate) fn models() -> Vec<Model> {
    let mut all = vec![Model::new()];
    for batch in script() {
        let mut next = all.last().expect("the first model is there").clone();
        batch.iter().for_each(|(_, record)| next.take(record));
        all.push(next);
    }
    all
}

pub(crate) fn names_of(disk: &FaultyDisk) -> Vec<String> {
    disk.clone().list().expect("lists")
}

//! Our own: `quorate-state` in memory, checkpoints as runs of hashed, immutable chunks. The file layer is that of the
//! node in small: a whole run, then runs of what changed, and a new whole when those weigh a quarter of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use bytes::Bytes;
use quorate_state::snapshot::{self, HEAD_BYTES, Head};
use quorate_state::view::View as StateView;
use quorate_state::{Command, KeyRange, KeyValue, Machine, Put, Range, Restorer, RunEnd};

use crate::engine::{Engine, Pair, View};

const CHANGE_BYTES_MIN: u64 = 64 << 20;

#[derive(Clone)]
struct Chain {
    runs: Vec<(PathBuf, u64)>,
    end: RunEnd,
}

pub struct Own {
    dir: PathBuf,
    machine: Machine,
    changes: Vec<Arc<KeyValue>>,
    chain: Arc<Mutex<Option<Chain>>>,
}

pub struct OwnView(StateView);

impl Engine for Own {
    const NAME: &'static str = "own";
    type View = OwnView;

    fn open(dir: &Path) -> Result<Own> {
        std::fs::create_dir_all(dir)?;
        let (machine, chain) = load(dir)?;
        Ok(Own { dir: dir.to_owned(), machine, changes: Vec::new(), chain: Arc::new(Mutex::new(chain)) })
    }

    fn applied(&self) -> u64 {
        self.machine.applied_index()
    }

    fn apply(&mut self, puts: &[Pair]) -> Result<u64> {
        let put = |(key, value): &Pair| {
            let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            Put { key, value, ..Put::default() }
        };
        let command = match puts {
            [one] => Command::Put(put(one)),
            many => {
                let ops = many.iter().map(|pair| quorate_state::TxnOp::Put(put(pair))).collect();
                Command::Txn(quorate_state::Txn { success: ops, ..Default::default() })
            }
        };
        let applied = self.machine.apply(self.machine.applied_index() + 1, 1, Some(&command));
        self.changes.extend(applied.events.into_iter().map(|event| event.kv));
        applied.outcome?;
        Ok(u64::try_from(applied.revision)? - 1)
    }

    fn compact(&mut self, revision: u64, _steps: usize) -> Result<usize> {
        let before = self.machine.view().change_count();
        let revision = i64::try_from(revision)? + 1;
        let index = self.machine.applied_index() + 1;
        // The command once, then whatever entries come drive it on.
        let command = Command::Compact { revision };
        let command = (self.machine.compact_revision() < revision).then_some(&command);
        self.machine.apply(index, 1, command);
        Ok(before - self.machine.view().change_count())
    }

    fn view(&self) -> Result<OwnView> {
        Ok(OwnView(self.machine.view()))
    }

    fn persist(&mut self) -> Result<JoinHandle<Result<()>>> {
        let (view, changes) = (self.machine.view(), std::mem::take(&mut self.changes));
        let (dir, chain) = (self.dir.clone(), self.chain.clone());
        Ok(std::thread::spawn(move || persist(&dir, &chain, &view, changes)))
    }
}

fn persist(dir: &Path, chain: &Mutex<Option<Chain>>, view: &StateView, changes: Vec<Arc<KeyValue>>) -> Result<()> {
    let index = view.applied_index();
    let before = chain.lock().expect("not poisoned").clone();
    if before.as_ref().is_some_and(|chain| chain.end.index == index) {
        return Ok(());
    }
    let bytes: u64 = changes.iter().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum();
    let room = |chain: &Chain| {
        let written: u64 = chain.runs[1..].iter().map(|(_, bytes)| bytes).sum();
        written + bytes <= CHANGE_BYTES_MIN.max(chain.runs[0].1 / 4)
    };
    let (mut chunks, kind) = match &before {
        Some(chain) if room(chain) => (view.change_chunks(changes, chain.end, b""), "changes"),
        Some(_) | None => (view.snapshot_chunks(b""), "whole"),
    };
    let temporary = dir.join("checkpoint.tmp");
    let mut file = File::create(&temporary)?;
    let (mut bytes, mut unflushed) = (0, 0);
    for chunk in &mut chunks {
        file.write_all(&chunk)?;
        bytes += chunk.len() as u64;
        unflushed += chunk.len();
        if unflushed >= 8 << 20 {
            file.sync_data()?;
            unflushed = 0;
        }
    }
    file.sync_all()?;
    let path = dir.join(format!("{index:020}.{kind}"));
    std::fs::rename(&temporary, &path)?;
    File::open(dir)?.sync_all()?;
    let end = RunEnd { index, crc: chunks.place().crc };
    let mut old = Vec::new();
    let runs = match before {
        Some(chain) if kind == "changes" => chain.runs.into_iter().chain([(path, bytes)]).collect(),
        before => {
            old = before.map_or_else(Vec::new, |chain| chain.runs);
            vec![(path, bytes)]
        }
    };
    *chain.lock().expect("not poisoned") = Some(Chain { runs, end });
    for (path, _) in old {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn load(dir: &Path) -> Result<(Machine, Option<Chain>)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|e| e != "tmp"));
    paths.sort();
    let is_whole = |path: &PathBuf| path.extension().is_some_and(|e| e == "whole");
    let Some(whole) = paths.iter().rposition(is_whole) else { return Ok((Machine::new(), None)) };
    let paths = paths.split_off(whole);
    let order: Vec<PathBuf> = paths[1..].iter().chain(&paths[..1]).cloned().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (chunks, to_decode) = sync_channel::<(u64, Vec<u8>)>(16);
    let to_decode = Mutex::new(to_decode);
    let (decoded, done) = sync_channel(16);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read(&order, &chunks));
        for _ in 0..threads {
            let (to_decode, decoded) = (&to_decode, decoded.clone());
            scope.spawn(move || {
                loop {
                    let next = to_decode.lock().expect("not poisoned").recv();
                    let Ok((number, chunk)) = next else { return };
                    if decoded.send((number, snapshot::decode(&chunk, 0))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(decoded);
        let (mut restorer, mut early, mut next) = (Restorer::default(), BTreeMap::new(), 0);
        while let Ok((number, result)) = done.recv() {
            early.insert(number, result?);
            while let Some(chunk) = early.remove(&next) {
                restorer.push(chunk)?;
                next += 1;
            }
        }
        let machine = restorer.finish()?.machine;
        let (sizes, crcs) = reader.join().expect("no panic")?;
        let newest = if paths.len() == 1 { crcs[0] } else { crcs[paths.len() - 2] };
        let end = RunEnd { index: machine.applied_index(), crc: newest };
        let (whole, changes) = sizes.split_last().context("there is a whole")?;
        let sizes = std::iter::once(*whole).chain(changes.iter().copied());
        Ok((machine, Some(Chain { runs: paths.iter().cloned().zip(sizes).collect(), end })))
    })
}

type Numbered = (u64, Vec<u8>);

fn read(paths: &[PathBuf], chunks: &std::sync::mpsc::SyncSender<Numbered>) -> Result<(Vec<u64>, Vec<u32>)> {
    let (mut sizes, mut crcs, mut number) = (Vec::new(), Vec::new(), 0);
    for path in paths {
        let mut file = File::open(path)?;
        let (mut bytes, mut crc) = (0, 0);
        let mut head = [0; HEAD_BYTES];
        while file.read_exact(&mut head).is_ok() {
            let parsed = Head::parse(&head)?;
            let mut chunk = Vec::with_capacity(parsed.chunk_bytes());
            chunk.extend_from_slice(&head);
            (&file).take(parsed.body_bytes as u64).read_to_end(&mut chunk)?;
            (bytes, crc) = (bytes + chunk.len() as u64, parsed.crc);
            chunks.send((number, chunk))?;
            number += 1;
        }
        sizes.push(bytes);
        crcs.push(crc);
    }
    Ok((sizes, crcs))
}

impl View for OwnView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).map(|kv| kv.value.to_vec()))
    }

    fn get_at(&self, key: &[u8], revision: u64) -> Result<Option<Vec<u8>>> {
        // The first write makes revision 2.
        let found = self.0.get_at(key, i64::try_from(revision)? + 1)?;
        Ok(found.map(|kv| kv.value.to_vec()))
    }

    fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Pair>> {
        // A key is never empty, so this is below all.
        let from = if from.is_empty() { b"\0" } else { from };
        let range = KeyRange::new(from.to_vec(), "\0");
        let found = self.0.range(&Range { range, limit: i64::try_from(limit)?, ..Range::default() })?;
        Ok(found.kvs.iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect())
    }

    fn changes(&self, from: u64, limit: usize) -> Result<Vec<Vec<u8>>> {
        let events = self.0.events(&KeyRange::all(), i64::try_from(from)? + 1, limit)?;
        Ok(events.events.into_iter().map(|event| event.kv.key.to_vec()).collect())
    }
}

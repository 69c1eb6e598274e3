//! Snapshots between members, each on a connection of its own.
//!
//! The sender announces position and runs; the receiver answers how many whole chunks it has already; chunks follow,
//! numbered over all runs; the receiver takes none it has not checked, and asks again for one that is damaged. When the
//! connection breaks, the sender dials again and goes on where the receiver is. Neither side blocks a thread that
//! carries heartbeats: files are read and written on threads that may wait.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use quorate_raft::types::{Index, MemberId, Term};
use quorate_state::snapshot;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_blocking;

use super::frame::{Frame, Hello, Purpose};
use super::link::{connect, read_frame, write_frame};
use super::{Local, NO_SNAPSHOT};
use crate::driver::{DriverInput, Inbox};
use crate::snapshot::{Chain, Incoming, PushError, RunFile, RunReader, Snapshots};

/// No progress for this long ends a stream. The receiver needs some seconds to look at what it has, and to load it.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Connections that may break without a single chunk getting through; then the core decides anew.
const FRUITLESS_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);
/// How often one chunk may arrive damaged: more is no accident.
const ASKED_MAX: u32 = 3;

async fn timely<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(TIMEOUT, work).await.with_context(|| format!("{what} within {} s", TIMEOUT.as_secs()))?
}

// ---- sending ---------------------------------------------------------------------------------------------------

/// Streams the newest checkpoint; gives its index and how it went.
pub(super) async fn send(local: &Arc<Local>, to: MemberId, term: Term) -> (Index, Result<()>) {
    let hello = Hello { purpose: Purpose::Snapshot, to, ..local.hello.clone() };
    let (mut held, mut fruitless) = (0, 0);
    loop {
        // Anew each time: a newer one often shares its first runs with the one before.
        let Some(chain) = local.snapshots.newest() else {
            return (NO_SNAPSHOT, Err(anyhow::anyhow!("there is no checkpoint to send yet")));
        };
        let index = chain.meta.index;
        let mut stream = match connect(&local.urls_of(to), &local.plane, &hello).await {
            Ok(stream) => stream,
            Err(error) => return (index, Err(error)),
        };
        let before = held;
        let error = match attempt(&mut stream, term, &chain, &mut held).await {
            Ok(()) => return (index, Ok(())),
            Err(error) => error,
        };
        fruitless = if held > before { 0 } else { fruitless + 1 };
        if fruitless >= FRUITLESS_MAX {
            return (index, Err(error));
        }
        tracing::info!(%to, index, held, "a snapshot is interrupted and goes on: {error:#}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// One connection's worth. `held` becomes the number of chunks the peer says it has: what was sent may not be.
async fn attempt(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    term: Term,
    chain: &Chain,
    held: &mut u64,
) -> Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut chunks = {
        let chain = chain.clone();
        spawn_blocking(move || ChainReader::open(&chain)).await??
    };
    write_frame(&mut writer, &Frame::SnapshotBegin { term, meta: chain.meta.clone(), runs: chain.runs.clone() })
        .await?;
    let mut told = timely("the peer does not say what it has", read_frame(&mut reader)).await?;
    loop {
        let from = match told {
            Frame::SnapshotFrom { chunk } => chunk,
            Frame::SnapshotTaken => return Ok(()),
            other => bail!("unexpected frame {other:?} about a snapshot"),
        };
        chunks = chunks.seek(from).await?;
        *held = (*held).max(from);
        let mut answer = pin!(read_frame(&mut reader));
        told = loop {
            // A frame is written whole or the connection is given up, so the answer is looked at in between.
            if let std::task::Poll::Ready(answer) = futures::poll!(&mut answer) {
                break answer?;
            }
            let next;
            (chunks, next) = chunks.next().await?;
            let Some((number, chunk)) = next else {
                write_frame(&mut writer, &Frame::SnapshotEnd).await?;
                break timely("the peer does not take the snapshot", answer).await?;
            };
            let chunk = Frame::SnapshotChunk { number, chunk };
            timely("the peer takes no bytes", write_frame(&mut writer, &chunk)).await?;
        };
    }
}

/// The chunks of a chain, numbered over all runs. Its files are open, so it may be removed meanwhile.
#[derive(Debug)]
struct ChainReader {
    runs: Vec<(RunFile, PathBuf, RunReader)>,
    at: usize,
    number: u64,
}

impl ChainReader {
    fn open(chain: &Chain) -> Result<ChainReader> {
        let open = |run: &RunFile| {
            let path = chain.dir.join(run.name());
            Ok((run.clone(), path.clone(), RunReader::open(&path)?))
        };
        let runs = chain.runs.iter().map(open).collect::<Result<_>>()?;
        Ok(ChainReader { runs, at: 0, number: 0 })
    }

    /// Goes to a chunk at any place.
    async fn seek(mut self, chunk: u64) -> Result<ChainReader> {
        spawn_blocking(move || {
            self.runs.iter_mut().try_for_each(|(_, _, reader)| reader.rewind())?;
            let mut left = chunk;
            for (at, (run, _, reader)) in self.runs.iter_mut().enumerate() {
                self.at = at;
                match u32::try_from(left).ok().filter(|left| *left < run.chunks) {
                    Some(chunks) => {
                        reader.skip(chunks)?;
                        self.number = chunk;
                        return Ok(self);
                    }
                    None => left -= u64::from(run.chunks),
                }
            }
            ensure!(left == 0, "the peer has {chunk} chunks, more than the snapshot");
            (self.at, self.number) = (self.runs.len(), chunk);
            Ok(self)
        })
        .await?
    }

    /// The next chunk; one that rotted here is not worth sending.
    async fn next(mut self) -> Result<(ChainReader, Option<(u64, Bytes)>)> {
        spawn_blocking(move || {
            while let Some((_, path, reader)) = self.runs.get_mut(self.at) {
                let Some(chunk) = reader.next_chunk()? else {
                    self.at += 1;
                    continue;
                };
                snapshot::check(&chunk).with_context(|| format!("chunk {} in {}", self.number, path.display()))?;
                let number = self.number;
                self.number += 1;
                return Ok((self, Some((number, chunk.into()))));
            }
            Ok((self, None))
        })
        .await?
    }
}

// ---- receiving -------------------------------------------------------------------------------------------------

/// Receives one snapshot and hands it to the driver.
pub(super) async fn receive(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    snapshots: &Arc<Snapshots>,
    inbox: &Inbox,
    from: MemberId,
) -> Result<()> {
    let first = timely("a snapshot does not begin", read_frame(stream)).await?;
    let Frame::SnapshotBegin { term, meta, runs } = first else { bail!("a snapshot begins otherwise") };
    let index = meta.index;
    let mut incoming = {
        let snapshots = snapshots.clone();
        spawn_blocking(move || Incoming::begin(&snapshots, meta, runs)).await??
    };
    tracing::info!(%from, index, have = incoming.have(), "receiving a snapshot");
    let mut asked = 0;
    write_frame(stream, &Frame::SnapshotFrom { chunk: incoming.have() }).await?;
    loop {
        match timely("no more of the snapshot comes", read_frame(stream)).await? {
            // What was on its way when this chunk was asked for again.
            Frame::SnapshotChunk { number, .. } if number != incoming.have() => continue,
            Frame::SnapshotChunk { chunk, .. } => {
                let pushed;
                (incoming, pushed) = spawn_blocking(move || {
                    let pushed = incoming.push(&chunk);
                    (incoming, pushed)
                })
                .await?;
                match pushed {
                    Ok(()) => asked = 0,
                    Err(PushError::Failed(error)) => return Err(error),
                    Err(PushError::Damaged(damage)) if asked == ASKED_MAX => {
                        spawn_blocking(move || incoming.discard()).await??;
                        bail!("a chunk of the snapshot arrived damaged {asked} times: {damage}");
                    }
                    Err(PushError::Damaged(damage)) => {
                        let chunk = incoming.have();
                        tracing::warn!(%from, index, chunk, "a chunk of a snapshot is asked for again: {damage}");
                        asked += 1;
                        write_frame(stream, &Frame::SnapshotFrom { chunk }).await?;
                    }
                }
            }
            // The chunk before was asked for again, and the end was on its way.
            Frame::SnapshotEnd if !incoming.is_complete() => continue,
            Frame::SnapshotEnd => break,
            other => bail!("unexpected frame {other:?} within a snapshot"),
        }
    }
    let staged = spawn_blocking(move || incoming.finish()).await??;
    inbox.send(DriverInput::SnapshotReady { from, term, staged: Box::new(staged) })?;
    write_frame(stream, &Frame::SnapshotTaken).await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::snapshot::Staged;
    use crate::snapshot::testing::{Member, small_member};

    const PIPE_BYTES: usize = 64;

    /// Carries at most `limit` bytes from sender to receiver, then cuts both off; gives how many it carried.
    async fn carry(sender: DuplexStream, receiver: DuplexStream, limit: u64) -> u64 {
        let (mut from_sender, mut to_sender) = tokio::io::split(sender);
        let (mut from_receiver, mut to_receiver) = tokio::io::split(receiver);
        let answers = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut from_receiver, &mut to_sender).await;
        });
        let mut carried = 0;
        let mut bytes = [0; PIPE_BYTES];
        while carried < limit {
            let most = usize::try_from(limit - carried).map_or(PIPE_BYTES, |left| left.min(PIPE_BYTES));
            let Ok(read @ 1..) = from_sender.read(&mut bytes[..most]).await else { break };
            if to_receiver.write_all(&bytes[..read]).await.is_err() {
                break;
            }
            carried += read as u64;
        }
        let _ = to_receiver.shutdown().await;
        let _ = answers.await;
        carried
    }

    /// One connection over which no more than `limit` bytes pass; gives how many did, and what arrived.
    async fn connection(from: &Member, to: &Member, limit: u64) -> (u64, Option<Box<Staged>>) {
        let (near, sender) = duplex(PIPE_BYTES);
        let (far, receiver) = duplex(PIPE_BYTES);
        let chain = from.snapshots.newest().expect("a checkpoint");
        let sending = tokio::spawn(async move {
            let mut near = near;
            attempt(&mut near, 1, &chain, &mut 0).await
        });
        let (inbox, inputs) = mpsc::channel();
        let snapshots = to.snapshots.clone();
        let receiving = tokio::spawn(async move {
            let mut far = far;
            receive(&mut far, &snapshots, &Inbox(inbox), MemberId(1)).await
        });
        let carried = carry(sender, receiver, limit).await;
        let (_, _) = (sending.await, receiving.await);
        let staged = match inputs.try_recv() {
            Ok(DriverInput::SnapshotReady { staged, .. }) => Some(staged),
            _ => None,
        };
        (carried, staged)
    }

    #[tokio::test]
    async fn a_stream_cut_anywhere_goes_on_and_sends_at_most_one_chunk_twice() {
        let from = small_member(20);
        let (whole, staged) = connection(&from, &small_member(0), u64::MAX).await;
        let staged = staged.expect("a stream that is not cut arrives");
        let chain = from.snapshots.newest().expect("a checkpoint");
        let largest = from.largest_chunk() as u64;
        let begin = {
            let mut frame = bytes::BytesMut::new();
            Frame::SnapshotBegin { term: 1, meta: chain.meta.clone(), runs: chain.runs.clone() }.encode(&mut frame);
            frame.len() as u64
        };
        // Kind and number, length and checksum.
        let frame = 1 + 8 + 8;
        let mut cuts = vec![0, begin / 2, begin, whole - 1];
        let mut at = begin;
        for chunk in from.chunks() {
            let bytes = frame + chunk.len() as u64;
            cuts.extend([at + bytes / 2, at + bytes]);
            at += bytes;
        }
        for cut in cuts.into_iter().filter(|cut| *cut < whole) {
            let to = small_member(0);
            let (first, none) = connection(&from, &to, cut).await;
            assert!(none.is_none() && first <= cut);
            let (second, arrived) = connection(&from, &to, u64::MAX).await;
            let arrived = arrived.unwrap_or_else(|| panic!("cut at {cut}, it goes on"));
            assert_eq!(arrived.hash(), staged.hash());
            assert!(first + second <= whole + begin + largest + frame, "cut at {cut}: {first} and {second} of {whole}");
        }
    }

    #[tokio::test]
    async fn a_stream_cut_again_and_again_arrives() {
        let from = small_member(20);
        let to = small_member(0);
        let (mut connections, mut total) = (0, 0);
        let arrived = loop {
            let (carried, staged) = connection(&from, &to, 500).await;
            (connections, total) = (connections + 1, total + carried);
            if let Some(staged) = staged {
                break staged;
            }
            assert!(connections < 200, "each connection brings it further");
        };
        assert!(connections > 5, "{connections} connections, {total} bytes");
        assert_eq!(arrived.hash(), from.machine.state_hash());
    }

    #[tokio::test]
    async fn a_damaged_chunk_is_asked_for_again_and_never_taken() {
        let from = small_member(20);
        let chain = from.snapshots.newest().expect("a checkpoint");
        let chunks = from.chunks();
        for bad in 0..chunks.len() {
            let to = small_member(0);
            let (mut near, mut far) = duplex(1 << 20);
            let (inbox, inputs) = mpsc::channel();
            let snapshots = to.snapshots.clone();
            let receiving =
                tokio::spawn(async move { receive(&mut far, &snapshots, &Inbox(inbox), MemberId(1)).await });
            let begin = Frame::SnapshotBegin { term: 1, meta: chain.meta.clone(), runs: chain.runs.clone() };
            write_frame(&mut near, &begin).await.expect("begins");
            assert_eq!(read_frame(&mut near).await.expect("answers"), Frame::SnapshotFrom { chunk: 0 });
            let send =
                |number: usize, chunk: Vec<u8>| Frame::SnapshotChunk { number: number as u64, chunk: chunk.into() };
            for (number, chunk) in chunks.iter().enumerate() {
                let mut sent = chunk.clone();
                if number == bad {
                    let at = sent.len() / 2;
                    sent[at] ^= 0x10;
                }
                write_frame(&mut near, &send(number, sent)).await.expect("sends");
            }
            write_frame(&mut near, &Frame::SnapshotEnd).await.expect("ends");
            let asked = read_frame(&mut near).await.expect("asks");
            assert_eq!(asked, Frame::SnapshotFrom { chunk: bad as u64 });
            for (number, chunk) in chunks.iter().enumerate().skip(bad) {
                write_frame(&mut near, &send(number, chunk.clone())).await.expect("sends");
            }
            write_frame(&mut near, &Frame::SnapshotEnd).await.expect("ends");
            assert_eq!(read_frame(&mut near).await.expect("answers"), Frame::SnapshotTaken);
            receiving.await.expect("no panic").expect("received");
            let Ok(DriverInput::SnapshotReady { staged, .. }) = inputs.try_recv() else { panic!("it is staged") };
            assert_eq!(staged.hash(), from.machine.state_hash());
        }
    }

    #[tokio::test]
    async fn a_sender_that_keeps_sending_damage_is_given_up() {
        let from = small_member(20);
        let chain = from.snapshots.newest().expect("a checkpoint");
        let to = small_member(0);
        let (mut near, mut far) = duplex(1 << 20);
        let snapshots = to.snapshots.clone();
        let receiving =
            tokio::spawn(async move { receive(&mut far, &snapshots, &Inbox(mpsc::channel().0), MemberId(1)).await });
        let begin = Frame::SnapshotBegin { term: 1, meta: chain.meta.clone(), runs: chain.runs.clone() };
        write_frame(&mut near, &begin).await.expect("begins");
        let mut bad = from.chunks()[0].clone();
        bad[30] ^= 1;
        let frame = Frame::SnapshotChunk { number: 0, chunk: bad.into() };
        for _ in 0..=ASKED_MAX {
            assert_eq!(read_frame(&mut near).await.expect("asks"), Frame::SnapshotFrom { chunk: 0 });
            write_frame(&mut near, &frame).await.expect("sends");
        }
        let error = receiving.await.expect("no panic").expect_err("given up");
        assert!(error.to_string().contains("damaged"), "{error:#}");
    }
}

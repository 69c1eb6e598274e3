//! Connections this member dials.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use quorate_raft::types::{Index, MemberId, Term};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::frame::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameError, Hello, Purpose};
use super::{Local, NO_SNAPSHOT, Queue};
use crate::driver::DriverInput;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that nobody has acknowledged for this long break the connection.
const VANISHED: Duration = Duration::from_secs(4);
/// Pause between attempts: from the first to the last, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// A refusal does not go away quickly; asking all the time would fill both logs.
const REFUSED_PAUSE: Duration = Duration::from_secs(3);
/// Frames joined into one write.
const WRITE_BYTES: usize = 1 << 20;
const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;
/// No progress for this long ends a snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// `host:port` of a peer or client URL.
pub(crate) fn authority(url: &str) -> Result<&str> {
    let rest = url.strip_prefix("http://").with_context(|| {
        format!("URL {url:?} does not start with http:// (TLS is not there yet): write http://HOST:PORT")
    })?;
    let authority = rest.trim_end_matches('/');
    if authority.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
        bail!("URL {url:?} names no port: write http://HOST:PORT");
    }
    Ok(authority)
}

/// Reads one frame.
pub(crate) async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<Frame> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let (len, crc) = header.split_at(4);
    let len = u32::from_le_bytes(len.try_into().expect("four bytes"));
    let crc = u32::from_le_bytes(crc.try_into().expect("four bytes"));
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > FRAME_BYTES_MAX {
        bail!(FrameError::TooLarge { bytes: len });
    }
    let mut body = BytesMut::zeroed(len);
    stream.read_exact(&mut body).await?;
    if crc32c::crc32c(&body) != crc {
        bail!(FrameError::Checksum);
    }
    Ok(Frame::decode(body.freeze())?)
}

pub(crate) async fn write_frame(stream: &mut (impl AsyncWriteExt + Unpin), frame: &Frame) -> Result<()> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    Ok(stream.write_all(&out).await?)
}

/// Connects and introduces this member; an error says why the other side does not want it.
async fn connect(urls: &[String], hello: &Hello) -> Result<TcpStream> {
    let mut last = anyhow::anyhow!("no address is known");
    for url in urls {
        match tokio::time::timeout(CONNECT_TIMEOUT, dial(url, hello)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error.context(format!("peer URL {url}")),
            Err(_) => last = anyhow::anyhow!("peer URL {url}: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }
    Err(last)
}

/// Small messages leave at once, and a host that vanished without a word is noticed: its address may have moved.
pub(super) fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(VANISHED / 2).with_interval(VANISHED / 4))?;
    socket.set_tcp_user_timeout(Some(VANISHED))
}

#[derive(Debug, thiserror::Error)]
#[error("refused: {0}")]
struct RefusedByPeer(String);

async fn dial(url: &str, hello: &Hello) -> Result<TcpStream> {
    // Names are resolved anew each time: a pod that comes back has another address.
    let mut stream = TcpStream::connect(authority(url)?).await?;
    tune(&stream)?;
    write_frame(&mut stream, &Frame::Hello(hello.clone())).await?;
    match read_frame(&mut stream).await? {
        Frame::Welcome { refusal: None } => Ok(stream),
        Frame::Welcome { refusal: Some(why) } => Err(RefusedByPeer(why).into()),
        _ => bail!("it did not answer the hello"),
    }
}

/// Keeps one connection to `to`, for as long as the process lives.
pub(super) async fn keep(
    local: Arc<Local>,
    to: MemberId,
    purpose: Purpose,
    queue: Queue,
    mut frames: mpsc::UnboundedReceiver<Frame>,
) {
    let hello = Hello { purpose, to, ..local.hello.clone() };
    let mut pause = BACKOFF.0;
    let mut told = String::new();
    while !frames.is_closed() {
        match connect(&local.urls_of(to), &hello).await {
            Ok(stream) => {
                tracing::debug!(%to, ?purpose, "connected");
                (pause, told) = (BACKOFF.0, String::new());
                queue.is_connected.store(true, Ordering::Relaxed);
                let ended = carry(stream, &queue, &mut frames).await;
                queue.is_connected.store(false, Ordering::Relaxed);
                tracing::debug!(%to, ?purpose, "connection ended: {ended:#}");
                if purpose == Purpose::Bulk {
                    local.inbox.tell(DriverInput::PeerGone { peer: to });
                }
            }
            Err(error) => {
                let text = format!("{error:#}");
                if text != told {
                    tracing::info!(%to, ?purpose, "cannot connect: {text}");
                    told = text;
                }
                if error.downcast_ref::<RefusedByPeer>().is_some() {
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
        // What waited for a connection that was not there is stale.
        while let Ok(stale) = frames.try_recv() {
            queue.queued_bytes.fetch_sub(stale.size_bytes(), Ordering::Relaxed);
        }
    }
}

/// Writes frames until the connection breaks; says why it did.
async fn carry(mut stream: TcpStream, queue: &Queue, frames: &mut mpsc::UnboundedReceiver<Frame>) -> anyhow::Error {
    let (mut reader, mut writer) = stream.split();
    let mut out = BytesMut::with_capacity(64 << 10);
    let mut nothing = [0; 1];
    loop {
        tokio::select! {
            biased;
            frame = frames.recv() => {
                let Some(frame) = frame else { return anyhow::anyhow!("the member is stopping") };
                out.clear();
                let mut next = Some(frame);
                while let Some(frame) = next {
                    queue.queued_bytes.fetch_sub(frame.size_bytes(), Ordering::Relaxed);
                    frame.encode(&mut out);
                    next = if out.len() < WRITE_BYTES { frames.try_recv().ok() } else { None };
                }
                if let Err(error) = writer.write_all(&out).await {
                    return error.into();
                }
            }
            // The other side never speaks here, so this ends only with the connection.
            read = reader.read(&mut nothing) => return match read {
                Ok(0) => anyhow::anyhow!("closed by the peer"),
                Ok(_) => anyhow::anyhow!("the peer spoke out of turn"),
                Err(error) => error.into(),
            },
        }
    }
}

/// Streams the newest checkpoint; gives its index and how it went.
pub(super) async fn send_snapshot(local: &Arc<Local>, to: MemberId, term: Term) -> (Index, Result<()>) {
    let Some((meta, path)) = local.snapshots.newest() else {
        return (NO_SNAPSHOT, Err(anyhow::anyhow!("there is no checkpoint to send yet")));
    };
    let index = meta.index;
    let result = async {
        let hello = Hello { purpose: Purpose::Snapshot, to, ..local.hello.clone() };
        let mut stream = connect(&local.urls_of(to), &hello).await?;
        write_frame(&mut stream, &Frame::SnapshotBegin { term, meta }).await?;
        stream_file(&mut stream, &path).await?;
        write_frame(&mut stream, &Frame::SnapshotEnd).await?;
        match tokio::time::timeout(SNAPSHOT_TIMEOUT, read_frame(&mut stream)).await?? {
            Frame::SnapshotTaken => Ok(()),
            _ => bail!("the peer did not take the snapshot"),
        }
    };
    (index, result.await)
}

async fn stream_file(stream: &mut TcpStream, path: &Path) -> Result<()> {
    let mut file = tokio::fs::File::open(path).await.with_context(|| format!("cannot open {}", path.display()))?;
    let mut buffer = vec![0; SNAPSHOT_CHUNK_BYTES];
    loop {
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let chunk = Frame::SnapshotChunk(Bytes::copy_from_slice(&buffer[..read]));
        tokio::time::timeout(SNAPSHOT_TIMEOUT, write_frame(stream, &chunk))
            .await
            .context("the peer takes no bytes")??;
    }
}

/// Asks any of `urls` who the members are.
pub(crate) async fn ask_members(urls: &[String], hello: &Hello) -> Result<Frame> {
    let hello = Hello { purpose: Purpose::Members, ..hello.clone() };
    let mut stream = connect(urls, &hello).await?;
    tokio::time::timeout(CONNECT_TIMEOUT, read_frame(&mut stream)).await.context("no answer")?
}

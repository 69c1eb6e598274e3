//! Connections this member dials.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use quorate_raft::frame as envelope;
use quorate_raft::types::MemberId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;

use super::frame::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame, Hello, Purpose};
use super::shared::Shared;
use super::{Direct, Line, Local, Queued, Refused};
use crate::driver::DriverInput;
use crate::tls::{Mode, Plane, Stream};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that nobody has acknowledged for this long break the connection.
const VANISHED: Duration = Duration::from_secs(4);
/// Pause between attempts: from the first to the last, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// A refusal does not go away quickly; asking all the time would fill both logs.
const REFUSED_PAUSE: Duration = Duration::from_secs(3);
/// Frames joined into one write.
const WRITE_BYTES: usize = 1 << 20;

/// `host:port` of a peer or client URL.
pub(crate) fn authority(url: &str) -> Result<&str> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.with_context(|| {
        format!("URL {url:?} starts neither with http:// nor with https://: write https://HOST:PORT")
    })?;
    let authority = rest.trim_end_matches('/');
    if authority.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
        bail!("URL {url:?} names no port: write https://HOST:PORT");
    }
    Ok(authority)
}

/// Reads one frame.
pub(crate) async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<Frame> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let mut body = BytesMut::zeroed(envelope::body_bytes(header, FRAME_BYTES_MAX)?);
    stream.read_exact(&mut body).await?;
    envelope::check(header, &body)?;
    Ok(Frame::decode(body.freeze())?)
}

pub(crate) async fn write_frame(stream: &mut (impl AsyncWriteExt + Unpin), frame: &Frame) -> Result<()> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    stream.write_all(&out).await?;
    // TLS may hold back the end of what was written.
    Ok(stream.flush().await?)
}

/// Connects and introduces this member; an error says why the other side does not want it.
pub(super) async fn connect(urls: &[String], plane: &Plane, hello: &Hello) -> Result<Stream> {
    let mut last = anyhow::anyhow!("no address is known");
    for url in urls {
        let connected = match addresses(url).await {
            Ok(addresses) => connect_any(url, addresses, plane, hello).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.context(format!("peer URL {url}")),
        }
    }
    Err(last)
}

/// Names are resolved anew each time: a pod that comes back has another address.
async fn addresses(url: &str) -> Result<Vec<SocketAddr>> {
    let found = tokio::time::timeout(CONNECT_TIMEOUT, lookup_host(authority(url)?)).await;
    let found = found.with_context(|| format!("no address within {} s", CONNECT_TIMEOUT.as_secs()))??;
    Ok(found.collect())
}

/// Tries each address of a URL. A name that leads to all members leads to this one, too, and often to it first: that it
/// takes a connection and never answers must not keep it from the others.
async fn connect_any(url: &str, addresses: Vec<SocketAddr>, plane: &Plane, hello: &Hello) -> Result<Stream> {
    let mut last = anyhow::anyhow!("its name has no address");
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, dial(url, address, plane, hello)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = anyhow::anyhow!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
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
#[error("refused: {}", .0.why)]
struct RefusedByPeer(Refused);

async fn dial(url: &str, address: SocketAddr, plane: &Plane, hello: &Hello) -> Result<Stream> {
    match introduced(url, address, plane, plane.mode, hello).await {
        // Who does not speak TLS yet closes the connection without an answer to the first message of the handshake.
        Err(error) if plane.mode == Mode::Preferred && is_no_tls(&error) => {
            introduced(url, address, plane, Mode::Disabled, hello).await
        }
        introduced => introduced,
    }
}

/// Whether the other side does not know what TLS is. A certificate that is wrong is another matter: nobody falls back
/// to plain text because of one.
fn is_no_tls(error: &anyhow::Error) -> bool {
    let Some(error) = error.downcast_ref::<NoTls>() else { return false };
    matches!(error.0.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[derive(Debug, thiserror::Error)]
#[error("TLS: {0}")]
pub(crate) struct NoTls(#[source] pub io::Error);

async fn introduced(url: &str, address: SocketAddr, plane: &Plane, mode: Mode, hello: &Hello) -> Result<Stream> {
    let authority = authority(url)?;
    let stream = TcpStream::connect(address).await?;
    tune(&stream)?;
    let mut stream = match mode {
        Mode::Disabled => Stream::Plain(stream),
        Mode::Preferred | Mode::Required => {
            let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
            plane.secured(stream, host).await?.map_err(NoTls)?
        }
    };
    write_frame(&mut stream, &Frame::Hello(Box::new(hello.clone()))).await?;
    match read_frame(&mut stream).await? {
        Frame::Welcome { refusal: None } => Ok(stream),
        Frame::Welcome { refusal: Some(why) } => Err(RefusedByPeer(why).into()),
        _ => bail!("it did not answer the hello"),
    }
}

/// Keeps one connection to `to`, until nobody can queue anything for it any more.
pub(super) async fn keep(
    local: Arc<Local>,
    to: MemberId,
    purpose: Purpose,
    line: Arc<Line>,
    mut queued: mpsc::UnboundedReceiver<Queued>,
) {
    let hello = Hello { purpose, to, ..local.hello.clone() };
    let mut coming = local.comings.of(to);
    let mut pause = BACKOFF.0;
    let mut told = String::new();
    while !queued.is_closed() {
        let urls = local.urls_of(to);
        let connected = tokio::select! {
            connected = connect(&urls, &local.plane, &hello) => connected,
            // Its name may lead elsewhere by now.
            () = coming.next() => {
                pause = BACKOFF.0;
                continue;
            }
        };
        match connected {
            Ok(stream) => {
                tracing::debug!(%to, ?purpose, "connected");
                // Whoever saw the last connection may have queued for it after it had ended.
                discard(&line, &mut queued);
                (pause, told) = (BACKOFF.0, String::new());
                let ended = match stream {
                    Stream::Plain(stream) => {
                        let stream = Arc::new(stream);
                        line.stream.store(Some(Arc::new(Direct::Driver(stream.clone()))));
                        carry(Shared(stream), &line, &mut queued).await
                    }
                    Stream::Tls(stream) => {
                        line.stream.store(Some(Arc::new(Direct::Task)));
                        carry(stream, &line, &mut queued).await
                    }
                };
                line.stream.store(None);
                discard(&line, &mut queued);
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
                if let Some(RefusedByPeer(refused)) = error.downcast_ref::<RefusedByPeer>() {
                    if refused.halts {
                        return local
                            .inbox
                            .tell(DriverInput::Halt { why: format!("member {to} says: {}", refused.why) });
                    }
                    pause = REFUSED_PAUSE;
                }
            }
        }
        pause = tokio::select! {
            () = tokio::time::sleep(pause) => (pause * 2).min(BACKOFF.1),
            () = coming.next() => BACKOFF.0,
        };
    }
}

/// What waited for a connection that is gone is stale; what is left of a frame that left by half even more.
fn discard(line: &Line, queued: &mut mpsc::UnboundedReceiver<Queued>) {
    while let Ok(stale) = queued.try_recv() {
        line.queued_bytes.fetch_sub(stale.size_bytes(), Ordering::Release);
    }
}

/// Writes what is queued until the connection breaks; says why it did.
async fn carry(
    stream: impl AsyncRead + AsyncWrite,
    line: &Line,
    queued: &mut mpsc::UnboundedReceiver<Queued>,
) -> anyhow::Error {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut out = BytesMut::with_capacity(64 << 10);
    let mut nothing = [0; 1];
    loop {
        tokio::select! {
            biased;
            first = queued.recv() => {
                let Some(first) = first else { return anyhow::anyhow!("the member is stopping") };
                out.clear();
                let mut bytes = 0;
                let mut next = Some(first);
                while let Some(one) = next {
                    bytes += one.size_bytes();
                    match one {
                        Queued::Frame(frame) => frame.encode(&mut out),
                        Queued::Rest(rest) => out.extend_from_slice(&rest),
                    }
                    next = if out.len() < WRITE_BYTES { queued.try_recv().ok() } else { None };
                }
                let written = write_all(&mut writer, &out).await;
                // Only now: as long as anything counts as queued, nobody else writes to this stream.
                line.queued_bytes.fetch_sub(bytes, Ordering::Release);
                if let Err(error) = written {
                    return error.into();
                }
            }
            // The other side never speaks here, so this ends only with the connection.
            read = reader.read(&mut nothing) => match read {
                Ok(0) => return anyhow::anyhow!("closed by the peer"),
                Ok(_) => return anyhow::anyhow!("the peer spoke out of turn"),
                Err(error) => return error.into(),
            },
        }
    }
}

async fn write_all(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// Asks any of `urls` who the members are.
pub(crate) async fn ask_members(urls: &[String], plane: &Plane, hello: &Hello) -> Result<Frame> {
    let hello = Hello { purpose: Purpose::Members, ..hello.clone() };
    let mut stream = connect(urls, plane, &hello).await?;
    tokio::time::timeout(CONNECT_TIMEOUT, read_frame(&mut stream)).await.context("no answer")?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Role;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_address_that_takes_connections_and_never_answers_keeps_nobody_from_the_next() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let other = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addresses = [&silent, &other].map(|l| l.local_addr().expect("bound")).to_vec();
        tokio::spawn(async move {
            let (mut stream, _) = other.accept().await.expect("it is asked");
            let hello = read_frame(&mut stream).await.expect("a frame");
            assert!(matches!(hello, Frame::Hello(_)));
            write_frame(&mut stream, &Frame::Welcome { refusal: None }).await.expect("it listens");
        });
        let hello = Hello::of_nobody(Purpose::Members, 0);
        let told = connect_any("http://members:2380", addresses, &Plane::plain(Role::Peer), &hello).await;
        assert!(told.is_ok(), "{:?}", told.err());
    }
}

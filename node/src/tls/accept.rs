//! Connections as they come in: plain or TLS by their first bytes, within a time and a number of those who have not
//! said yet who they are.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use rustls::{CertificateError, OtherError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{Mode, Plane, Stream};

/// From the first byte to the last of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way on one port. Who comes then waits in the socket's own queue.
const HANDSHAKES_MAX: usize = 256;
/// Connections that are through, and wait to be served.
const READY_MAX: usize = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at a connection whose first bytes come one by one.
const TRICKLE_PAUSE: Duration = Duration::from_millis(10);
/// So many bytes tell TLS from everything else.
const TELLING_BYTES: usize = 3;

/// Content type handshake, and a version 3.x: no HTTP begins so, and no frame between members, whose first bytes are a
/// length, below 64 KiB for a hello.
fn is_tls(first: [u8; TELLING_BYTES]) -> bool {
    first[0] == 0x16 && first[1] == 0x03 && (1..=4).contains(&first[2])
}

/// Whether a ClientHello begins this connection. Nothing is taken from it.
async fn begins_with_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; TELLING_BYTES];
    loop {
        let seen = stream.peek(&mut first).await?;
        match seen {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            TELLING_BYTES => return Ok(is_tls(first)),
            _ if first[0] != 0x16 => return Ok(false),
            _ => tokio::time::sleep(TRICKLE_PAUSE).await,
        }
    }
}

impl Plane {
    /// Lets a connection in as the mode of its port asks, or says why not.
    pub(crate) async fn accepted(&self, stream: TcpStream, mode: Mode) -> Result<Stream> {
        let taken = async {
            let is_tls = begins_with_tls(&stream).await?;
            match (mode, is_tls) {
                (Mode::Disabled | Mode::Preferred, false) => Ok(Stream::Plain(stream)),
                (Mode::Required, false) => bail!("it speaks plain text, and this port TLS only"),
                (Mode::Disabled, true) => bail!("it speaks TLS, and this port plain text only"),
                (Mode::Preferred | Mode::Required, true) => {
                    let secured =
                        TlsAcceptor::from(self.loaded()?.server.clone()).accept(stream).await.map_err(plainly)?;
                    Ok(Stream::Tls(Box::new(secured.into())))
                }
            }
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, taken).await {
            Ok(taken) => taken,
            Err(_) => bail!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()),
        }
    }
}

/// What is wrong with a certificate's owner, in our words alone.
fn plainly(error: io::Error) -> anyhow::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(wrong)))) => {
            anyhow::anyhow!("{wrong}")
        }
        _ => error.into(),
    }
}

/// Whether a connection ended before it said anything: a look whether the port is open, worth no word.
pub(crate) fn is_silence(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected))
}

/// Whether those who come are served yet. Until then they wait here, except who speaks plain HTTP/1: so does a probe, which asks
/// how this member is.
#[derive(Clone, Debug)]
pub(crate) struct Door(watch::Receiver<bool>);

impl Door {
    /// Closed until its handle says `true`, or is gone.
    pub(crate) fn closed() -> (watch::Sender<bool>, Door) {
        let (handle, state) = watch::channel(false);
        (handle, Door(state))
    }

    pub(crate) fn open() -> Door {
        Door(watch::channel(true).1)
    }

    async fn wait(mut self, stream: &TcpStream) {
        let is_open = async {
            let _ = self.0.wait_for(|is_open| *is_open).await;
        };
        let is_probe = async {
            let mut first = [0; TELLING_BYTES];
            while let Ok(seen) = stream.peek(&mut first).await {
                match seen {
                    // It is gone, which others will notice.
                    0 => return,
                    // HTTP/2 begins with these, a TLS handshake with 0x16.
                    TELLING_BYTES if first[0] != 0x16 && first != *b"PRI" => return,
                    TELLING_BYTES => break,
                    _ => tokio::time::sleep(TRICKLE_PAUSE).await,
                }
            }
            std::future::pending().await
        };
        tokio::select! { () = is_open => {}, () = is_probe => {} }
    }
}

/// Connections ready to be served.
pub(crate) type Incoming = ReceiverStream<io::Result<Stream>>;

/// Accepts until nobody takes what was accepted any more.
pub(crate) fn incoming(
    socket: TcpListener,
    plane: Arc<Plane>,
    mode: Mode,
    tune: impl Fn(&TcpStream) -> io::Result<()> + Send + 'static,
    door: Door,
) -> Incoming {
    let (ready, taken) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                () = ready.closed() => return,
            };
            let (stream, address) =
                match accepted.and_then(|(stream, address)| tune(&stream).map(|()| (stream, address))) {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
            let (plane, ready, door) = (plane.clone(), ready.clone(), door.clone());
            let has_room = permits.available_permits() >= HANDSHAKES_MAX / 2;
            tokio::spawn(async move {
                // Those who wait must leave room for probes.
                if has_room {
                    door.wait(&stream).await;
                }
                let accepted = admit(&plane, stream, mode, address).await;
                // Whoever is through no longer counts as one who is not.
                drop(permit);
                if let Some(stream) = accepted {
                    let _ = ready.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(taken)
}

async fn admit(plane: &Plane, stream: TcpStream, mode: Mode, address: SocketAddr) -> Option<Stream> {
    match plane.accepted(stream, mode).await {
        Ok(stream) => Some(stream),
        Err(error) if is_silence(&error) => None,
        Err(error) => {
            plane.complain(address, &format!("{error:#}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let dialled = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        (dialled, listener.accept().await.expect("accepts").0)
    }

    #[tokio::test]
    async fn the_first_bytes_tell_tls_from_the_rest() {
        for (bytes, is_tls) in [
            (&[0x16, 3, 1, 2, 0, 1][..], true),
            (b"PRI * HTTP/2.0", false),
            (b"GET / HTTP/1.1", false),
            // The length of a hello of 278 bytes, and of one of 790.
            (&[0x16, 1, 0, 0], false),
            (&[0x16, 3, 0, 0], false),
        ] {
            let (mut dialled, accepted) = pair().await;
            dialled.set_nodelay(true).expect("a socket");
            // One byte at a time.
            let writing = tokio::spawn(async move {
                for byte in bytes {
                    dialled.write_all(&[*byte]).await.expect("writes");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                dialled
            });
            assert_eq!(begins_with_tls(&accepted).await.expect("bytes"), is_tls, "{bytes:?}");
            writing.await.expect("no panic");
        }
        let (dialled, accepted) = pair().await;
        drop(dialled);
        assert!(begins_with_tls(&accepted).await.is_err(), "nothing was said");
    }
    #[tokio::test]
    async fn before_the_door_opens_only_probes_come_in() {
        use futures::StreamExt;
        let (handle, door) = Door::closed();
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound");
        let plane = Arc::new(Plane::plain(super::super::Role::Client));
        let mut served = incoming(socket, plane, Mode::Disabled, |_| Ok(()), door);
        let said = async |bytes: &[u8]| {
            let mut dialled = TcpStream::connect(address).await.expect("connects");
            dialled.write_all(bytes).await.expect("writes");
            dialled
        };
        let client = said(b"PRI * HTTP/2.0\r\n").await;
        let silent = said(b"").await;
        let probe = said(b"GET /livez HTTP/1.1\r\n").await;
        let mut next = async || {
            let Some(Ok(Stream::Plain(stream))) = served.next().await else { panic!("a plain connection") };
            stream.peer_addr().expect("connected")
        };
        assert_eq!(next().await, probe.local_addr().expect("connected"));
        drop(silent);
        handle.send_replace(true);
        assert_eq!(next().await, client.local_addr().expect("connected"));
    }
}

//! Connections other members dial.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_raft::io::ReadMode;
use quorate_raft::types::MemberId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use super::frame::{Frame, Hello, Purpose};
use super::link::{read_frame, tune, write_frame};
use super::{Local, PeerInput, Refused, repairs, snapshots};
use crate::driver::DriverInput;
use crate::tls::{Stream, is_silence};

/// A stranger has this long to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections open at one time; members need a handful each.
const CONNECTIONS_MAX: usize = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What one connection may have waiting for the driver; beyond, it is read no further.
const WAITING_KIB_MAX: u32 = 64 << 10;
/// A question about the members is answered within this, or not at all.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(2);

/// Accepts for as long as the process lives.
pub(crate) async fn serve(listener: TcpListener, local: Arc<Local>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, address)) => {
                let local = local.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, address, &local).await {
                        tracing::debug!(%address, "peer connection ended: {error:#}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a peer connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, address: SocketAddr, local: &Arc<Local>) -> Result<()> {
    tune(&stream)?;
    let mut stream = match local.plane.accepted(stream, local.plane.mode).await {
        Ok(stream) => stream,
        Err(error) => {
            if !is_silence(&error) {
                local.plane.complain(address, &format!("{error:#}"));
            }
            return Err(error);
        }
    };
    let first = tokio::time::timeout(HELLO_TIMEOUT, read_frame(&mut stream)).await.context("no hello")??;
    let Frame::Hello(hello) = first else { bail!("the first frame is not a hello") };
    let checked = {
        let (local, hello) = (local.clone(), hello.clone());
        // Noting an identity flushes a file.
        tokio::task::spawn_blocking(move || check(&local, &hello)).await?
    };
    if let Err(refused) = checked {
        let why = refused.why.clone();
        tracing::warn!(member = %hello.member, halts = refused.halts, "refused a peer: {why}");
        write_frame(&mut stream, &Frame::Welcome { refusal: Some(refused) }).await?;
        bail!(why);
    }
    write_frame(&mut stream, &Frame::Welcome { refusal: None }).await?;
    local.learn_urls_if_unknown(hello.member, &hello.peer_urls);
    if matches!(hello.purpose, Purpose::Control | Purpose::Bulk) {
        local.comings.note(hello.member, hello.boot_nonce);
    }
    match hello.purpose {
        Purpose::Members => members(&mut stream, local).await,
        Purpose::Repair => repairs::answer(&mut stream, local).await,
        Purpose::Snapshot => snapshots::receive(&mut stream, &local.snapshots, &local.inbox, hello.member).await,
        Purpose::Control => {
            let _known = local.versions.connected(hello.member, hello.version);
            messages(&mut stream, local, hello.member).await
        }
        Purpose::Bulk => {
            let ended = messages(&mut stream, local, hello.member).await;
            local.inbox.tell(DriverInput::PeerGone { peer: hello.member });
            ended
        }
    }
}

/// Identity: same cluster, same incarnation, not an old or second copy of a data directory.
fn check(local: &Local, hello: &Hello) -> Result<(), Refused> {
    let own = &local.hello;
    if hello.purpose == Purpose::Members {
        // Who has no identity yet shows the token; later the cluster id stands for it.
        let is_same = hello.token_hash == own.token_hash;
        return if is_same {
            Ok(())
        } else {
            Err("another --initial-cluster-token: this is another cluster".to_owned().into())
        };
    }
    if hello.cluster_id != own.cluster_id {
        return Err(format!("cluster {:x} is not {:x}", hello.cluster_id, own.cluster_id).into());
    }
    if hello.incarnation != own.incarnation {
        return Err(format!("incarnation {} is not {}", hello.incarnation, own.incarnation).into());
    }
    if hello.purpose == Purpose::Repair {
        // It reads only, and has no generation yet: its own log cannot be opened.
        return Ok(());
    }
    if hello.member == own.member {
        let why = format!("member id {} is this very member: two processes run with one identity", hello.member);
        // An address of another member that leads here is no second process.
        let halts = hello.boot_nonce != own.boot_nonce;
        if halts {
            local.inbox.tell(DriverInput::Halt { why: why.clone() });
        }
        return Err(Refused { why, halts });
    }
    if hello.to.0 != 0 && hello.to != own.member {
        let why = format!("this is member {}, not {}: its address is another one now", own.member, hello.to);
        return Err(why.into());
    }
    local.identities.admit(hello)
}

/// Answers only what a majority confirms: an old configuration could give a joiner an id that is gone.
async fn members(stream: &mut Stream, local: &Local) -> Result<()> {
    let (sender, view) = oneshot::channel();
    local.inbox.send(DriverInput::Read { mode: ReadMode::Index, sender })?;
    tokio::time::timeout(MEMBERS_TIMEOUT, view).await.context("no leader confirms the configuration")???;
    let (at, config) = local.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (cluster_id, incarnation) = (local.hello.cluster_id, local.hello.incarnation);
    let started = local.identities.started();
    let answer = Frame::Members { cluster_id, incarnation, at, config: (*config).clone(), started };
    write_frame(stream, &answer).await
}

async fn messages(stream: &mut Stream, local: &Local, from: MemberId) -> Result<()> {
    let mut stream = tokio::io::BufReader::with_capacity(64 << 10, stream);
    let room = Arc::new(Semaphore::new(WAITING_KIB_MAX as usize));
    loop {
        let frame = read_frame(&mut stream).await?;
        if local.identities.is_halted(from) {
            bail!("two data directories speak for member {from}");
        }
        let kib = u32::try_from(frame.size_bytes() / 1024 + 1).unwrap_or(u32::MAX).min(WAITING_KIB_MAX);
        let room = room.clone().acquire_many_owned(kib).await?;
        let input = match frame {
            Frame::Msgs(msgs) => PeerInput::Msgs(msgs),
            Frame::Forward { number, term, payload } => PeerInput::Forward { number, term, payload },
            Frame::Room { is_low } => PeerInput::Room { is_low },
            Frame::ForwardRefused { number, term, is_full } => PeerInput::ForwardRefused { number, term, is_full },
            Frame::Change { number, expect, change } => PeerInput::Change { number, expect, change },
            Frame::ChangeAnswer { number, answer } => PeerInput::ChangeAnswer { number, answer },
            other => bail!("unexpected frame {other:?}"),
        };
        local.inbox.send(DriverInput::Peer { from, input, room })?;
    }
}

impl Local {
    /// A hello's address serves until a configuration names one.
    fn learn_urls_if_unknown(&self, id: MemberId, urls: &[String]) {
        if id.0 != 0 && self.urls_of(id).is_empty() {
            self.learn_urls(id, urls);
        }
    }
}

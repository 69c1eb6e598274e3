//! Frames: length, checksum, kind, body. Little-endian. A peer's bytes are checked before anything is allocated.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_log::{Boot, LINEAGE_MAX, Lineage};
use quorate_raft::codec;
use quorate_raft::frame as envelope;
use quorate_raft::io::{Change, Refusal};
use quorate_raft::types::{Config, ConfigAt, Entry, Index, MemberId, MemberInfo, Payload, SnapMeta, Term};
use quorate_raft::wire::Msg;
use quorate_state::{ClusterVersion, RunEnd};

use super::{ChangeAnswer, Refused};
use crate::snapshot::{RUNS_MAX, RunFile, RunKind};

/// Largest frame. Above the largest append, which one entry of the largest size may exceed its byte budget by.
pub const FRAME_BYTES_MAX: usize = 48 << 20;
/// Length and checksum.
pub const FRAME_HEADER_BYTES: usize = envelope::HEADER_BYTES;
/// Of the protocol between members; another version is refused.
const PROTOCOL: u16 = 3;
const MAGIC: u32 = u32::from_le_bytes(*b"QPER");
/// Longest text in a frame: names, URLs, reasons.
const TEXT_BYTES_MAX: usize = 4096;
const TEXTS_MAX: usize = 64;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Control,
    Bulk,
    Snapshot,
    /// Asks who the members are; identities are not checked, because the one who asks has none yet.
    Members,
    /// Asks for entries that the asking member's disk has lost.
    Repair,
}

/// The first frame of each connection, by the one who dials.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    pub purpose: Purpose,
    pub cluster_id: u64,
    pub incarnation: u64,
    pub member: MemberId,
    pub generation: u64,
    pub boot_nonce: u64,
    /// The starts of its data directory before this one.
    pub before: Lineage,
    /// Whom the sender means to reach; 0 when it does not know.
    pub to: MemberId,
    /// A hash of `--initial-cluster-token`.
    pub token_hash: u64,
    /// What the sender's program understands.
    pub version: ClusterVersion,
    pub peer_urls: Vec<String>,
}

impl Hello {
    /// Of a process that is not running as a member: it knows no cluster, and whom it reaches does not matter.
    pub(crate) fn of_nobody(purpose: Purpose, token_hash: u64) -> Hello {
        Hello {
            purpose,
            cluster_id: 0,
            incarnation: 0,
            member: MemberId(0),
            generation: 0,
            boot_nonce: 0,
            before: Lineage::default(),
            to: MemberId(0),
            token_hash,
            version: ClusterVersion::SPOKEN,
            peer_urls: Vec::new(),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    Hello(Box<Hello>),
    /// `None`: welcome. Otherwise why not.
    Welcome {
        refusal: Option<Refused>,
    },
    Msgs(Vec<Msg>),
    Forward {
        number: u64,
        term: Term,
        payload: Bytes,
    },
    /// `is_full`: not for want of leadership but of room.
    ForwardRefused {
        number: u64,
        term: Term,
        is_full: bool,
    },
    /// Whether the sender's volume is nearly full.
    Room {
        is_low: bool,
    },
    EntriesAsked {
        first: Index,
        last: Index,
    },
    /// What the member holds from the first one asked for, without gaps; none when it does not hold that one.
    Entries(Vec<Entry>),
    Change {
        number: u64,
        expect: Option<ConfigAt>,
        change: Change,
    },
    ChangeAnswer {
        number: u64,
        answer: ChangeAnswer,
    },
    SnapshotBegin {
        term: Term,
        meta: SnapMeta,
        runs: Vec<RunFile>,
    },
    /// By the receiver: it has this many whole, verified chunks, counted over all runs. Send from there on.
    SnapshotFrom {
        chunk: u64,
    },
    SnapshotChunk {
        number: u64,
        chunk: Bytes,
    },
    SnapshotEnd,
    /// The receiver has verified and staged the snapshot.
    SnapshotTaken,
    /// `started`: members that have run with a data directory before.
    Members {
        cluster_id: u64,
        incarnation: u64,
        at: ConfigAt,
        config: Config,
        started: Vec<MemberId>,
    },
}

/// Why bytes of a peer were not a frame. The connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame is too short")]
    Short,
    #[error("frame kind {0} is not known")]
    Kind(u8),
    #[error("not a Quorate peer")]
    Stranger,
    #[error("a peer of protocol version {found}, this program speaks {PROTOCOL}: run one release on all members")]
    Protocol { found: u16 },
    #[error("a snapshot of {count} runs is above the limit of {RUNS_MAX}")]
    Runs { count: usize },
    #[error("a text is too long or not UTF-8")]
    Text,
    #[error("{0}")]
    Wire(#[from] codec::WireError),
}

impl Frame {
    /// For budgets: roughly what it takes in memory and on the wire.
    pub fn size_bytes(&self) -> usize {
        const SMALL: usize = 64;
        match self {
            Frame::Msgs(msgs) => msgs.iter().map(msg_bytes).sum(),
            Frame::Entries(entries) => SMALL + entries.iter().map(Entry::size_bytes).sum::<usize>(),
            Frame::Forward { payload, .. } => SMALL + payload.len(),
            Frame::SnapshotChunk { chunk, .. } => SMALL + chunk.len(),
            _ => SMALL,
        }
    }

    /// Appends the whole frame, header included.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = envelope::begin(out);
        self.encode_body(out);
        envelope::seal(out, start);
    }

    fn encode_body(&self, out: &mut BytesMut) {
        match self {
            Frame::Hello(hello) => {
                out.put_u8(1);
                out.put_u32_le(MAGIC);
                out.put_u16_le(PROTOCOL);
                out.put_u8(match hello.purpose {
                    Purpose::Control => 0,
                    Purpose::Bulk => 1,
                    Purpose::Snapshot => 2,
                    Purpose::Members => 3,
                    Purpose::Repair => 4,
                });
                let words = [
                    hello.cluster_id,
                    hello.incarnation,
                    hello.member.0,
                    hello.generation,
                    hello.boot_nonce,
                    hello.to.0,
                    hello.token_hash,
                ];
                words.iter().for_each(|word| out.put_u64_le(*word));
                out.put_u16_le(hello.version.major);
                out.put_u16_le(hello.version.minor);
                put_texts(&hello.peer_urls, out);
                put_lineage(&hello.before, out);
            }
            Frame::Welcome { refusal } => {
                out.put_u8(2);
                out.put_u8(match refusal {
                    None => 0,
                    Some(refused) => 1 + u8::from(refused.halts),
                });
                put_text(refusal.as_ref().map_or("", |refused| refused.why.as_str()), out);
            }
            Frame::Msgs(msgs) => {
                out.put_u8(3);
                msgs.iter().for_each(|msg| codec::encode(msg, out));
            }
            Frame::Forward { number, term, payload } => {
                out.put_u8(4);
                out.put_u64_le(*number);
                out.put_u64_le(*term);
                out.put_slice(payload);
            }
            Frame::ForwardRefused { number, term, is_full } => {
                out.put_u8(5);
                out.put_u64_le(*number);
                out.put_u64_le(*term);
                out.put_u8(u8::from(*is_full));
            }
            Frame::Change { number, expect, change } => {
                out.put_u8(6);
                out.put_u64_le(*number);
                put_at(expect.as_ref(), out);
                put_change(change, out);
            }
            Frame::ChangeAnswer { number, answer } => {
                out.put_u8(7);
                out.put_u64_le(*number);
                put_answer(answer, out);
            }
            Frame::SnapshotBegin { term, meta, runs } => {
                out.put_u8(8);
                out.put_u64_le(*term);
                codec::encode_snap_meta(meta, out);
                put_runs(runs, out);
            }
            Frame::SnapshotFrom { chunk } => {
                out.put_u8(13);
                out.put_u64_le(*chunk);
            }
            Frame::SnapshotChunk { number, chunk } => {
                out.put_u8(9);
                out.put_u64_le(*number);
                out.put_slice(chunk);
            }
            Frame::SnapshotEnd => out.put_u8(10),
            Frame::SnapshotTaken => out.put_u8(11),
            Frame::Members { cluster_id, incarnation, at, config, started } => {
                out.put_u8(12);
                out.put_u64_le(*cluster_id);
                out.put_u64_le(*incarnation);
                codec::encode_config_at(at, out);
                codec::encode_config(config, out);
                put_ids(started, out);
            }
            Frame::Room { is_low } => {
                out.put_u8(16);
                out.put_u8(u8::from(*is_low));
            }
            Frame::EntriesAsked { first, last } => {
                out.put_u8(14);
                out.put_u64_le(*first);
                out.put_u64_le(*last);
            }
            Frame::Entries(entries) => {
                out.put_u8(15);
                entries.iter().for_each(|entry| codec::encode_entry(entry, out));
            }
        }
    }

    /// Decodes the body of a frame whose checksum was right.
    pub fn decode(mut body: Bytes) -> Result<Frame, FrameError> {
        let frame = match u8_of(&mut body)? {
            1 => Frame::Hello(Box::new(hello(&mut body)?)),
            2 => {
                let kind = u8_of(&mut body)?;
                let why = text(&mut body)?;
                match kind {
                    0 => Frame::Welcome { refusal: None },
                    1 | 2 => Frame::Welcome { refusal: Some(Refused { why, halts: kind == 2 }) },
                    other => return Err(FrameError::Kind(other)),
                }
            }
            3 => {
                let mut msgs = Vec::new();
                while body.has_remaining() {
                    msgs.push(codec::decode(&mut body)?);
                }
                Frame::Msgs(msgs)
            }
            4 => {
                let (number, term) = (u64_of(&mut body)?, u64_of(&mut body)?);
                Frame::Forward { number, term, payload: std::mem::take(&mut body) }
            }
            5 => Frame::ForwardRefused {
                number: u64_of(&mut body)?,
                term: u64_of(&mut body)?,
                is_full: u8_of(&mut body)? != 0,
            },
            6 => Frame::Change { number: u64_of(&mut body)?, expect: at(&mut body)?, change: change(&mut body)? },
            7 => Frame::ChangeAnswer { number: u64_of(&mut body)?, answer: answer(&mut body)? },
            8 => Frame::SnapshotBegin {
                term: u64_of(&mut body)?,
                meta: codec::decode_snap_meta(&mut body)?,
                runs: runs(&mut body)?,
            },
            9 => Frame::SnapshotChunk { number: u64_of(&mut body)?, chunk: std::mem::take(&mut body) },
            10 => Frame::SnapshotEnd,
            11 => Frame::SnapshotTaken,
            12 => Frame::Members {
                cluster_id: u64_of(&mut body)?,
                incarnation: u64_of(&mut body)?,
                at: codec::decode_config_at(&mut body)?,
                config: codec::decode_config(&mut body)?,
                started: ids(&mut body)?,
            },
            16 => Frame::Room { is_low: u8_of(&mut body)? != 0 },
            14 => Frame::EntriesAsked { first: u64_of(&mut body)?, last: u64_of(&mut body)? },
            15 => {
                let mut entries = Vec::new();
                while body.has_remaining() {
                    entries.push(codec::decode_entry(&mut body)?);
                }
                Frame::Entries(entries)
            }
            13 => Frame::SnapshotFrom { chunk: u64_of(&mut body)? },
            kind => return Err(FrameError::Kind(kind)),
        };
        if body.has_remaining() { Err(FrameError::Short) } else { Ok(frame) }
    }
}

fn msg_bytes(msg: &Msg) -> usize {
    const SMALL: usize = 64;
    match msg {
        Msg::Append { entries, .. } => {
            SMALL + entries.iter().map(quorate_raft::types::Entry::size_bytes).sum::<usize>()
        }
        _ => SMALL,
    }
}

fn u8_of(body: &mut Bytes) -> Result<u8, FrameError> {
    body.try_get_u8().map_err(|_| FrameError::Short)
}
fn u16_of(body: &mut Bytes) -> Result<u16, FrameError> {
    body.try_get_u16_le().map_err(|_| FrameError::Short)
}
fn u64_of(body: &mut Bytes) -> Result<u64, FrameError> {
    body.try_get_u64_le().map_err(|_| FrameError::Short)
}

fn put_text(text: &str, out: &mut BytesMut) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16_le(u16::try_from(end).expect("texts are short"));
    out.put_slice(&text.as_bytes()[..end]);
}

fn text(body: &mut Bytes) -> Result<String, FrameError> {
    let len = usize::from(body.try_get_u16_le().map_err(|_| FrameError::Short)?);
    if len > TEXT_BYTES_MAX {
        return Err(FrameError::Text);
    }
    if len > body.len() {
        return Err(FrameError::Short);
    }
    String::from_utf8(body.split_to(len).to_vec()).map_err(|_| FrameError::Text)
}

fn put_texts(texts: &[String], out: &mut BytesMut) {
    out.put_u8(u8::try_from(texts.len().min(TEXTS_MAX)).expect("few texts"));
    texts.iter().take(TEXTS_MAX).for_each(|t| put_text(t, out));
}

fn texts(body: &mut Bytes) -> Result<Vec<String>, FrameError> {
    let count = usize::from(u8_of(body)?);
    if count > TEXTS_MAX {
        return Err(FrameError::Text);
    }
    (0..count).map(|_| text(body)).collect()
}

fn hello(body: &mut Bytes) -> Result<Hello, FrameError> {
    let magic = body.try_get_u32_le().map_err(|_| FrameError::Short)?;
    let protocol = body.try_get_u16_le().map_err(|_| FrameError::Short)?;
    if magic != MAGIC {
        return Err(FrameError::Stranger);
    }
    if protocol != PROTOCOL {
        return Err(FrameError::Protocol { found: protocol });
    }
    let purpose = match u8_of(body)? {
        0 => Purpose::Control,
        1 => Purpose::Bulk,
        2 => Purpose::Snapshot,
        3 => Purpose::Members,
        4 => Purpose::Repair,
        other => return Err(FrameError::Kind(other)),
    };
    Ok(Hello {
        purpose,
        cluster_id: u64_of(body)?,
        incarnation: u64_of(body)?,
        member: MemberId(u64_of(body)?),
        generation: u64_of(body)?,
        boot_nonce: u64_of(body)?,
        to: MemberId(u64_of(body)?),
        token_hash: u64_of(body)?,
        version: ClusterVersion::new(u16_of(body)?, u16_of(body)?),
        peer_urls: texts(body)?,
        before: lineage(body)?,
    })
}

fn put_lineage(before: &Lineage, out: &mut BytesMut) {
    out.put_u8(u8::try_from(before.boots().count()).expect("few starts are remembered"));
    for Boot { generation, nonce } in before.boots() {
        out.put_u64_le(generation);
        out.put_u64_le(nonce);
    }
}

fn lineage(body: &mut Bytes) -> Result<Lineage, FrameError> {
    let boots = (0..u8_of(body)?).map(|_| Ok(Boot { generation: u64_of(body)?, nonce: u64_of(body)? }));
    let boots = boots.collect::<Result<Vec<Boot>, FrameError>>()?;
    if boots.len() > LINEAGE_MAX || boots.iter().any(|boot| boot.generation == 0) {
        return Err(FrameError::Short);
    }
    Ok(Lineage::of(boots))
}

fn put_ids(ids: &[MemberId], out: &mut BytesMut) {
    out.put_u32_le(u32::try_from(ids.len()).expect("few members"));
    ids.iter().for_each(|id| out.put_u64_le(id.0));
}

fn ids(body: &mut Bytes) -> Result<Vec<MemberId>, FrameError> {
    let count = body.try_get_u32_le().map_err(|_| FrameError::Short)?;
    if body.len() / 8 < usize::try_from(count).unwrap_or(usize::MAX) {
        return Err(FrameError::Short);
    }
    (0..count).map(|_| Ok(MemberId(u64_of(body)?))).collect()
}

fn put_runs(runs: &[RunFile], out: &mut BytesMut) {
    out.put_u8(u8::try_from(runs.len()).expect("few runs"));
    for RunFile { kind, end, chunks, bytes } in runs {
        out.put_u8(u8::from(*kind == RunKind::Changes));
        out.put_u64_le(end.index);
        out.put_u32_le(end.crc);
        out.put_u32_le(*chunks);
        out.put_u64_le(*bytes);
    }
}

fn runs(body: &mut Bytes) -> Result<Vec<RunFile>, FrameError> {
    let count = usize::from(u8_of(body)?);
    if count > RUNS_MAX {
        return Err(FrameError::Runs { count });
    }
    let u32_of = |body: &mut Bytes| body.try_get_u32_le().map_err(|_| FrameError::Short);
    let run = |body: &mut Bytes| {
        let kind = match u8_of(body)? {
            0 => RunKind::Whole,
            1 => RunKind::Changes,
            other => return Err(FrameError::Kind(other)),
        };
        let end = RunEnd { index: u64_of(body)?, crc: u32_of(body)? };
        Ok(RunFile { kind, end, chunks: u32_of(body)?, bytes: u64_of(body)? })
    };
    (0..count).map(|_| run(body)).collect()
}

fn put_at(at: Option<&ConfigAt>, out: &mut BytesMut) {
    out.put_u8(u8::from(at.is_some()));
    if let Some(at) = at {
        codec::encode_config_at(at, out);
    }
}

fn at(body: &mut Bytes) -> Result<Option<ConfigAt>, FrameError> {
    match u8_of(body)? {
        0 => Ok(None),
        _ => Ok(Some(codec::decode_config_at(body)?)),
    }
}

fn put_info(info: &MemberInfo, out: &mut BytesMut) {
    put_text(&info.name, out);
    put_texts(&info.peer_urls, out);
    put_texts(&info.client_urls, out);
}

fn info(body: &mut Bytes) -> Result<MemberInfo, FrameError> {
    Ok(MemberInfo { name: text(body)?, peer_urls: texts(body)?, client_urls: texts(body)? })
}

fn put_change(change: &Change, out: &mut BytesMut) {
    let mut head = |kind: u8, id: &MemberId| {
        out.put_u8(kind);
        out.put_u64_le(id.0);
    };
    match change {
        Change::AddLearner { id, info } => {
            head(1, id);
            put_info(info, out);
        }
        Change::Promote { id, lag_max } => {
            head(2, id);
            out.put_u64_le(*lag_max);
        }
        Change::Demote { id } => head(3, id),
        Change::Remove { id } => head(4, id),
        Change::Swap { new, old, lag_max } => {
            head(5, new);
            out.put_u64_le(old.0);
            out.put_u64_le(*lag_max);
        }
        Change::UpdateInfo { id, info } => {
            head(6, id);
            put_info(info, out);
        }
    }
}

fn change(body: &mut Bytes) -> Result<Change, FrameError> {
    let kind = u8_of(body)?;
    let id = MemberId(u64_of(body)?);
    Ok(match kind {
        1 => Change::AddLearner { id, info: info(body)? },
        2 => Change::Promote { id, lag_max: u64_of(body)? },
        3 => Change::Demote { id },
        4 => Change::Remove { id },
        5 => Change::Swap { new: id, old: MemberId(u64_of(body)?), lag_max: u64_of(body)? },
        6 => Change::UpdateInfo { id, info: info(body)? },
        other => return Err(FrameError::Kind(other)),
    })
}

/// The refusals a caller of a forwarded change branches on travel whole; the rest is told as "not leader", which makes
/// the caller look again.
fn put_answer(answer: &ChangeAnswer, out: &mut BytesMut) {
    match answer {
        ChangeAnswer::Done(at) => {
            out.put_u8(0);
            codec::encode_config_at(at, out);
        }
        ChangeAnswer::Unknown => out.put_u8(1),
        ChangeAnswer::Refused(refusal) => match refusal {
            Refusal::ConfigMismatch { expected, current } => {
                out.put_u8(2);
                codec::encode_config_at(expected, out);
                codec::encode_config_at(current, out);
            }
            Refusal::ChangeInFlight => out.put_u8(3),
            Refusal::NotReady => out.put_u8(4),
            Refusal::UnknownMember { id } => put_member(5, *id, out),
            Refusal::AlreadyMember { id } => put_member(6, *id, out),
            Refusal::NotLearner { id } => put_member(7, *id, out),
            Refusal::NotVoter { id } => put_member(8, *id, out),
            Refusal::MemberSilent { id } => put_member(9, *id, out),
            Refusal::LearnerBehind { id, behind, lag_max } => {
                put_member(10, *id, out);
                out.put_u64_le(*behind);
                out.put_u64_le(*lag_max);
            }
            Refusal::QuorumAtRisk { live_after, quorum_after } => {
                out.put_u8(11);
                out.put_u64_le(*live_after as u64);
                out.put_u64_le(*quorum_after as u64);
            }
            Refusal::Stopped => out.put_u8(12),
            _ => out.put_u8(13),
        },
    }
}

fn put_member(kind: u8, id: MemberId, out: &mut BytesMut) {
    out.put_u8(kind);
    out.put_u64_le(id.0);
}

fn answer(body: &mut Bytes) -> Result<ChangeAnswer, FrameError> {
    let kind = u8_of(body)?;
    let member = |body: &mut Bytes| Ok::<_, FrameError>(MemberId(u64_of(body)?));
    let count = |body: &mut Bytes| Ok::<_, FrameError>(usize::try_from(u64_of(body)?).unwrap_or(usize::MAX));
    let refusal = match kind {
        0 => return Ok(ChangeAnswer::Done(codec::decode_config_at(body)?)),
        1 => return Ok(ChangeAnswer::Unknown),
        2 => Refusal::ConfigMismatch {
            expected: codec::decode_config_at(body)?,
            current: codec::decode_config_at(body)?,
        },
        3 => Refusal::ChangeInFlight,
        4 => Refusal::NotReady,
        5 => Refusal::UnknownMember { id: member(body)? },
        6 => Refusal::AlreadyMember { id: member(body)? },
        7 => Refusal::NotLearner { id: member(body)? },
        8 => Refusal::NotVoter { id: member(body)? },
        9 => Refusal::MemberSilent { id: member(body)? },
        10 => Refusal::LearnerBehind { id: member(body)?, behind: u64_of(body)?, lag_max: u64_of(body)? },
        11 => Refusal::QuorumAtRisk { live_after: count(body)?, quorum_after: count(body)? },
        12 => Refusal::Stopped,
        13 => Refusal::NotLeader { leader: None },
        other => return Err(FrameError::Kind(other)),
    };
    Ok(ChangeAnswer::Refused(refusal))
}

/// A frame of every kind, for tests and as what a fuzzer begins with.
pub(crate) fn samples() -> Vec<Frame> {
    let info = MemberInfo { name: "a".into(), peer_urls: vec!["http://a:1".into()], client_urls: vec![] };
    let at = ConfigAt { incarnation: 1, term: 2, index: 3 };
    vec![
        Frame::Hello(Box::new(Hello {
            purpose: Purpose::Bulk,
            cluster_id: 1,
            incarnation: 2,
            member: MemberId(3),
            generation: 4,
            boot_nonce: 5,
            before: Lineage::of([Boot { generation: 3, nonce: 9 }]),
            to: MemberId(7),
            token_hash: 6,
            version: ClusterVersion::new(2, 3),
            peer_urls: vec!["http://x:1".into()],
        })),
        Frame::Welcome { refusal: None },
        Frame::Welcome { refusal: Some("another cluster".to_owned().into()) },
        Frame::Welcome { refusal: Some(Refused { why: "a twin".to_owned(), halts: true }) },
        Frame::Room { is_low: true },
        Frame::EntriesAsked { first: 3, last: 9 },
        Frame::Entries(vec![Entry { term: 2, index: 3, payload: Payload::Noop }]),
        Frame::Msgs(vec![Msg::TimeoutNow { term: 4 }, Msg::AppendReply { term: 1, matched: 2 }]),
        Frame::Forward { number: 7, term: 8, payload: Bytes::from_static(b"xyz") },
        Frame::ForwardRefused { number: 9, term: 3, is_full: true },
        Frame::Change { number: 1, expect: Some(at), change: Change::AddLearner { id: MemberId(9), info } },
        Frame::Change {
            number: 1,
            expect: None,
            change: Change::Swap { new: MemberId(1), old: MemberId(2), lag_max: 3 },
        },
        Frame::ChangeAnswer { number: 2, answer: ChangeAnswer::Done(at) },
        Frame::ChangeAnswer {
            number: 2,
            answer: ChangeAnswer::Refused(Refusal::ConfigMismatch { expected: at, current: at }),
        },
        Frame::SnapshotBegin {
            term: 3,
            meta: SnapMeta::default(),
            runs: vec![RunFile { kind: RunKind::Changes, end: RunEnd { index: 1, crc: 2 }, chunks: 3, bytes: 4 }],
        },
        Frame::SnapshotFrom { chunk: 9 },
        Frame::SnapshotChunk { number: 7, chunk: Bytes::from_static(b"chunk") },
        Frame::SnapshotEnd,
        Frame::SnapshotTaken,
        Frame::Members { cluster_id: 1, incarnation: 1, at, config: Config::default(), started: vec![MemberId(3)] },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_survives_its_bytes() {
        for frame in samples() {
            let mut out = BytesMut::new();
            frame.encode(&mut out);
            let body = out.freeze().slice(FRAME_HEADER_BYTES..);
            assert_eq!(Frame::decode(body).expect("decodes"), frame);
        }
    }

    #[test]
    fn another_protocol_version_is_refused_by_its_number() {
        let mut out = BytesMut::new();
        samples()[0].encode(&mut out);
        let mut body = out.split_off(FRAME_HEADER_BYTES);
        // Behind kind and magic.
        body[5..7].copy_from_slice(&1u16.to_le_bytes());
        let why = Frame::decode(body.freeze()).expect_err("another release").to_string();
        assert!(why.contains("version 1") && why.contains("speaks 3"), "{why}");
    }

    #[test]
    fn cut_and_garbled_frames_are_errors_not_panics() {
        for frame in samples() {
            let mut out = BytesMut::new();
            frame.encode(&mut out);
            let body = out.freeze().slice(FRAME_HEADER_BYTES..);
            for end in 0..body.len() {
                let _ = Frame::decode(body.slice(..end));
            }
            for at in 0..body.len() {
                let mut bad = body.to_vec();
                bad[at] ^= 0xff;
                let _ = Frame::decode(bad.into());
            }
        }
    }
}

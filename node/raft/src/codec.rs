//! Bytes of messages, entries and configurations.
//!
//! Little-endian, fixed width, no alignment. Encodings are canonical: equal values give equal bytes, and a decoder
//! accepts nothing else (sets ascend strictly, flags are 0 or 1). Decoders trust nothing: every length and count is
//! checked against a limit and against the bytes left before anything is allocated. Payloads are slices of the input
//! buffer, not copies. Checksums and framing belong to the log and the transport.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::{Config, ConfigAt, Entry, HardState, MemberId, MemberInfo, Payload, SnapMeta};
use crate::wire::Msg;

/// Largest command in one entry, in bytes. Well above etcd's default request limit of 1.5 MiB.
pub const ENTRY_DATA_BYTES_MAX: usize = 16 << 20;
/// Most entries in one append. The sender stays below through its own byte budget.
pub const APPEND_ENTRIES_MAX: usize = 65_536;
/// Most members (voters and learners) of one configuration.
pub const CONFIG_MEMBERS_MAX: usize = 128;
/// Most removed ids a configuration remembers: one replacement a day for a century.
pub const CONFIG_REMOVED_MAX: usize = 40_000;
/// Longest member name, in bytes (a DNS name has at most 253).
pub const MEMBER_NAME_BYTES_MAX: usize = 256;
/// Most URLs of one kind of a member.
pub const MEMBER_URLS_MAX: usize = 16;
/// Longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 2_048;

/// A member with log and state. Whether it votes or learns is told by the sets of the configuration; other kinds, such as
/// one that votes and holds no state, get other numbers.
const MEMBER_FULL: u8 = 0;
/// term, index, kind.
const ENTRY_HEADER_BYTES: usize = 8 + 8 + 1;

/// Why bytes were not a value. The connection or the record they came from is not to be trusted further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    #[error("{field}: {wanted} bytes needed, {left} left")]
    Short { field: &'static str, wanted: usize, left: usize },
    #[error("{field}: {got} is above the limit of {limit}")]
    TooLarge { field: &'static str, got: usize, limit: usize },
    #[error("{field}: unknown tag {got}")]
    Tag { field: &'static str, got: u8 },
    #[error("{field}: not valid UTF-8")]
    Utf8 { field: &'static str },
    #[error("configuration: member {id} is of kind {kind}, which this program does not know; upgrade it")]
    MemberKind { id: MemberId, kind: u8 },
    #[error("configuration: {rule}")]
    Config { rule: &'static str },
}

type Result<T> = std::result::Result<T, WireError>;

// ---- primitives ------------------------------------------------------------------------------------------------

fn need(buf: &Bytes, wanted: usize, field: &'static str) -> Result<()> {
    let left = buf.remaining();
    if left < wanted { Err(WireError::Short { field, wanted, left }) } else { Ok(()) }
}

fn get_u8(buf: &mut Bytes, field: &'static str) -> Result<u8> {
    need(buf, 1, field)?;
    Ok(buf.get_u8())
}

fn get_u64(buf: &mut Bytes, field: &'static str) -> Result<u64> {
    need(buf, 8, field)?;
    Ok(buf.get_u64_le())
}

fn get_bool(buf: &mut Bytes, field: &'static str) -> Result<bool> {
    match get_u8(buf, field)? {
        0 => Ok(false),
        1 => Ok(true),
        got => Err(WireError::Tag { field, got }),
    }
}

/// A count of items that take at least `item_bytes` each, so a lie cannot make the caller allocate more than it holds.
fn get_count(buf: &mut Bytes, limit: usize, item_bytes: usize, field: &'static str) -> Result<usize> {
    need(buf, 4, field)?;
    let got = buf.get_u32_le() as usize;
    if got > limit {
        return Err(WireError::TooLarge { field, got, limit });
    }
    need(buf, got.saturating_mul(item_bytes), field)?;
    Ok(got)
}

fn put_count(buf: &mut BytesMut, count: usize) {
    buf.put_u32_le(u32::try_from(count).expect("counts are bounded by the limits of this module"));
}

fn get_string(buf: &mut Bytes, limit: usize, field: &'static str) -> Result<String> {
    let len = get_count(buf, limit, 1, field)?;
    String::from_utf8(buf.split_to(len).to_vec()).map_err(|_| WireError::Utf8 { field })
}

fn put_string(buf: &mut BytesMut, text: &str) {
    put_count(buf, text.len());
    buf.put_slice(text.as_bytes());
}

fn get_member(buf: &mut Bytes, field: &'static str) -> Result<MemberId> {
    match get_u64(buf, field)? {
        0 => Err(WireError::Config { rule: "member id 0 means nobody" }),
        id => Ok(MemberId(id)),
    }
}

fn get_ids(buf: &mut Bytes, limit: usize, field: &'static str) -> Result<BTreeSet<MemberId>> {
    let count = get_count(buf, limit, 8, field)?;
    let mut ids = BTreeSet::new();
    for _ in 0..count {
        let id = get_member(buf, field)?;
        if ids.last().is_some_and(|last| *last >= id) {
            return Err(WireError::Config { rule: "ids must ascend" });
        }
        ids.insert(id);
    }
    Ok(ids)
}

fn put_ids(buf: &mut BytesMut, ids: &BTreeSet<MemberId>) {
    put_count(buf, ids.len());
    for id in ids {
        buf.put_u64_le(id.0);
    }
}

// ---- configuration, positions ----------------------------------------------------------------------------------

fn get_urls(buf: &mut Bytes, field: &'static str) -> Result<Vec<String>> {
    let count = get_count(buf, MEMBER_URLS_MAX, 4, field)?;
    (0..count).map(|_| get_string(buf, URL_BYTES_MAX, field)).collect()
}

fn put_urls(buf: &mut BytesMut, urls: &[String]) {
    put_count(buf, urls.len());
    for url in urls {
        put_string(buf, url);
    }
}

/// Appends a configuration. The caller keeps it within the limits of this module (the core refuses larger ones).
pub fn encode_config(config: &Config, buf: &mut BytesMut) {
    put_ids(buf, &config.voters);
    put_ids(buf, &config.voters_outgoing);
    put_ids(buf, &config.learners);
    put_ids(buf, &config.removed);
    put_count(buf, config.members.len());
    for (id, info) in &config.members {
        buf.put_u64_le(id.0);
        buf.put_u8(MEMBER_FULL);
        put_string(buf, &info.name);
        put_urls(buf, &info.peer_urls);
        put_urls(buf, &info.client_urls);
    }
}

/// Reads a configuration and checks the invariants of [`Config`].
pub fn decode_config(buf: &mut Bytes) -> Result<Config> {
    let voters = get_ids(buf, CONFIG_MEMBERS_MAX, "voters")?;
    let voters_outgoing = get_ids(buf, CONFIG_MEMBERS_MAX, "voters_outgoing")?;
    let learners = get_ids(buf, CONFIG_MEMBERS_MAX, "learners")?;
    let removed = get_ids(buf, CONFIG_REMOVED_MAX, "removed")?;
    let count = get_count(buf, CONFIG_MEMBERS_MAX, 8 + 1 + 4 + 4 + 4, "members")?;
    let mut members = BTreeMap::new();
    for _ in 0..count {
        let id = get_member(buf, "members")?;
        if members.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(WireError::Config { rule: "ids must ascend" });
        }
        match get_u8(buf, "member kind")? {
            MEMBER_FULL => {}
            kind => return Err(WireError::MemberKind { id, kind }),
        }
        let name = get_string(buf, MEMBER_NAME_BYTES_MAX, "name")?;
        let peer_urls = get_urls(buf, "peer_urls")?;
        let client_urls = get_urls(buf, "client_urls")?;
        members.insert(id, MemberInfo { name, peer_urls, client_urls });
    }
    let config = Config { voters, voters_outgoing, learners, members, removed };
    check_config(&config).map_err(|rule| WireError::Config { rule })?;
    Ok(config)
}

/// The invariants of [`Config`], as the sentence that is broken.
pub(crate) fn check_config(config: &Config) -> std::result::Result<(), &'static str> {
    if config.voters.is_empty() && (!config.voters_outgoing.is_empty() || !config.members.is_empty()) {
        return Err("a configuration with members must have voters");
    }
    if config.learners.iter().any(|id| config.is_voter(*id)) {
        return Err("a learner must not be a voter");
    }
    let named = &(&config.voters | &config.voters_outgoing) | &config.learners;
    if !named.iter().eq(config.members.keys()) {
        return Err("every voter and learner, and nobody else, must be among the members");
    }
    if config.members.keys().any(|id| config.removed.contains(id)) {
        return Err("a removed id must not be a member again");
    }
    Ok(())
}

/// Whether an address record fits the limits of this module; else (bytes, limit) of the first field that does not.
pub(crate) fn check_info(info: &MemberInfo) -> std::result::Result<(), (usize, usize)> {
    if info.name.len() > MEMBER_NAME_BYTES_MAX {
        return Err((info.name.len(), MEMBER_NAME_BYTES_MAX));
    }
    for urls in [&info.peer_urls, &info.client_urls] {
        if urls.len() > MEMBER_URLS_MAX {
            return Err((urls.len(), MEMBER_URLS_MAX));
        }
        if let Some(url) = urls.iter().find(|url| url.len() > URL_BYTES_MAX) {
            return Err((url.len(), URL_BYTES_MAX));
        }
    }
    Ok(())
}

pub fn encode_config_at(at: &ConfigAt, buf: &mut BytesMut) {
    buf.put_u64_le(at.incarnation);
    buf.put_u64_le(at.term);
    buf.put_u64_le(at.index);
}

pub fn decode_config_at(buf: &mut Bytes) -> Result<ConfigAt> {
    need(buf, 24, "config_at")?;
    Ok(ConfigAt { incarnation: buf.get_u64_le(), term: buf.get_u64_le(), index: buf.get_u64_le() })
}

pub fn encode_snap_meta(meta: &SnapMeta, buf: &mut BytesMut) {
    buf.put_u64_le(meta.index);
    buf.put_u64_le(meta.term);
    encode_config_at(&meta.config_at, buf);
    encode_config(&meta.config, buf);
}

pub fn decode_snap_meta(buf: &mut Bytes) -> Result<SnapMeta> {
    let index = get_u64(buf, "snapshot index")?;
    let term = get_u64(buf, "snapshot term")?;
    let config_at = decode_config_at(buf)?;
    let config = decode_config(buf)?;
    Ok(SnapMeta { index, term, config, config_at })
}

pub fn encode_hard_state(hard: &HardState, buf: &mut BytesMut) {
    buf.put_u64_le(hard.term);
    buf.put_u64_le(hard.vote.map_or(0, |id| id.0));
}

pub fn decode_hard_state(buf: &mut Bytes) -> Result<HardState> {
    let term = get_u64(buf, "term")?;
    let vote = get_u64(buf, "vote")?;
    Ok(HardState { term, vote: (vote != 0).then_some(MemberId(vote)) })
}

// ---- entries ---------------------------------------------------------------------------------------------------

/// Bytes [`encode_entry`] appends for a command of `data_bytes`. Configurations are rare and not counted here.
pub fn entry_encoded_len(data_bytes: usize) -> usize {
    ENTRY_HEADER_BYTES + 4 + data_bytes
}

const KIND_NOOP: u8 = 0;
const KIND_DATA: u8 = 1;
const KIND_CONFIG: u8 = 2;

pub fn encode_entry(entry: &Entry, buf: &mut BytesMut) {
    buf.put_u64_le(entry.term);
    buf.put_u64_le(entry.index);
    match &entry.payload {
        Payload::Noop => buf.put_u8(KIND_NOOP),
        Payload::Data(data) => {
            buf.put_u8(KIND_DATA);
            put_count(buf, data.len());
            buf.put_slice(data);
        }
        Payload::Config(config) => {
            buf.put_u8(KIND_CONFIG);
            encode_config(config, buf);
        }
    }
}

/// Reads one entry and leaves the rest of the buffer. A command is a slice of the buffer, not a copy.
pub fn decode_entry(buf: &mut Bytes) -> Result<Entry> {
    let term = get_u64(buf, "entry term")?;
    let index = get_u64(buf, "entry index")?;
    let payload = match get_u8(buf, "entry kind")? {
        KIND_NOOP => Payload::Noop,
        KIND_DATA => {
            let len = get_count(buf, ENTRY_DATA_BYTES_MAX, 1, "entry data")?;
            Payload::Data(buf.split_to(len))
        }
        KIND_CONFIG => Payload::Config(decode_config(buf)?),
        got => return Err(WireError::Tag { field: "entry kind", got }),
    };
    Ok(Entry { term, index, payload })
}

fn put_entries(buf: &mut BytesMut, entries: &[Entry]) {
    put_count(buf, entries.len());
    for entry in entries {
        encode_entry(entry, buf);
    }
}

fn get_entries(buf: &mut Bytes) -> Result<Vec<Entry>> {
    let count = get_count(buf, APPEND_ENTRIES_MAX, ENTRY_HEADER_BYTES, "entries")?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(decode_entry(buf)?);
    }
    Ok(entries)
}

// ---- messages --------------------------------------------------------------------------------------------------

const TAG_PRE_VOTE: u8 = 1;
const TAG_PRE_VOTE_REPLY: u8 = 2;
const TAG_VOTE: u8 = 3;
const TAG_VOTE_REPLY: u8 = 4;
const TAG_APPEND: u8 = 5;
const TAG_APPEND_REPLY: u8 = 6;
const TAG_APPEND_REJECT: u8 = 7;
const TAG_HEARTBEAT: u8 = 8;
const TAG_HEARTBEAT_REPLY: u8 = 9;
const TAG_TIMEOUT_NOW: u8 = 10;
const TAG_READ_INDEX: u8 = 11;
const TAG_READ_INDEX_REPLY: u8 = 12;
const TAG_SNAPSHOT_REPLY: u8 = 13;
const TAG_YOU_ARE_REMOVED: u8 = 14;
const TAG_COMMIT: u8 = 15;
const TAG_YOUR_LOG_REVERTED: u8 = 16;

fn put_head(buf: &mut BytesMut, tag: u8, words: &[u64]) {
    buf.put_u8(tag);
    for word in words {
        buf.put_u64_le(*word);
    }
}

/// Appends one message. A frame may hold several, one behind the other.
pub fn encode(msg: &Msg, buf: &mut BytesMut) {
    match msg {
        Msg::PreVote { term, last_term, last_index } => put_head(buf, TAG_PRE_VOTE, &[*term, *last_term, *last_index]),
        Msg::PreVoteReply { term, granted } => {
            put_head(buf, TAG_PRE_VOTE_REPLY, &[*term]);
            buf.put_u8(u8::from(*granted));
        }
        Msg::Vote { term, last_term, last_index, forced } => {
            put_head(buf, TAG_VOTE, &[*term, *last_term, *last_index]);
            buf.put_u8(u8::from(*forced));
        }
        Msg::VoteReply { term, granted } => {
            put_head(buf, TAG_VOTE_REPLY, &[*term]);
            buf.put_u8(u8::from(*granted));
        }
        Msg::Append { term, prev_term, prev_index, entries, commit } => {
            put_head(buf, TAG_APPEND, &[*term, *prev_term, *prev_index, *commit]);
            put_entries(buf, entries);
        }
        Msg::AppendReply { term, matched } => put_head(buf, TAG_APPEND_REPLY, &[*term, *matched]),
        Msg::AppendReject { term, prev_index, hint_index, hint_term } => {
            put_head(buf, TAG_APPEND_REJECT, &[*term, *prev_index, *hint_index, *hint_term]);
        }
        Msg::Heartbeat { term, commit, round } => put_head(buf, TAG_HEARTBEAT, &[*term, *commit, *round]),
        Msg::HeartbeatReply { term, round, received, durable, promise_us, last_index } => {
            put_head(buf, TAG_HEARTBEAT_REPLY, &[*term, *round, *received, *durable, *promise_us, *last_index]);
        }
        Msg::Commit { term, commit } => put_head(buf, TAG_COMMIT, &[*term, *commit]),
        Msg::TimeoutNow { term } => put_head(buf, TAG_TIMEOUT_NOW, &[*term]),
        Msg::ReadIndex { term, ctx, lease } => {
            put_head(buf, TAG_READ_INDEX, &[*term, *ctx]);
            buf.put_u8(u8::from(*lease));
        }
        Msg::ReadIndexReply { term, ctx, index } => {
            put_head(buf, TAG_READ_INDEX_REPLY, &[*term, *ctx]);
            buf.put_u8(u8::from(index.is_some()));
            if let Some(index) = index {
                buf.put_u64_le(*index);
            }
        }
        Msg::SnapshotReply { term, index } => put_head(buf, TAG_SNAPSHOT_REPLY, &[*term, *index]),
        Msg::YouAreRemoved { term, config_term, config_index } => {
            put_head(buf, TAG_YOU_ARE_REMOVED, &[*term, *config_term, *config_index]);
        }
        Msg::YourLogReverted { term, held } => put_head(buf, TAG_YOUR_LOG_REVERTED, &[*term, *held]),
    }
}

/// Reads one message and leaves the rest of the buffer.
pub fn decode(buf: &mut Bytes) -> Result<Msg> {
    let tag = get_u8(buf, "message tag")?;
    let term = get_u64(buf, "term")?;
    let word = |buf: &mut Bytes| get_u64(buf, "message");
    Ok(match tag {
        TAG_PRE_VOTE => Msg::PreVote { term, last_term: word(buf)?, last_index: word(buf)? },
        TAG_PRE_VOTE_REPLY => Msg::PreVoteReply { term, granted: get_bool(buf, "granted")? },
        TAG_VOTE => Msg::Vote { term, last_term: word(buf)?, last_index: word(buf)?, forced: get_bool(buf, "forced")? },
        TAG_VOTE_REPLY => Msg::VoteReply { term, granted: get_bool(buf, "granted")? },
        TAG_APPEND => {
            let (prev_term, prev_index, commit) = (word(buf)?, word(buf)?, word(buf)?);
            Msg::Append { term, prev_term, prev_index, commit, entries: get_entries(buf)? }
        }
        TAG_APPEND_REPLY => Msg::AppendReply { term, matched: word(buf)? },
        TAG_APPEND_REJECT => {
            Msg::AppendReject { term, prev_index: word(buf)?, hint_index: word(buf)?, hint_term: word(buf)? }
        }
        TAG_HEARTBEAT => Msg::Heartbeat { term, commit: word(buf)?, round: word(buf)? },
        TAG_HEARTBEAT_REPLY => Msg::HeartbeatReply {
            term,
            round: word(buf)?,
            received: word(buf)?,
            durable: word(buf)?,
            promise_us: word(buf)?,
            last_index: word(buf)?,
        },
        TAG_COMMIT => Msg::Commit { term, commit: word(buf)? },
        TAG_TIMEOUT_NOW => Msg::TimeoutNow { term },
        TAG_READ_INDEX => Msg::ReadIndex { term, ctx: word(buf)?, lease: get_bool(buf, "lease")? },
        TAG_READ_INDEX_REPLY => {
            let ctx = word(buf)?;
            let index = if get_bool(buf, "read index")? { Some(word(buf)?) } else { None };
            Msg::ReadIndexReply { term, ctx, index }
        }
        TAG_SNAPSHOT_REPLY => Msg::SnapshotReply { term, index: word(buf)? },
        TAG_YOU_ARE_REMOVED => Msg::YouAreRemoved { term, config_term: word(buf)?, config_index: word(buf)? },
        TAG_YOUR_LOG_REVERTED => Msg::YourLogReverted { term, held: word(buf)? },
        got => return Err(WireError::Tag { field: "message tag", got }),
    })
}

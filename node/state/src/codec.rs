//! Bytes of a command in the log.
//!
//! One byte of version, one of kind, then fields in order: integers as LEB128 of their 64 bits, byte strings with a
//! length before them, flags in one byte, lists with a count before them. Decoding trusts nothing: lengths are checked
//! against the bytes left before anything is allocated, nesting is bounded, unknown tags and trailing bytes are
//! refused. Keys and values are slices of the input, not copies.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::cluster_version::ClusterVersion;
use crate::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, Put, Range, SortOrder, SortTarget, Txn,
    TxnOp,
};

/// First byte of every command. A change of the format takes another one.
pub const FORMAT_VERSION: u8 = 1;
/// Deepest nesting of transactions. Each level takes at least one of 128 operations.
pub const TXN_DEPTH_MAX: usize = 128;
/// Most compares or operations of one list in the log; requests are held to a lower, configurable limit.
pub const LIST_LEN_MAX: usize = 65_536;

/// Why bytes are not a command. In a committed entry it means corruption or a newer format: the member must stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("{field}: the bytes end early")]
    Short { field: &'static str },
    #[error("{field}: unknown tag {got}")]
    Tag { field: &'static str, got: u8 },
    #[error("{field}: {got} is above the limit of {limit}")]
    TooLarge { field: &'static str, got: u64, limit: usize },
    #[error("format version {got} is unknown (this program writes {FORMAT_VERSION}); upgrade this member")]
    Version { got: u8 },
    #[error("{left} bytes follow the command")]
    Trailing { left: usize },
}

type Result<T> = std::result::Result<T, DecodeError>;

impl Command {
    /// Appends the bytes of the command to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(FORMAT_VERSION);
        match self {
            Command::Put(put) => {
                out.put_u8(1);
                put_put(out, put);
            }
            Command::DeleteRange(delete) => {
                out.put_u8(2);
                put_delete(out, delete);
            }
            Command::Txn(txn) => {
                out.put_u8(3);
                put_txn(out, txn);
            }
            Command::Compact { revision } => {
                out.put_u8(4);
                put_i64(out, *revision);
            }
            Command::ClusterVersion(ClusterVersion { major, minor }) => {
                out.put_u8(5);
                put_u64(out, u64::from(*major));
                put_u64(out, u64::from(*minor));
            }
            Command::Alarm { member, is_raised } => {
                out.put_u8(6);
                put_u64(out, *member);
                put_flags(out, [*is_raised]);
            }
        }
    }

    /// # Errors
    /// [`DecodeError`] if `bytes` are not exactly what [`Command::encode`] wrote.
    pub fn decode(mut bytes: Bytes) -> Result<Command> {
        let input = &mut bytes;
        let version = get_u8(input, "version")?;
        if version != FORMAT_VERSION {
            return Err(DecodeError::Version { got: version });
        }
        let command = match get_u8(input, "command")? {
            1 => Command::Put(get_put(input)?),
            2 => Command::DeleteRange(get_delete(input)?),
            3 => Command::Txn(get_txn(input, TXN_DEPTH_MAX)?),
            4 => Command::Compact { revision: get_i64(input, "compact revision")? },
            5 => Command::ClusterVersion(ClusterVersion::new(get_u16(input, "major")?, get_u16(input, "minor")?)),
            // The one thing that the build before this one does not know.
            6 if !cfg!(feature = "previous") => {
                let member = get_u64(input, "alarm member")?;
                let [is_raised] = get_flags(input, "alarm flags")?;
                Command::Alarm { member, is_raised }
            }
            got => return Err(DecodeError::Tag { field: "command", got }),
        };
        if input.is_empty() { Ok(command) } else { Err(DecodeError::Trailing { left: input.len() }) }
    }
}

// ---- primitives, shared with snapshots -------------------------------------------------------------------------

pub(crate) fn put_u64(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.put_u8(number.to_le_bytes()[0]);
}

pub(crate) fn put_i64(out: &mut BytesMut, number: i64) {
    put_u64(out, number.cast_unsigned());
}

pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.put_slice(bytes);
}

pub(crate) fn get_u8(input: &mut impl Buf, field: &'static str) -> Result<u8> {
    if input.has_remaining() { Ok(input.get_u8()) } else { Err(DecodeError::Short { field }) }
}

pub(crate) fn get_u64(input: &mut impl Buf, field: &'static str) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = get_u8(input, field)?;
        if shift == 63 && byte > 1 {
            return Err(DecodeError::Tag { field, got: byte });
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(DecodeError::Tag { field, got: 0x80 })
}

pub(crate) fn get_i64(input: &mut impl Buf, field: &'static str) -> Result<i64> {
    Ok(get_u64(input, field)?.cast_signed())
}

pub(crate) fn get_u16(input: &mut impl Buf, field: &'static str) -> Result<u16> {
    let got = get_u64(input, field)?;
    u16::try_from(got).map_err(|_| DecodeError::TooLarge { field, got, limit: u16::MAX.into() })
}

pub(crate) fn get_bytes(input: &mut Bytes, field: &'static str) -> Result<Bytes> {
    let len = get_u64(input, field)?;
    match usize::try_from(len) {
        Ok(len) if len <= input.len() => Ok(input.split_to(len)),
        Ok(_) | Err(_) => Err(DecodeError::Short { field }),
    }
}

/// A count of things that take a byte each at least.
fn get_len(input: &mut Bytes, field: &'static str) -> Result<usize> {
    let got = get_u64(input, field)?;
    match usize::try_from(got) {
        Ok(len) if len > LIST_LEN_MAX => Err(DecodeError::TooLarge { field, got, limit: LIST_LEN_MAX }),
        Ok(len) if len <= input.len() => Ok(len),
        Ok(_) | Err(_) => Err(DecodeError::Short { field }),
    }
}

fn put_flags<const N: usize>(out: &mut BytesMut, flags: [bool; N]) {
    out.put_u8(flags.iter().rev().fold(0, |byte, flag| byte << 1 | u8::from(*flag)));
}

fn get_flags<const N: usize>(input: &mut Bytes, field: &'static str) -> Result<[bool; N]> {
    let got = get_u8(input, field)?;
    if got >> N != 0 {
        return Err(DecodeError::Tag { field, got });
    }
    Ok(std::array::from_fn(|bit| got >> bit & 1 == 1))
}

// ---- requests --------------------------------------------------------------------------------------------------

fn put_range_of_keys(out: &mut BytesMut, range: &KeyRange) {
    put_bytes(out, &range.key);
    put_bytes(out, &range.range_end);
}

fn get_range_of_keys(input: &mut Bytes) -> Result<KeyRange> {
    Ok(KeyRange { key: get_bytes(input, "key")?, range_end: get_bytes(input, "range_end")? })
}

fn put_put(out: &mut BytesMut, put: &Put) {
    let Put { key, value, lease, prev_kv, ignore_value, ignore_lease } = put;
    put_bytes(out, key);
    put_bytes(out, value);
    put_i64(out, *lease);
    put_flags(out, [*prev_kv, *ignore_value, *ignore_lease]);
}

fn get_put(input: &mut Bytes) -> Result<Put> {
    let key = get_bytes(input, "key")?;
    let value = get_bytes(input, "value")?;
    let lease = get_i64(input, "lease")?;
    let [prev_kv, ignore_value, ignore_lease] = get_flags(input, "put flags")?;
    Ok(Put { key, value, lease, prev_kv, ignore_value, ignore_lease })
}

fn put_delete(out: &mut BytesMut, delete: &DeleteRange) {
    let DeleteRange { range, prev_kv } = delete;
    put_range_of_keys(out, range);
    put_flags(out, [*prev_kv]);
}

fn get_delete(input: &mut Bytes) -> Result<DeleteRange> {
    let range = get_range_of_keys(input)?;
    let [prev_kv] = get_flags(input, "delete flags")?;
    Ok(DeleteRange { range, prev_kv })
}

fn put_range(out: &mut BytesMut, range: &Range) {
    let Range {
        range: keys,
        revision,
        limit,
        sort_order,
        sort_target,
        keys_only,
        count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    } = range;
    put_range_of_keys(out, keys);
    for number in [revision, limit, min_mod_revision, max_mod_revision, min_create_revision, max_create_revision] {
        put_i64(out, *number);
    }
    out.put_u8(match sort_order {
        SortOrder::None => 0,
        SortOrder::Ascend => 1,
        SortOrder::Descend => 2,
    });
    out.put_u8(match sort_target {
        SortTarget::Key => 0,
        SortTarget::Version => 1,
        SortTarget::CreateRevision => 2,
        SortTarget::ModRevision => 3,
        SortTarget::Value => 4,
    });
    put_flags(out, [*keys_only, *count_only]);
}

fn get_range(input: &mut Bytes) -> Result<Range> {
    let range = get_range_of_keys(input)?;
    let revision = get_i64(input, "revision")?;
    let limit = get_i64(input, "limit")?;
    let min_mod_revision = get_i64(input, "min_mod_revision")?;
    let max_mod_revision = get_i64(input, "max_mod_revision")?;
    let min_create_revision = get_i64(input, "min_create_revision")?;
    let max_create_revision = get_i64(input, "max_create_revision")?;
    let sort_order = match get_u8(input, "sort_order")? {
        0 => SortOrder::None,
        1 => SortOrder::Ascend,
        2 => SortOrder::Descend,
        got => return Err(DecodeError::Tag { field: "sort_order", got }),
    };
    let sort_target = match get_u8(input, "sort_target")? {
        0 => SortTarget::Key,
        1 => SortTarget::Version,
        2 => SortTarget::CreateRevision,
        3 => SortTarget::ModRevision,
        4 => SortTarget::Value,
        got => return Err(DecodeError::Tag { field: "sort_target", got }),
    };
    let [keys_only, count_only] = get_flags(input, "range flags")?;
    Ok(Range {
        range,
        revision,
        limit,
        sort_order,
        sort_target,
        keys_only,
        count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    })
}

// ---- transactions ----------------------------------------------------------------------------------------------

fn put_txn(out: &mut BytesMut, txn: &Txn) {
    let Txn { compares, success, failure } = txn;
    put_u64(out, compares.len() as u64);
    for compare in compares {
        put_compare(out, compare);
    }
    for branch in [success, failure] {
        put_u64(out, branch.len() as u64);
        for op in branch {
            put_op(out, op);
        }
    }
}

fn get_txn(input: &mut Bytes, depth_left: usize) -> Result<Txn> {
    let Some(depth_left) = depth_left.checked_sub(1) else {
        let got = TXN_DEPTH_MAX as u64 + 1;
        return Err(DecodeError::TooLarge { field: "txn depth", got, limit: TXN_DEPTH_MAX });
    };
    let compares = (0..get_len(input, "compares")?).map(|_| get_compare(input)).collect::<Result<_>>()?;
    let success = get_ops(input, "success", depth_left)?;
    let failure = get_ops(input, "failure", depth_left)?;
    Ok(Txn { compares, success, failure })
}

fn get_ops(input: &mut Bytes, field: &'static str, depth_left: usize) -> Result<Vec<TxnOp>> {
    (0..get_len(input, field)?).map(|_| get_op(input, depth_left)).collect()
}

fn put_op(out: &mut BytesMut, op: &TxnOp) {
    match op {
        TxnOp::Range(range) => {
            out.put_u8(1);
            put_range(out, range);
        }
        TxnOp::Put(put) => {
            out.put_u8(2);
            put_put(out, put);
        }
        TxnOp::DeleteRange(delete) => {
            out.put_u8(3);
            put_delete(out, delete);
        }
        TxnOp::Txn(txn) => {
            out.put_u8(4);
            put_txn(out, txn);
        }
    }
}

fn get_op(input: &mut Bytes, depth_left: usize) -> Result<TxnOp> {
    Ok(match get_u8(input, "operation")? {
        1 => TxnOp::Range(get_range(input)?),
        2 => TxnOp::Put(get_put(input)?),
        3 => TxnOp::DeleteRange(get_delete(input)?),
        4 => TxnOp::Txn(get_txn(input, depth_left)?),
        got => return Err(DecodeError::Tag { field: "operation", got }),
    })
}

fn put_compare(out: &mut BytesMut, compare: &Compare) {
    let Compare { range, result, target } = compare;
    put_range_of_keys(out, range);
    out.put_u8(match result {
        CompareResult::Equal => 0,
        CompareResult::Greater => 1,
        CompareResult::Less => 2,
        CompareResult::NotEqual => 3,
    });
    let (tag, number) = match target {
        CompareTarget::Version(number) => (0, number),
        CompareTarget::CreateRevision(number) => (1, number),
        CompareTarget::ModRevision(number) => (2, number),
        CompareTarget::Lease(number) => (4, number),
        CompareTarget::Value(value) => {
            out.put_u8(3);
            put_bytes(out, value);
            return;
        }
    };
    out.put_u8(tag);
    put_i64(out, *number);
}

fn get_compare(input: &mut Bytes) -> Result<Compare> {
    let range = get_range_of_keys(input)?;
    let result = match get_u8(input, "compare result")? {
        0 => CompareResult::Equal,
        1 => CompareResult::Greater,
        2 => CompareResult::Less,
        3 => CompareResult::NotEqual,
        got => return Err(DecodeError::Tag { field: "compare result", got }),
    };
    let target = match get_u8(input, "compare target")? {
        0 => CompareTarget::Version(get_i64(input, "version")?),
        1 => CompareTarget::CreateRevision(get_i64(input, "create revision")?),
        2 => CompareTarget::ModRevision(get_i64(input, "mod revision")?),
        3 => CompareTarget::Value(get_bytes(input, "value")?),
        4 => CompareTarget::Lease(get_i64(input, "lease")?),
        got => return Err(DecodeError::Tag { field: "compare target", got }),
    };
    Ok(Compare { range, result, target })
}

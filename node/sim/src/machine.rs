//! The replicated machine of one member, as the node drives it: the shipped store, commands wrapped with who asked.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_audit::{Answer, Call, Change, Kv};
use quorate_raft::types::{Entry, Index, MemberId, Payload};
use quorate_state::{
    Applied as StateApplied, Command, Compare, CompareResult, CompareTarget, DeleteRange, Event, EventKind, KeyRange,
    KeyValue, Machine as Store, Put, Range, Response, StateError, Txn, TxnOp,
};

/// Who proposed a command, so that it is answered where it was asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RequestId {
    pub origin: MemberId,
    pub number: u64,
}

/// An applied command. What it did is told in the words of a history only where somebody asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    pub request: RequestId,
    outcome: Result<Response, StateError>,
    events: Vec<Event>,
}

impl Applied {
    pub fn changes(&self) -> Vec<Change> {
        self.events.iter().map(change).collect()
    }

    /// # Errors
    /// The store refused the command.
    pub fn into_answer(self) -> Result<Answer, StateError> {
        self.outcome.map(answer)
    }
}

/// A whole state. Cloning takes constant time.
#[derive(Clone, Debug, Default)]
pub struct Machine(Store);

impl Machine {
    pub fn new() -> Machine {
        Machine::default()
    }
    pub fn applied(&self) -> Index {
        self.0.applied_index()
    }
    pub fn revision(&self) -> i64 {
        self.0.revision()
    }
    pub fn hash(&self) -> u64 {
        self.0.state_hash()
    }

    /// Applies the next entry.
    pub fn apply(&mut self, entry: &Entry) -> Option<Applied> {
        let Payload::Data(data) = &entry.payload else {
            self.0.apply(entry.index, entry.term, None);
            return None;
        };
        let (request, command) = decode(data.clone());
        let StateApplied { outcome, events, .. } = self.0.apply(entry.index, entry.term, Some(&command));
        Some(Applied { request, outcome, events })
    }

    /// History of a range from a revision on, and where to go on.
    ///
    /// # Errors
    /// The compact revision, when the history wanted is gone.
    pub fn events(&self, key: &str, range_end: &str, from: i64, limit: usize) -> Result<(Vec<Change>, i64), i64> {
        let view = self.0.view();
        let range = KeyRange {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(range_end.as_bytes()),
        };
        let found = view.events(&range, from, limit).map_err(|_| view.compact_revision())?;
        Ok((found.events.iter().map(change).collect(), found.next_revision))
    }

    /// Answers a read of one key now.
    pub fn read(&self, key: &str) -> Answer {
        let view = self.0.view();
        let kvs: Vec<Kv> = view.get(key.as_bytes()).iter().map(|kv| seen(kv)).collect();
        Answer::Range { revision: view.revision(), count: i64::try_from(kvs.len()).unwrap_or(i64::MAX), kvs }
    }

    /// The state as it travels between members.
    pub fn chunks(&self) -> Vec<Bytes> {
        self.0.view().snapshot_chunks(b"sim").collect()
    }

    /// # Errors
    /// The chunks are damaged.
    pub fn restore(chunks: Vec<Bytes>) -> Result<Machine, String> {
        Store::restore(chunks).map(|restored| Machine(restored.machine)).map_err(|error| error.to_string())
    }
}

fn change(event: &Event) -> Change {
    Change {
        revision: event.kv.mod_revision,
        key: text(&event.kv.key),
        kv: (event.kind == EventKind::Put).then(|| seen(&event.kv)),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn seen(kv: &KeyValue) -> Kv {
    Kv {
        key: text(&kv.key),
        value: text(&kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

fn answer(response: Response) -> Answer {
    match response {
        Response::Put(put) => Answer::Put { revision: put.revision },
        Response::DeleteRange(delete) => Answer::DeleteRange { revision: delete.revision, deleted: delete.deleted },
        Response::Range(range) => {
            let kvs = range.kvs.iter().map(|kv| seen(kv)).collect();
            Answer::Range { revision: range.revision, kvs, count: range.count }
        }
        Response::Txn(txn) => Answer::Txn {
            revision: txn.revision,
            succeeded: txn.succeeded,
            responses: txn.responses.into_iter().map(answer).collect(),
        },
        // Not in a history: it changes nothing a client sees.
        Response::Compact { revision } | Response::Nothing { revision } => {
            Answer::Range { revision, kvs: Vec::new(), count: 0 }
        }
    }
}

/// Whether carrying out the call can make the state larger.
pub fn grows(call: &Call) -> bool {
    !matches!(call, Call::Range { .. }) && command(call).grows()
}

/// What the store is asked for a call that writes. The simulated clients make no other forms.
fn command(call: &Call) -> Command {
    match call {
        Call::Put { key, value } => Command::Put(put(key, value)),
        Call::DeleteRange { key, .. } => {
            Command::DeleteRange(DeleteRange { range: KeyRange::one(key.clone()), prev_kv: false })
        }
        Call::Txn { compares, success, failure } => Command::Txn(Txn {
            compares: compares.iter().map(compare).collect(),
            success: success.iter().map(operation).collect(),
            failure: failure.iter().map(operation).collect(),
        }),
        Call::Range { .. } => unreachable!("reads do not go through the log"),
    }
}

fn put(key: &str, value: &str) -> Put {
    Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Put::default()
    }
}

fn compare(compare: &quorate_audit::history::Compare) -> Compare {
    let target = match compare.target {
        quorate_audit::history::Target::Mod(revision) => CompareTarget::ModRevision(revision),
        _ => unreachable!("the simulated clients compare the mod revision only"),
    };
    Compare { range: KeyRange::one(compare.key.clone()), result: CompareResult::Equal, target }
}

fn operation(call: &Call) -> TxnOp {
    match call {
        Call::Put { key, value } => TxnOp::Put(put(key, value)),
        Call::Range { key, .. } => TxnOp::Range(Range { range: KeyRange::one(key.clone()), ..Range::default() }),
        Call::DeleteRange { key, .. } => {
            TxnOp::DeleteRange(DeleteRange { range: KeyRange::one(key.clone()), prev_kv: false })
        }
        Call::Txn { .. } => unreachable!("the simulated clients do not nest"),
    }
}

/// A call as an entry's payload.
pub fn encode(request: RequestId, call: &Call) -> Bytes {
    encode_command(request, &command(call))
}

/// A compaction as an entry's payload.
pub fn encode_compaction(request: RequestId, revision: i64) -> Bytes {
    encode_command(request, &Command::Compact { revision })
}

fn encode_command(request: RequestId, command: &Command) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64(request.origin.0);
    out.put_u64(request.number);
    command.encode(&mut out);
    out.freeze()
}

fn decode(mut data: Bytes) -> (RequestId, Command) {
    let request = RequestId { origin: MemberId(data.get_u64()), number: data.get_u64() };
    (request, Command::decode(data).expect("a committed command is one that a client encoded"))
}

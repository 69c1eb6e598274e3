//! `etcdserverpb.KV`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use prost::Message;
use quorate_proto::etcdserverpb::kv_server::Kv;
use quorate_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use quorate_state::{Command, KeyValue, RangeResult, SortOrder, SortTarget, View};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::{Api, ForLearner, convert, status};

/// Keys in the first chunk of a streamed range.
const FIRST_CHUNK_KEYS: usize = 10;

type Chunks = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

impl Api {
    /// The view a read is answered from.
    async fn view_for(&self, metadata: &MetadataMap, is_serializable: bool) -> Result<Arc<View>, Status> {
        if is_serializable {
            self.admit(metadata, ForLearner::Allowed)?;
            return Ok(self.handle().view());
        }
        self.admit(metadata, ForLearner::Refused)?;
        let handle = self.handle();
        let view = match consistency(metadata)? {
            Consistency::Linearizable => handle.linearizable_view().await,
            Consistency::Lease => handle.leased_view().await,
        };
        view.map_err(status::of_call)
    }

    fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        if request.encoded_len() > self.options().max_request_bytes { Err(status::too_large()) } else { Ok(()) }
    }

    /// Whether the state has grown to its limit. What would grow it further is refused before it gets an index; deletes
    /// and compaction go on, and make room. While a compaction still gives memory back it does so with every entry,
    /// more than an entry takes: then writes go on.
    pub(super) fn is_full(&self) -> bool {
        let view = self.handle().view();
        view.size_bytes() >= self.options().quota_bytes && !view.compaction_pending()
    }

    async fn propose(&self, command: &Command) -> Result<quorate_state::Response, Status> {
        command.validate(self.options().limits).map_err(status::of_state)?;
        if command.grows() && self.is_full() {
            return Err(status::no_space());
        }
        let applied = self.handle().propose(command).await.map_err(status::of_call)?;
        applied.outcome.map_err(status::of_state)
    }
}

/// How a client wants a read that is not serializable confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Consistency {
    /// By a round to a majority.
    Linearizable,
    /// By the leader's lease where leases are on; otherwise by a round all the same.
    Lease,
}

/// The request header that asks for a kind of read, and its values.
const CONSISTENCY: &str = "quorate-consistency";

fn consistency(metadata: &MetadataMap) -> Result<Consistency, Status> {
    match metadata.get(CONSISTENCY).map(|value| value.as_encoded_bytes()) {
        None | Some(b"linearizable") => Ok(Consistency::Linearizable),
        Some(b"lease") => Ok(Consistency::Lease),
        Some(other) => Err(Status::invalid_argument(format!(
            "{CONSISTENCY}: {:?} is not known: use linearizable or lease",
            String::from_utf8_lossy(other)
        ))),
    }
}

/// The machine answers each command with its own kind of response.
fn mismatch() -> Status {
    Status::internal("etcdserver: the store answered with another kind of response than was asked for")
}

#[tonic::async_trait]
impl Kv for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let is_serializable = request.get_ref().serializable;
        let (metadata, _, request) = request.into_parts();
        let range = convert::range(request)?;
        range.validate().map_err(status::of_state)?;
        let view = self.view_for(&metadata, is_serializable).await?;
        let result = view.range(&range).map_err(status::of_state)?;
        Ok(Response::new(convert::range_response(self.header(result.revision), &result)))
    }

    type RangeStreamStream = Chunks;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Chunks>, Status> {
        let is_serializable = request.get_ref().serializable;
        let (metadata, _, request) = request.into_parts();
        let range = convert::range(request)?;
        range.validate().map_err(status::of_state)?;
        if range.sort_order == SortOrder::Descend || range.sort_target != SortTarget::Key {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        let bounds =
            [range.min_mod_revision, range.max_mod_revision, range.min_create_revision, range.max_create_revision];
        if bounds.iter().any(|bound| *bound != 0) {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        let view = self.view_for(&metadata, is_serializable).await?;
        let result = view.range(&range).map_err(status::of_state)?;
        let header = self.header(result.revision);
        let chunks = Chunker { result, sent: 0, keys: FIRST_CHUNK_KEYS, bytes_max: self.options().max_request_bytes };
        let stream = futures::stream::unfold(Some(chunks), move |chunks| async move {
            let (mut response, rest) = chunks?.next();
            if rest.is_none() {
                response.header = Some(header);
            }
            Some((Ok(RangeStreamResponse { range_response: Some(response) }), rest))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let request = request.into_inner();
        self.check_size(&request)?;
        match self.propose(&convert::put(request).into()).await? {
            quorate_state::Response::Put(result) => {
                Ok(Response::new(convert::put_response(self.header(result.revision), &result)))
            }
            _ => Err(mismatch()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let request = request.into_inner();
        self.check_size(&request)?;
        match self.propose(&convert::delete_range(request).into()).await? {
            quorate_state::Response::DeleteRange(result) => {
                Ok(Response::new(convert::delete_range_response(self.header(result.revision), &result)))
            }
            _ => Err(mismatch()),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.check_size(request.get_ref())?;
        let (metadata, _, request) = request.into_parts();
        let (txn, is_serializable) = convert::txn(request)?;
        let result = if txn.is_read_only() {
            txn.validate(self.options().limits).map_err(status::of_state)?;
            // Without a range there is nothing that asked for local state.
            let has_ranges = !txn.success.is_empty() || !txn.failure.is_empty();
            let view = self.view_for(&metadata, is_serializable && has_ranges).await?;
            view.txn(&txn).map_err(status::of_state)?
        } else {
            self.admit(&metadata, ForLearner::Refused)?;
            match self.propose(&txn.into()).await? {
                quorate_state::Response::Txn(result) => result,
                _ => return Err(mismatch()),
            }
        };
        Ok(Response::new(convert::txn_response(self.header(result.revision), &result)))
    }

    /// `physical` asks to wait until memory is given back. Compacted revisions are out of everybody's reach at once
    /// and on every member alike; there is nothing else to wait for that a client could observe.
    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let revision = request.get_ref().revision;
        match self.propose(&Command::Compact { revision }).await? {
            quorate_state::Response::Compact { revision } => {
                Ok(Response::new(CompactionResponse { header: Some(self.header(revision)) }))
            }
            _ => Err(mismatch()),
        }
    }
}

/// Cuts one result into messages that grow or shrink towards `bytes_max`.
struct Chunker {
    result: RangeResult,
    sent: usize,
    keys: usize,
    bytes_max: usize,
}

impl Chunker {
    /// The next chunk, and the rest; the last one alone tells `more` and `count`.
    fn next(mut self) -> (RangeResponse, Option<Chunker>) {
        let all = &self.result.kvs;
        let chunk = &all[self.sent..all.len().min(self.sent + self.keys)];
        let kvs = chunk.iter().map(|one| convert::kv(one)).collect();
        let bytes: usize = chunk.iter().map(|one| weight(one)).sum();
        self.sent += chunk.len();
        if self.sent == all.len() {
            let response = RangeResponse { header: None, kvs, more: self.result.more, count: self.result.count };
            return (response, None);
        }
        self.keys = if bytes > self.bytes_max { (self.keys / 2).max(1) } else { self.keys.saturating_mul(2) };
        // What was too much once is not doubled into again.
        if bytes.saturating_mul(2) > self.bytes_max && bytes <= self.bytes_max {
            self.keys = chunk.len();
        }
        (RangeResponse { kvs, ..Default::default() }, Some(self))
    }
}

fn weight(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn result(keys: usize, value_bytes: usize) -> RangeResult {
        let kv = |n: usize| {
            Arc::new(KeyValue {
                key: Bytes::from(format!("{n:05}")),
                value: Bytes::from(vec![0; value_bytes]),
                ..Default::default()
            })
        };
        RangeResult { revision: 9, kvs: (0..keys).map(kv).collect(), more: true, count: 77 }
    }

    fn chunks(keys: usize, value_bytes: usize, bytes_max: usize) -> Vec<RangeResponse> {
        let result = result(keys, value_bytes);
        let mut rest = Some(Chunker { result, sent: 0, keys: FIRST_CHUNK_KEYS, bytes_max });
        let mut all = Vec::new();
        while let Some(chunker) = rest {
            let (response, next) = chunker.next();
            all.push(response);
            rest = next;
        }
        all
    }

    #[test]
    fn chunks_hold_every_key_once_and_only_the_last_tells_the_count() {
        let all = chunks(1000, 10, 2000);
        let keys: Vec<_> = all.iter().flat_map(|c| c.kvs.iter().map(|kv| kv.key.clone())).collect();
        assert_eq!(keys, result(1000, 10).kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>());
        assert_eq!(all[0].kvs.len(), FIRST_CHUNK_KEYS);
        assert!(all.len() > 3);
        assert!(all[..all.len() - 1].iter().all(|c| c.count == 0 && !c.more));
        assert_eq!(all.last().map(|c| (c.count, c.more)), Some((77, true)));
    }

    #[test]
    fn nothing_found_is_one_chunk() {
        assert_eq!(chunks(0, 0, 100).len(), 1);
    }

    #[test]
    fn large_values_shrink_chunks_to_one_key() {
        let all = chunks(40, 1000, 900);
        assert_eq!(all.last().map(|c| c.kvs.len()), Some(1));
    }

    #[test]
    fn a_header_asks_for_the_kind_of_read() {
        let with = |value: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(CONSISTENCY, value.parse().unwrap());
            consistency(&metadata)
        };
        assert_eq!(consistency(&MetadataMap::new()).unwrap(), Consistency::Linearizable);
        assert_eq!(with("linearizable").unwrap(), Consistency::Linearizable);
        assert_eq!(with("lease").unwrap(), Consistency::Lease);
        assert!(with("fast").unwrap_err().message().contains("fast"));
    }
}

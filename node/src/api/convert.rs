//! Between the wire's types and the store's. Pure; keys and values are shared, never copied.

use std::sync::Arc;

use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::compare::TargetUnion;
use quorate_proto::etcdserverpb::request_op::Request as Op;
use quorate_proto::etcdserverpb::response_op::Response as OpResponse;
use quorate_proto::mvccpb;
use quorate_state as state;
use quorate_state::{Compare, CompareResult, CompareTarget, KeyRange, SortOrder, SortTarget, StateError, TxnOp};
use tonic::Status;

use super::status;

pub(crate) fn range(request: pb::RangeRequest) -> Result<state::Range, Status> {
    use pb::range_request as wire;
    let order = wire::SortOrder::try_from(request.sort_order).map_err(|_| status::invalid_sort_option())?;
    let target = wire::SortTarget::try_from(request.sort_target).map_err(|_| status::invalid_sort_option())?;
    Ok(state::Range {
        range: KeyRange::new(request.key, request.range_end),
        revision: request.revision,
        limit: request.limit,
        sort_order: match order {
            wire::SortOrder::None => SortOrder::None,
            wire::SortOrder::Ascend => SortOrder::Ascend,
            wire::SortOrder::Descend => SortOrder::Descend,
        },
        sort_target: match target {
            wire::SortTarget::Key => SortTarget::Key,
            wire::SortTarget::Version => SortTarget::Version,
            wire::SortTarget::Create => SortTarget::CreateRevision,
            wire::SortTarget::Mod => SortTarget::ModRevision,
            wire::SortTarget::Value => SortTarget::Value,
        },
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    })
}

pub(crate) fn put(request: pb::PutRequest) -> state::Put {
    state::Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub(crate) fn delete_range(request: pb::DeleteRangeRequest) -> state::DeleteRange {
    state::DeleteRange { range: KeyRange::new(request.key, request.range_end), prev_kv: request.prev_kv }
}

/// How deep transactions may be nested. Every level costs an operation of its parent, so the limit on operations is
/// met first; this one bounds the stack before that is checked.
const NESTING_MAX: usize = 128;

/// A transaction, and whether each of its ranges may be answered from local state.
pub(crate) fn txn(request: pb::TxnRequest) -> Result<(state::Txn, bool), Status> {
    let mut serializable = true;
    let txn = nested(request, &mut serializable, NESTING_MAX)?;
    Ok((txn, serializable))
}

fn nested(request: pb::TxnRequest, serializable: &mut bool, deeper: usize) -> Result<state::Txn, Status> {
    if deeper == 0 {
        return Err(status::of_state(StateError::TooManyOps));
    }
    let mut ops = |ops: Vec<pb::RequestOp>| -> Result<Vec<TxnOp>, Status> {
        ops.into_iter().map(|op| txn_op(op, serializable, deeper - 1)).collect()
    };
    let success = ops(request.success)?;
    let failure = ops(request.failure)?;
    let compares = request.compare.into_iter().map(compare).collect::<Result<_, _>>()?;
    Ok(state::Txn { compares, success, failure })
}

fn txn_op(op: pb::RequestOp, serializable: &mut bool, deeper: usize) -> Result<TxnOp, Status> {
    Ok(match op.request.ok_or_else(|| status::of_state(StateError::KeyNotFound))? {
        Op::RequestRange(request) => {
            *serializable &= request.serializable;
            TxnOp::Range(range(request)?)
        }
        Op::RequestPut(request) => TxnOp::Put(put(request)),
        Op::RequestDeleteRange(request) => TxnOp::DeleteRange(delete_range(request)),
        Op::RequestTxn(request) => TxnOp::Txn(nested(request, serializable, deeper)?),
    })
}

/// A target without its value compares with zero, as in etcd. Unknown targets and results are refused, which etcd does
/// not: it takes them as "holds".
fn compare(compare: pb::Compare) -> Result<Compare, Status> {
    use pb::compare as wire;
    let unknown = |field: &str, value: i32| {
        Status::invalid_argument(format!("etcdserver: unknown {field} {value} in a compare of a txn request"))
    };
    let result = match wire::CompareResult::try_from(compare.result) {
        Ok(wire::CompareResult::Equal) => CompareResult::Equal,
        Ok(wire::CompareResult::Greater) => CompareResult::Greater,
        Ok(wire::CompareResult::Less) => CompareResult::Less,
        Ok(wire::CompareResult::NotEqual) => CompareResult::NotEqual,
        Err(_) => return Err(unknown("result", compare.result)),
    };
    let given = compare.target_union;
    let target = match wire::CompareTarget::try_from(compare.target) {
        Ok(wire::CompareTarget::Version) => CompareTarget::Version(match given {
            Some(TargetUnion::Version(version)) => version,
            _ => 0,
        }),
        Ok(wire::CompareTarget::Create) => CompareTarget::CreateRevision(match given {
            Some(TargetUnion::CreateRevision(revision)) => revision,
            _ => 0,
        }),
        Ok(wire::CompareTarget::Mod) => CompareTarget::ModRevision(match given {
            Some(TargetUnion::ModRevision(revision)) => revision,
            _ => 0,
        }),
        Ok(wire::CompareTarget::Value) => CompareTarget::Value(match given {
            Some(TargetUnion::Value(value)) => value,
            _ => bytes::Bytes::new(),
        }),
        Ok(wire::CompareTarget::Lease) => CompareTarget::Lease(match given {
            Some(TargetUnion::Lease(lease)) => lease,
            _ => 0,
        }),
        Err(_) => return Err(unknown("target", compare.target)),
    };
    Ok(Compare { range: KeyRange::new(compare.key, compare.range_end), result, target })
}

pub(crate) fn kv(kv: &state::KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key.clone(),
        value: kv.value.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

fn kvs(all: &[Arc<state::KeyValue>]) -> Vec<mvccpb::KeyValue> {
    all.iter().map(|one| kv(one)).collect()
}

pub(crate) fn event(event: &state::Event, prev_kv: Option<Arc<state::KeyValue>>) -> mvccpb::Event {
    let kind = match event.kind {
        state::EventKind::Put => mvccpb::event::EventType::Put,
        state::EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event { r#type: kind.into(), kv: Some(kv(&event.kv)), prev_kv: prev_kv.as_deref().map(kv) }
}

pub(crate) fn range_response(header: pb::ResponseHeader, result: &state::RangeResult) -> pb::RangeResponse {
    pb::RangeResponse { header: Some(header), kvs: kvs(&result.kvs), more: result.more, count: result.count }
}

pub(crate) fn put_response(header: pb::ResponseHeader, result: &state::PutResult) -> pb::PutResponse {
    pb::PutResponse { header: Some(header), prev_kv: result.prev_kv.as_deref().map(kv) }
}

pub(crate) fn delete_range_response(
    header: pb::ResponseHeader,
    result: &state::DeleteRangeResult,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header: Some(header), deleted: result.deleted, prev_kvs: kvs(&result.prev_kvs) }
}

pub(crate) fn txn_response(header: pb::ResponseHeader, result: &state::TxnResult) -> pb::TxnResponse {
    let responses = result.responses.iter().map(op_response).collect();
    pb::TxnResponse { header: Some(header), succeeded: result.succeeded, responses }
}

/// Inside a transaction a header tells the revision only.
fn op_response(response: &state::Response) -> pb::ResponseOp {
    let header = pb::ResponseHeader { revision: response.revision(), ..Default::default() };
    let response = match response {
        state::Response::Range(result) => Some(OpResponse::ResponseRange(range_response(header, result))),
        state::Response::Put(result) => Some(OpResponse::ResponsePut(put_response(header, result))),
        state::Response::DeleteRange(result) => {
            Some(OpResponse::ResponseDeleteRange(delete_range_response(header, result)))
        }
        state::Response::Txn(result) => Some(OpResponse::ResponseTxn(txn_response(header, result))),
        // A transaction can hold neither.
        state::Response::Compact { .. } | state::Response::Nothing { .. } => None,
    };
    pb::ResponseOp { response }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tonic::Code;

    use super::*;

    fn op(request: Op) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    #[test]
    fn an_unknown_sort_is_refused_with_the_text_of_etcd() {
        let request = pb::RangeRequest { key: Bytes::from("k"), sort_order: 3, ..Default::default() };
        let refused = range(request).expect_err("there is no order 3");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.message(), "etcdserver: invalid sort option");
    }

    #[test]
    fn a_range_keeps_all_its_options() {
        let request = pb::RangeRequest {
            key: Bytes::from("a"),
            range_end: Bytes::from_static(b"\0"),
            limit: 1,
            revision: 2,
            sort_order: 2,
            sort_target: 4,
            keys_only: true,
            count_only: true,
            min_mod_revision: 3,
            max_mod_revision: 4,
            min_create_revision: 5,
            max_create_revision: 6,
            serializable: true,
        };
        let range = range(request).expect("valid");
        assert_eq!(range.range, KeyRange::new("a", &b"\0"[..]));
        assert_eq!((range.limit, range.revision), (1, 2));
        assert_eq!((range.sort_order, range.sort_target), (SortOrder::Descend, SortTarget::Value));
        assert!(range.keys_only && range.count_only);
        assert_eq!((range.min_mod_revision, range.max_mod_revision), (3, 4));
        assert_eq!((range.min_create_revision, range.max_create_revision), (5, 6));
    }

    #[test]
    fn an_operation_without_a_request_is_key_not_found() {
        let request = pb::TxnRequest { success: vec![pb::RequestOp { request: None }], ..Default::default() };
        assert_eq!(txn(request).expect_err("empty").message(), "etcdserver: key not found");
    }

    #[test]
    fn a_txn_is_serializable_only_if_every_range_is_nested_ones_too() {
        let local = pb::RangeRequest { key: Bytes::from("a"), serializable: true, ..Default::default() };
        let strict = pb::RangeRequest { key: Bytes::from("b"), ..Default::default() };
        let inner = pb::TxnRequest { failure: vec![op(Op::RequestRange(strict))], ..Default::default() };
        let only = pb::TxnRequest { success: vec![op(Op::RequestRange(local.clone()))], ..Default::default() };
        let mixed = pb::TxnRequest {
            success: vec![op(Op::RequestRange(local)), op(Op::RequestTxn(inner))],
            ..Default::default()
        };
        assert!(txn(only).expect("valid").1);
        assert!(!txn(mixed).expect("valid").1);
    }

    #[test]
    fn a_compare_without_a_value_compares_with_zero() {
        let given = pb::Compare { target: 2, target_union: Some(TargetUnion::Version(9)), ..Default::default() };
        assert_eq!(compare(given).expect("valid").target, CompareTarget::ModRevision(0));
        assert_eq!(
            compare(pb::Compare { result: 9, ..Default::default() }).expect_err("9").code(),
            Code::InvalidArgument
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let mut request = pb::TxnRequest::default();
        for _ in 0..NESTING_MAX {
            request = pb::TxnRequest { success: vec![op(Op::RequestTxn(request))], ..Default::default() };
        }
        let refused = txn(request).expect_err("too deep");
        assert_eq!(refused.message(), "etcdserver: too many operations in txn request");
    }
}

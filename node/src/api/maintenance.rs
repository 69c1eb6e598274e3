//! `etcdserverpb.Maintenance`.

use std::pin::Pin;

use futures::Stream;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::maintenance_server::Maintenance;
use quorate_raft::RoleName;
use quorate_raft::types::MemberId;
use tonic::{Request, Response, Status};

use super::{Api, ETCD_CLUSTER_VERSION, ETCD_VERSION, ForLearner, is_learner, status};

/// What even an empty store occupies, rounded up to a page. Above zero, because etcdctl divides by the size.
const SIZE_BYTES_MIN: u64 = 4096;

impl Api {
    fn current_header(&self) -> Option<pb::ResponseHeader> {
        Some(self.header(self.handle().view().revision()))
    }
}

#[tonic::async_trait]
impl Maintenance for Api {
    /// The one alarm follows from the size, so it cannot be raised by hand, and clears itself when there is room.
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        match AlarmAction::try_from(request.get_ref().action) {
            Ok(AlarmAction::Get | AlarmAction::Deactivate) => {
                let own = self.handle().identity().member_id.0;
                let no_space = pb::AlarmMember { member_id: own, alarm: pb::AlarmType::Nospace.into() };
                let alarms = if self.is_full() { vec![no_space] } else { Vec::new() };
                Ok(Response::new(pb::AlarmResponse { header: self.current_header(), alarms }))
            }
            Ok(AlarmAction::Activate) => Err(status::absent("raising an alarm by hand")),
            Err(_) => Err(Status::invalid_argument("etcdserver: unknown alarm action")),
        }
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Allowed)?;
        let (status, view) = (self.handle().status(), self.handle().view());
        let size = i64::try_from(view.size_bytes().max(SIZE_BYTES_MIN)).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if status.raft.leader.is_none() {
            errors.push(status::NO_LEADER.to_owned());
        }
        if self.is_full() {
            errors.push(format!("memberID:{} alarm:NOSPACE ", self.handle().identity().member_id.0));
        }
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.header(view.revision())),
            version: ETCD_VERSION.to_owned(),
            // Nothing is allocated ahead, so nothing can be given back by defragmenting.
            db_size: size,
            db_size_in_use: size,
            leader: status.raft.leader.map_or(0, |leader| leader.0),
            // The view may be newer than the status.
            raft_index: status.raft.commit.max(view.applied_index()),
            raft_term: status.raft.term,
            raft_applied_index: view.applied_index(),
            errors,
            is_learner: is_learner(&status),
            storage_version: ETCD_CLUSTER_VERSION.to_owned(),
            db_size_quota: i64::try_from(self.options().quota_bytes).unwrap_or(i64::MAX),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    /// There are no holes to close, by design: done as soon as asked.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        Ok(Response::new(pb::DefragmentResponse { header: self.current_header() }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let view = self.handle().view();
        let whole = view.state_hash();
        let hash = u32::try_from((whole >> 32) ^ (whole & u64::from(u32::MAX))).expect("32 bits");
        Ok(Response::new(pb::HashResponse { header: Some(self.header(view.revision())), hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let view = self.handle().view();
        let revision = request.get_ref().revision;
        // Every version is looked at: off the threads that serve.
        let hashing = tokio::task::spawn_blocking(move || (view.hash_kv(revision), view.revision()));
        let (result, revision) = hashing.await.map_err(|e| Status::internal(format!("etcdserver: {e}")))?;
        let result = result.map_err(status::of_state)?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(self.header(revision)),
            hash: result.hash,
            compact_revision: result.compact_revision,
            hash_revision: result.hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(status::absent("a snapshot in etcd's file format"))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let to = MemberId(request.get_ref().target_id);
        if self.handle().status().raft.role != RoleName::Leader {
            return Err(status::not_leader());
        }
        // As in etcd, the leader is where it shall be.
        if to != self.handle().identity().member_id {
            self.handle().transfer(to).await.map_err(status::of_call)?;
        }
        Ok(Response::new(pb::MoveLeaderResponse { header: self.current_header() }))
    }

    async fn downgrade(&self, _: Request<pb::DowngradeRequest>) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(status::absent("a downgrade"))
    }
}

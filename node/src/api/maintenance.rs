//! `etcdserverpb.Maintenance`.

use std::collections::BTreeSet;
use std::pin::Pin;

use futures::Stream;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::maintenance_server::Maintenance;
use quorate_raft::RoleName;
use quorate_raft::types::MemberId;
use quorate_state::{Command, Feature};
use tonic::{Request, Response, Status};

use super::{Api, ETCD_CLUSTER_VERSION, ETCD_VERSION, ForLearner, is_learner, status};

/// What even an empty store occupies, rounded up to a page. Above zero, because etcdctl divides by the size.
const SIZE_BYTES_MIN: u64 = 4096;

impl Api {
    fn current_header(&self) -> Option<pb::ResponseHeader> {
        Some(self.header(self.handle().view().revision()))
    }

    /// What stands against growth: by a person's word, and by this member's size.
    fn alarms(&self) -> Vec<pb::AlarmMember> {
        let mut members: BTreeSet<u64> = self.handle().view().alarms().collect();
        if self.is_full() {
            members.insert(self.handle().identity().member_id.0);
        }
        members.into_iter().map(no_space).collect()
    }

    /// For the member asked, if none is named.
    async fn raise(&self, member_id: u64, alarm: i32) -> Result<Vec<pb::AlarmMember>, Status> {
        match pb::AlarmType::try_from(alarm) {
            Ok(pb::AlarmType::Nospace) if cfg!(feature = "previous") => {
                return Err(status::absent("raising an alarm by hand"));
            }
            Ok(pb::AlarmType::Nospace) => {}
            Ok(pb::AlarmType::Corrupt) => return Err(status::absent("raising the alarm CORRUPT by hand")),
            Ok(pb::AlarmType::None) | Err(_) => {
                return Err(Status::invalid_argument("etcdserver: alarm: name the kind of alarm to raise, NOSPACE"));
            }
        }
        let member = if member_id == 0 { self.handle().identity().member_id.0 } else { member_id };
        if !self.handle().status().raft.committed_config.config.contains(MemberId(member)) {
            return Err(status::member_not_found());
        }
        let view = self.handle().linearizable_view().await.map_err(status::of_call)?;
        let feature = Feature::RaisedAlarms;
        view.require(feature)
            .map_err(|_| status::not_all_members_can("raising an alarm", feature, view.cluster_version()))?;
        self.set_alarm(member, true).await?;
        Ok(vec![no_space(member)])
    }

    /// Gives what stood. The one that follows from the size goes by itself.
    async fn lower(&self, member_id: u64, alarm: i32) -> Result<Vec<pb::AlarmMember>, Status> {
        if alarm == i32::from(pb::AlarmType::Corrupt) {
            return Ok(Vec::new());
        }
        let own = self.handle().identity().member_id.0;
        let member = if member_id == 0 { own } else { member_id };
        let view = self.handle().linearizable_view().await.map_err(status::of_call)?;
        let is_raised = view.alarms().any(|raised| raised == member);
        if is_raised {
            self.set_alarm(member, false).await?;
        }
        let stood = is_raised || (member == own && self.is_full());
        Ok(if stood { vec![no_space(member)] } else { Vec::new() })
    }

    async fn set_alarm(&self, member: u64, is_raised: bool) -> Result<(), Status> {
        let applied = self.handle().propose(&Command::Alarm { member, is_raised }).await.map_err(status::of_call)?;
        applied.outcome.map(drop).map_err(status::of_state)
    }
}

fn no_space(member_id: u64) -> pb::AlarmMember {
    pb::AlarmMember { member_id, alarm: pb::AlarmType::Nospace.into() }
}

#[tonic::async_trait]
impl Maintenance for Api {
    /// One alarm follows from this member's size and clears itself when there is room; others are raised and lowered by a
    /// person, for the whole cluster.
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let pb::AlarmRequest { action, member_id, alarm } = request.into_inner();
        let alarms = match AlarmAction::try_from(action) {
            Ok(AlarmAction::Get) => self.alarms(),
            Ok(AlarmAction::Activate) => self.raise(member_id, alarm).await?,
            Ok(AlarmAction::Deactivate) => self.lower(member_id, alarm).await?,
            Err(_) => return Err(Status::invalid_argument("etcdserver: unknown alarm action")),
        };
        Ok(Response::new(pb::AlarmResponse { header: self.current_header(), alarms }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Allowed)?;
        let (status, view) = (self.handle().status(), self.handle().view());
        let size = i64::try_from(view.size_bytes().max(SIZE_BYTES_MIN)).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if status.raft.leader.is_none() {
            errors.push(status::NO_LEADER.to_owned());
        }
        errors.extend(self.alarms().iter().map(|alarm| format!("memberID:{} alarm:NOSPACE ", alarm.member_id)));
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

//! `quorate.admin.v1.Admin`: the operator's way in, on the admin listener only.

use quorate_proto::admin::v1 as pb;
use quorate_proto::admin::v1::admin_server::Admin;
use quorate_raft::RoleName;
use quorate_raft::io::Change;
use quorate_raft::types::{Config, ConfigAt, MemberId, MemberInfo};
use tonic::{Request, Response, Status};

use super::{Api, VERSION, is_learner, status};
use crate::clock;
use crate::handle::NodeStatus;
use crate::tls::Plane;

/// "Never": an age nobody reaches.
pub(super) const NEVER_MS: u64 = u64::MAX;

fn to_wire(at: ConfigAt) -> pb::ConfigAt {
    pb::ConfigAt { incarnation: at.incarnation, term: at.term, index: at.index }
}

fn from_wire(at: Option<pb::ConfigAt>) -> Result<ConfigAt, Status> {
    let at = at.ok_or_else(|| {
        Status::invalid_argument("expect is not given: read committed_config_at by Status and send it along")
    })?;
    Ok(ConfigAt { incarnation: at.incarnation, term: at.term, index: at.index })
}

fn members(config: &Config) -> Vec<pb::Member> {
    let member = |(id, info): (&MemberId, &MemberInfo)| pb::Member {
        id: id.0,
        name: info.name.clone(),
        peer_urls: info.peer_urls.clone(),
        client_urls: info.client_urls.clone(),
        is_learner: config.learners.contains(id),
        is_outgoing: config.voters_outgoing.contains(id) && !config.voters.contains(id),
    };
    config.members.iter().map(member).collect()
}

fn role(status: &NodeStatus) -> &'static str {
    if status.raft.is_removed {
        return "Removed";
    }
    match status.raft.role {
        RoleName::Leader => "Leader",
        RoleName::Candidate => "Candidate",
        RoleName::PreCandidate => "PreCandidate",
        RoleName::Follower if is_learner(status) => "Learner",
        RoleName::Follower => "Follower",
    }
}

fn progress(status: &NodeStatus, now_us: u64) -> Vec<pb::Progress> {
    let progress = |peer: &quorate_raft::PeerStatus| pb::Progress {
        member_id: peer.id.0,
        matched: peer.matched,
        last_ack_age_ms: peer.last_ack.map_or(NEVER_MS, |at| age_ms(now_us, at.0)),
        active: peer.is_active,
        snapshotting: peer.is_snapshotting,
    };
    status.raft.progress.iter().map(progress).collect()
}

fn age_ms(now_us: u64, at_us: u64) -> u64 {
    now_us.saturating_sub(at_us) / 1_000
}

fn tls_plane(plane: &Plane) -> pb::TlsPlane {
    let (role, mode) = (plane.role.name().to_owned(), plane.mode.name().to_owned());
    let told = plane.told();
    pb::TlsPlane {
        role,
        mode,
        not_after: told.as_ref().map_or(0, |told| told.not_after),
        leaf_sha256: told.as_ref().map(|told| told.leaf_sha256.clone()).unwrap_or_default(),
        trust_sha256: told.map(|told| told.trust_sha256).unwrap_or_default(),
    }
}

/// Equal keys give equal ids in one cluster, so that a repeat finds the member it made.
fn learner_id(cluster_id: u64, idempotency_key: &str) -> MemberId {
    MemberId(crate::hash(&[&format!("{cluster_id:x}"), "learner", idempotency_key]))
}

impl Api {
    /// The leader's status; others are told to ask the leader.
    fn leading(&self) -> Result<std::sync::Arc<NodeStatus>, Status> {
        let status = self.handle().status();
        if status.raft.role == RoleName::Leader { Ok(status) } else { Err(status::not_leader()) }
    }

    async fn change_for_operator(
        &self,
        expect: Option<pb::ConfigAt>,
        member: u64,
        change: Change,
    ) -> Result<Response<pb::ChangeResponse>, Status> {
        self.leading()?;
        let expect = from_wire(expect)?;
        tracing::info!(?change, ?expect, "the operator asks for a change of the configuration");
        let at = self.handle().change(Some(expect), change).await.map_err(status::of_call)?;
        Ok(Response::new(pb::ChangeResponse { member_id: member, config_at: Some(to_wire(at)) }))
    }
}

#[tonic::async_trait]
impl Admin for Api {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let (status, view, now_us) = (self.handle().status(), self.handle().view(), clock::now().0);
        let (raft, identity) = (&status.raft, self.handle().identity());
        let is_leader = raft.role == RoleName::Leader;
        // The view may be newer than the status.
        let commit = raft.commit.max(view.applied_index());
        let reason = self.readiness().reason();
        let fault = if raft.has_failed {
            "a write to the log failed: this member promises nothing any more"
        } else if raft.is_removed {
            "this member was removed from the cluster"
        } else {
            ""
        };
        Ok(Response::new(pb::StatusResponse {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id.0,
            name: identity.name.clone(),
            incarnation: identity.incarnation,
            generation: identity.generation,
            version: VERSION.to_owned(),
            role: role(&status).to_owned(),
            term: raft.term,
            leader_id: raft.leader.map_or(0, |leader| leader.0),
            commit_index: commit,
            applied_index: view.applied_index(),
            last_index: raft.last_index.max(commit),
            durable_index: raft.durable,
            pending_entries: raft.last_index.saturating_sub(commit),
            leader_contact_age_ms: match raft.leader_contact {
                _ if is_leader => 0,
                Some(at) => age_ms(now_us, at.0),
                None => NEVER_MS,
            },
            elections: status.elections,
            own_term_index: raft.noop_index.unwrap_or(0),
            own_term_committed: raft.noop_index.is_some_and(|index| commit >= index),
            own_term_applied: raft.noop_index.is_some_and(|index| view.applied_index() >= index),
            quorum_confirmed_age_ms: raft.quorum_confirmed.map_or(NEVER_MS, |at| age_ms(now_us, at.0)),
            committed_config_at: Some(to_wire(raft.committed_config.at)),
            change_in_flight: raft.is_change_in_flight,
            joint: raft.newest_config.config.is_joint(),
            members: members(&raft.committed_config.config),
            progress: progress(&status, now_us),
            failover_count: status.failover_count,
            last_failover_ms: status.last_failover_ms,
            activated: status.is_activated,
            ready: reason.is_none(),
            not_ready_reason: reason.map(|reason| reason.to_string()).unwrap_or_default(),
            revision: view.revision().cast_unsigned(),
            db_size_bytes: view.size_bytes(),
            fault: fault.to_owned(),
            applied_caught_up: view.applied_index() >= commit,
            disk_free_bytes: self.handle().disk().free_bytes(),
            disk_low: self.handle().disk().is_low(),
            rot_open: self.handle().disk().rot_open(),
            led_ms: if is_leader { age_ms(now_us, status.led_since_us) } else { 0 },
            cluster_version: view.cluster_version().to_string(),
            tls: self.tls().planes().into_iter().map(|plane| tls_plane(plane)).collect(),
        }))
    }

    async fn probe(&self, _: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let view = self.handle().linearizable_view().await.map_err(status::of_call)?;
        Ok(Response::new(pb::ProbeResponse {
            read_index: view.applied_index(),
            revision: view.revision().cast_unsigned(),
        }))
    }

    async fn add_learner(
        &self,
        request: Request<pb::AddLearnerRequest>,
    ) -> Result<Response<pb::ChangeResponse>, Status> {
        let status = self.leading()?;
        let request = request.into_inner();
        if request.idempotency_key.is_empty() {
            return Err(Status::invalid_argument("idempotency_key is empty: give the UID of the record"));
        }
        if request.peer_urls.is_empty() {
            return Err(Status::invalid_argument("peer_urls is empty: other members must reach the learner"));
        }
        let id = learner_id(self.handle().identity().cluster_id, &request.idempotency_key);
        let committed = &status.raft.committed_config;
        if committed.config.contains(id) {
            // Said before under this key: the answer is the same.
            return Ok(Response::new(pb::ChangeResponse { member_id: id.0, config_at: Some(to_wire(committed.at)) }));
        }
        if committed.config.removed.contains(&id) {
            return Err(Status::failed_precondition(format!(
                "idempotency_key {:?} names member {id}, which was removed: ids are never used again, give a new key",
                request.idempotency_key
            )));
        }
        let info = MemberInfo { name: request.name, peer_urls: request.peer_urls, client_urls: request.client_urls };
        self.change_for_operator(request.expect, id.0, Change::AddLearner { id, info }).await
    }

    async fn promote(&self, request: Request<pb::PromoteRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        let pb::PromoteRequest { expect, member_id, lag_max } = request.into_inner();
        self.change_for_operator(expect, member_id, Change::Promote { id: MemberId(member_id), lag_max }).await
    }

    async fn demote(&self, request: Request<pb::DemoteRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        let pb::DemoteRequest { expect, member_id } = request.into_inner();
        self.change_for_operator(expect, member_id, Change::Demote { id: MemberId(member_id) }).await
    }

    async fn remove(&self, request: Request<pb::RemoveRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        let pb::RemoveRequest { expect, member_id } = request.into_inner();
        self.change_for_operator(expect, member_id, Change::Remove { id: MemberId(member_id) }).await
    }

    async fn swap(&self, request: Request<pb::SwapRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        let pb::SwapRequest { expect, new_member_id, old_member_id, lag_max } = request.into_inner();
        let change = Change::Swap { new: MemberId(new_member_id), old: MemberId(old_member_id), lag_max };
        self.change_for_operator(expect, new_member_id, change).await
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let status = self.leading()?;
        let pb::TransferLeaderRequest { to, expect_term } = request.into_inner();
        if expect_term != 0 && expect_term != status.raft.term {
            return Err(Status::failed_precondition(format!(
                "the term is {}, not {expect_term}: look again who leads",
                status.raft.term
            )));
        }
        tracing::info!(to = format!("{to:x}"), "the operator asks to hand leadership over");
        self.handle().transfer(MemberId(to)).await.map_err(status::of_call)?;
        Ok(Response::new(pb::TransferLeaderResponse {}))
    }

    async fn activate(&self, request: Request<pb::ActivateRequest>) -> Result<Response<pb::ActivateResponse>, Status> {
        let (asked, own) = (request.get_ref().cluster_id, self.handle().identity().cluster_id);
        if asked != own {
            return Err(Status::failed_precondition(format!(
                "cluster_id is {asked:x}, but this member belongs to {own:x}: it is not the seed that was recorded"
            )));
        }
        self.handle().activate().await.map_err(status::of_call)?;
        Ok(Response::new(pb::ActivateResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_keeps_its_id_per_cluster_and_key() {
        assert_eq!(learner_id(1, "uid"), learner_id(1, "uid"));
        assert_ne!(learner_id(1, "uid"), learner_id(2, "uid"));
        assert_ne!(learner_id(1, "uid"), learner_id(1, "uid2"));
        assert_ne!(learner_id(1, "uid").0, 0);
    }

    #[test]
    fn a_change_without_an_expected_configuration_is_refused() {
        assert_eq!(from_wire(None).expect_err("none").code(), tonic::Code::InvalidArgument);
    }
}

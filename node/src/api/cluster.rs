//! `etcdserverpb.Cluster`.

use std::time::{Duration, SystemTime};

use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::cluster_server::Cluster;
use quorate_raft::io::{Change, Refusal};
use quorate_raft::types::{Config, ConfigAt, MemberId, MemberInfo};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Api, ForLearner, status};
use crate::handle::CallError;

/// Learners at one time, etcd's limit for calls by hand. The operator's own calls are not bound by it.
const LEARNERS_MAX: usize = 1;
/// A learner is promoted when it is at most this many entries behind.
const PROMOTE_LAG_MAX: u64 = 1_000;
/// Changes refused for the moment are asked again this often.
const AGAIN_EVERY: Duration = Duration::from_millis(50);

impl Api {
    /// The header of membership calls has no revision, as in etcd.
    fn cluster_header(&self) -> Option<pb::ResponseHeader> {
        Some(self.header(0))
    }

    fn config(&self) -> std::sync::Arc<Config> {
        self.handle().status().raft.committed_config.config.clone()
    }

    fn members(&self) -> Vec<pb::Member> {
        members(&self.config())
    }

    /// Makes a change. What is refused for the moment was certainly not done, so it is asked again within the time of
    /// a request.
    async fn change(&self, change: Change) -> Result<(), Status> {
        let due = Instant::now() + self.handle().request_timeout();
        loop {
            let error = match self.handle().change(None, change.clone()).await {
                Ok(at) => {
                    self.await_config(at, due).await;
                    return Ok(());
                }
                Err(error) => error,
            };
            let may_change = matches!(
                error,
                CallError::NoLeader
                    | CallError::Refused(
                        Refusal::NotLeader { .. }
                            | Refusal::NotReady
                            | Refusal::Transferring { .. }
                            | Refusal::ChangeInFlight
                    )
                    | CallError::NotLeader
            );
            if !may_change || Instant::now() + AGAIN_EVERY >= due {
                return Err(status::of_call(error));
            }
            tokio::time::sleep(AGAIN_EVERY).await;
        }
    }

    /// Waits until this member knows the configuration, so that the answer lists what it did.
    async fn await_config(&self, at: ConfigAt, due: Instant) {
        while self.handle().status().raft.committed_config.at.index < at.index && Instant::now() < due {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Joint configurations list both halves: each of them still counts.
pub(super) fn members(config: &Config) -> Vec<pb::Member> {
    let member = |(id, info): (&MemberId, &MemberInfo)| pb::Member {
        id: id.0,
        name: info.name.clone(),
        peer_ur_ls: info.peer_urls.clone(),
        client_ur_ls: info.client_urls.clone(),
        is_learner: config.learners.contains(id),
    };
    config.members.iter().map(member).collect()
}

/// Like etcd: a scheme we speak, a host, a port, nothing behind it.
fn is_member_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let Some((host, port)) = rest.rsplit_once(':') else { return false };
    (scheme == "http" || scheme == "https")
        && !host.is_empty()
        && !host.contains(['/', '?', '#', '@'])
        && port.parse::<u16>().is_ok()
}

fn check_urls(config: &Config, urls: &[String], besides: Option<MemberId>) -> Result<(), Status> {
    if urls.is_empty() || !urls.iter().all(|url| is_member_url(url)) {
        return Err(status::invalid_member_urls());
    }
    let others = config.members.iter().filter(|(id, _)| Some(**id) != besides);
    if others.flat_map(|(_, info)| &info.peer_urls).any(|url| urls.contains(url)) {
        return Err(status::peer_urls_exist());
    }
    Ok(())
}

#[tonic::async_trait]
impl Cluster for Api {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let pb::MemberAddRequest { peer_ur_ls, is_learner } = request.into_inner();
        if !is_learner {
            // A voter that has not caught up lowers the number of failures the cluster survives.
            return Err(Status::failed_precondition(
                "etcdserver: members are added as learners only: add with --learner, start it, then promote it",
            ));
        }
        let config = self.config();
        check_urls(&config, &peer_ur_ls, None)?;
        if config.learners.len() >= LEARNERS_MAX {
            return Err(status::too_many_learners());
        }
        let id = MemberId(self.new_member_id(&peer_ur_ls));
        let info = MemberInfo { name: String::new(), peer_urls: peer_ur_ls.clone(), client_urls: Vec::new() };
        self.change(Change::AddLearner { id, info }).await?;
        let member = pb::Member { id: id.0, peer_ur_ls, is_learner: true, ..Default::default() };
        let (header, members) = (self.cluster_header(), self.members());
        Ok(Response::new(pb::MemberAddResponse { header, member: Some(member), members }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        self.change(Change::Remove { id: MemberId(request.get_ref().id) }).await?;
        Ok(Response::new(pb::MemberRemoveResponse { header: self.cluster_header(), members: self.members() }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let pb::MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let (id, config) = (MemberId(id), self.config());
        check_urls(&config, &peer_ur_ls, Some(id))?;
        let info = config.members.get(&id).ok_or_else(status::member_not_found)?;
        let info = MemberInfo { peer_urls: peer_ur_ls, ..info.clone() };
        self.change(Change::UpdateInfo { id, info }).await?;
        Ok(Response::new(pb::MemberUpdateResponse { header: self.cluster_header(), members: self.members() }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        if request.get_ref().linearizable {
            self.handle().linearizable_view().await.map_err(status::of_call)?;
        }
        Ok(Response::new(pb::MemberListResponse { header: self.cluster_header(), members: self.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let id = MemberId(request.get_ref().id);
        self.change(Change::Promote { id, lag_max: PROMOTE_LAG_MAX }).await?;
        Ok(Response::new(pb::MemberPromoteResponse { header: self.cluster_header(), members: self.members() }))
    }
}

impl Api {
    /// Ids are never used again, so the time goes in.
    fn new_member_id(&self, peer_urls: &[String]) -> u64 {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (cluster, time) = (self.handle().identity().cluster_id.to_string(), since_epoch.as_nanos().to_string());
        let mut parts = vec![cluster.as_str(), time.as_str()];
        parts.extend(peer_urls.iter().map(String::as_str));
        crate::hash(&parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_members_have_scheme_host_and_port_only() {
        for good in ["http://127.0.0.1:2380", "https://db-0.db.ns.svc:2380", "http://[::1]:2380"] {
            assert!(is_member_url(good), "{good}");
        }
        for bad in ["", "127.0.0.1:2380", "http://host", "http://:2380", "ftp://h:1", "http://h:70000", "http://h/x:1"]
        {
            assert!(!is_member_url(bad), "{bad}");
        }
    }

    #[test]
    fn addresses_of_other_members_are_refused_own_ones_are_not() {
        let url = "http://a:1".to_owned();
        let info = MemberInfo { peer_urls: vec![url.clone()], ..Default::default() };
        let mut config = Config::default();
        config.voters.insert(MemberId(1));
        config.members.insert(MemberId(1), info);
        let refused = check_urls(&config, std::slice::from_ref(&url), None).expect_err("taken");
        assert_eq!(refused.message(), "etcdserver: Peer URLs already exists");
        assert!(check_urls(&config, &[url], Some(MemberId(1))).is_ok());
        assert_eq!(check_urls(&config, &[], None).expect_err("none").code(), tonic::Code::InvalidArgument);
    }
}

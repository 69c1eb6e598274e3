//! The way to the members: their own word, a linearizable round, and changes of membership.
//!
//! Every call has a deadline, and every membership call carries the configuration it was decided on. Nothing is retried here.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::future::join_all;
use quorate_plan::{
    ClusterId, ConfigAt, ConfigMember, MemberId, MemberRecord, MemberWord, Probe, Progress, Role, Step,
};
use quorate_proto::admin::v1 as wire;
use quorate_proto::admin::v1::admin_client::AdminClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::world::{ActError, AdminTls, MemberUrls, Seen};

/// A member that needs longer for a word about itself counts as silent.
const STATUS_LIMIT: Duration = Duration::from_millis(1_500);
/// A linearizable round takes two network round trips; more than this is no service.
const PROBE_LIMIT: Duration = Duration::from_millis(2_500);
/// A change is committed by the slower half of the members, on their disks.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);
/// Connections kept, each of which takes 54 KiB (measured with TLS). Members beyond these are connected to anew at each look, which
/// costs a handshake every few seconds.
const CHANNELS_MAX: usize = 96;
/// A connection that was not used for this long makes room for another; every cluster that is looked after is looked at more often.
const UNUSED: Duration = Duration::from_secs(60);

/// Connections to members.
#[derive(Debug, Default)]
pub struct Members {
    channels: Mutex<Channels>,
}

/// By admin URL and certificate, with when each was used last.
#[derive(Debug, Default)]
struct Channels(HashMap<String, (Channel, Instant)>);

impl Channels {
    fn get(&mut self, known_as: &str, now: Instant) -> Option<Channel> {
        let (channel, used) = self.0.get_mut(known_as)?;
        *used = now;
        Some(channel.clone())
    }

    /// If there is room. Clusters come round one after the other: the one not used for longest is the next to be asked for, so
    /// it must not make room for one that was just used.
    fn keep(&mut self, known_as: String, channel: Channel, now: Instant) {
        if self.0.len() >= CHANNELS_MAX {
            self.0.retain(|_, (_, used)| now.duration_since(*used) < UNUSED);
        }
        if self.0.len() < CHANNELS_MAX {
            self.0.insert(known_as, (channel, now));
        }
    }
}

/// What the operator shows to members, and whom it trusts.
#[derive(Clone)]
pub struct Access {
    authorities: Certificate,
    own: Identity,
    /// Tells one from another.
    pub sha256: String,
}

/// Says nothing: a key is part of it.
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl Access {
    /// All in PEM.
    pub fn new(authorities: Vec<u8>, cert: Vec<u8>, key: Vec<u8>) -> Access {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        [&authorities, &cert].into_iter().for_each(|part| context.update(part));
        let sha256 = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Access { authorities: Certificate::from_pem(authorities), own: Identity::from_pem(cert, key), sha256 }
    }
}

/// A step that is carried out by a member rather than by a world.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub to: MemberId,
    pub request: Request,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    AddLearner(wire::AddLearnerRequest),
    Promote(wire::PromoteRequest),
    Remove(wire::RemoveRequest),
    Swap(wire::SwapRequest),
    Transfer(wire::TransferLeaderRequest),
    Activate(wire::ActivateRequest),
}

/// The member call a step consists of; nothing for steps of the world. `urls` is asked for a record that is to be added.
///
/// # Errors
/// Those of `urls`.
pub fn call_of(step: &Step, urls: impl FnOnce(&str) -> Result<MemberUrls, ActError>) -> Result<Option<Call>, ActError> {
    let call = |to: MemberId, request| Ok(Some(Call { to, request }));
    match step {
        Step::AddLearner { record, leader, expect } => {
            let MemberUrls { peer, client } = urls(&record.name)?;
            call(
                *leader,
                Request::AddLearner(wire::AddLearnerRequest {
                    expect: Some(config_at(*expect)),
                    idempotency_key: record.uid.clone(),
                    name: record.name.clone(),
                    peer_urls: peer,
                    client_urls: client,
                }),
            )
        }
        Step::Promote { record: _, member_id, leader, expect, lag_max } => call(
            *leader,
            Request::Promote(wire::PromoteRequest {
                expect: Some(config_at(*expect)),
                member_id: member_id.0,
                lag_max: *lag_max,
            }),
        ),
        Step::RemoveMember { name: _, member_id, leader, expect } => call(
            *leader,
            Request::Remove(wire::RemoveRequest { expect: Some(config_at(*expect)), member_id: member_id.0 }),
        ),
        Step::SwapVoter { record: _, new, old, leader, expect, lag_max } => call(
            *leader,
            Request::Swap(wire::SwapRequest {
                expect: Some(config_at(*expect)),
                new_member_id: new.0,
                old_member_id: old.0,
                lag_max: *lag_max,
            }),
        ),
        Step::TransferLeader { leader, to, expect_term } => {
            call(*leader, Request::Transfer(wire::TransferLeaderRequest { to: to.0, expect_term: *expect_term }))
        }
        Step::Activate { record: _, member_id, cluster_id } => {
            call(*member_id, Request::Activate(wire::ActivateRequest { cluster_id: cluster_id.0 }))
        }
        Step::AddFinalizer
        | Step::ApplyObjects { .. }
        | Step::SetBudget { .. }
        | Step::CreateMember { .. }
        | Step::CreateVolume { .. }
        | Step::AdoptVolume { .. }
        | Step::RecordMemberId { .. }
        | Step::StartMember { .. }
        | Step::RecordBootstrap { .. }
        | Step::SealSeed { .. }
        | Step::MarkRetiring { .. }
        | Step::StopMember { .. }
        | Step::DeletePod { .. }
        | Step::DeleteVolume { .. }
        | Step::ReleaseVolume { .. }
        | Step::DropRecord { .. }
        | Step::ApplyTemplate { .. }
        | Step::RestartMember { .. }
        | Step::GrowVolume { .. }
        | Step::Finish => Ok(None),
    }
}

fn config_at(at: ConfigAt) -> wire::ConfigAt {
    let ConfigAt { incarnation, term, index } = at;
    wire::ConfigAt { incarnation, term, index }
}

impl Members {
    /// Asks every member for its own word, then one of them for a linearizable round, and adds both to the reading.
    pub async fn ask(&self, seen: &mut Seen) {
        let asked = seen.observation.records.iter().filter_map(|record| {
            let pod_uid = record.pod.as_ref()?.uid.clone();
            Some((record, pod_uid, seen.admin_urls.get(&record.name)?.clone()))
        });
        let tls = &seen.admin_tls;
        let answers = asked.map(|(record, pod_uid, url)| async move {
            let told = self.word(record, pod_uid, &url, tls.get(&url)).await;
            told.map(|(word, since, planes)| ((word, since), (record.name.clone(), planes)))
        });
        let (told, planes): (Vec<(MemberWord, Instant)>, Vec<_>) =
            join_all(answers).await.into_iter().flatten().unzip();
        seen.tls = planes.into_iter().collect();
        let probe = self.probe(&told, seen).await;
        let age = |since: &Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        seen.observation.words =
            told.into_iter().map(|(word, since)| MemberWord { age_ms: age(&since), ..word }).collect();
        seen.observation.probe = probe;
    }

    async fn word(
        &self,
        record: &MemberRecord,
        pod_uid: String,
        url: &str,
        tls: Option<&AdminTls>,
    ) -> Option<(MemberWord, Instant, Vec<wire::TlsPlane>)> {
        // The answer is at least as young as the question.
        let asked = Instant::now();
        let mut client = self.client(url, tls).ok()?;
        let answer = tokio::time::timeout(STATUS_LIMIT, client.status(wire::StatusRequest {})).await;
        match answer {
            Ok(Ok(response)) => {
                let mut response = response.into_inner();
                let planes = std::mem::take(&mut response.tls);
                member_word(response, record, pod_uid).map(|word| (word, asked, planes))
            }
            Ok(Err(status)) => {
                tracing::debug!(member = record.name, "no word: {}", told_by(&status));
                None
            }
            Err(_) => {
                tracing::debug!(member = record.name, "no word within {} ms", STATUS_LIMIT.as_millis());
                self.forget(url);
                None
            }
        }
    }

    /// Through the newest leader if somebody claims to be one, or else through anybody.
    async fn probe(&self, told: &[(MemberWord, Instant)], seen: &Seen) -> Option<Probe> {
        let (word, _) = told.iter().max_by_key(|(w, _)| (w.role == Role::Leader, w.term, w.ready))?;
        let url = seen.admin_urls.get(&word.record)?;
        let asked = Instant::now();
        let outcome = match self.client(url, seen.admin_tls.get(url)) {
            Err(error) => Err(error.to_string()),
            Ok(mut client) => match tokio::time::timeout(PROBE_LIMIT, client.probe(wire::ProbeRequest {})).await {
                Ok(Ok(answer)) => Ok(answer.into_inner().read_index),
                Ok(Err(status)) => Err(told_by(&status)),
                Err(_) => Err(format!("no answer within {} ms", PROBE_LIMIT.as_millis())),
            },
        };
        Some(Probe { age_ms: u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX), outcome })
    }

    /// Carries out one member call.
    ///
    /// # Errors
    /// `News` when the member refused because of what it knows better (configuration, term, lag); `Failed` when the outcome is
    /// not known.
    pub async fn call(&self, call: Call, seen: &Seen) -> Result<(), ActError> {
        let Some(url) = seen.admin_url_of(call.to) else {
            return Err(ActError::News(format!("member {} has no address now", call.to)));
        };
        let client = self.client(url, seen.admin_tls.get(url))?;
        match tokio::time::timeout(CHANGE_LIMIT, send(client, call.request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => Err(refusal(&status)),
            Err(_) => {
                Err(ActError::Failed(format!("member {} did not answer within {} s", call.to, CHANGE_LIMIT.as_secs())))
            }
        }
    }

    fn client(&self, url: &str, tls: Option<&AdminTls>) -> Result<AdminClient<Channel>, ActError> {
        let mut channels = self.channels.lock().expect("no panic happens while connections are looked up");
        // A connection made with another certificate is another connection.
        let known_as = tls.map_or_else(|| url.to_owned(), |tls| format!("{url} {} {}", tls.host, tls.access.sha256));
        let now = Instant::now();
        if let Some(channel) = channels.get(&known_as, now) {
            return Ok(AdminClient::new(channel));
        }
        let mut endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| ActError::Failed(format!("admin URL {url:?}: {error}")))?;
        if let Some(AdminTls { host, access }) = tls {
            let config = ClientTlsConfig::new().domain_name(host).ca_certificate(access.authorities.clone());
            endpoint = endpoint
                .tls_config(config.identity(access.own.clone()))
                .map_err(|error| ActError::Failed(format!("admin URL {url:?}: TLS: {error}")))?;
        }
        let channel = endpoint.connect_timeout(STATUS_LIMIT).tcp_nodelay(true).connect_lazy();
        channels.keep(known_as, channel.clone(), now);
        Ok(AdminClient::new(channel))
    }

    /// A connection that does not answer may lead to a machine that is no more.
    fn forget(&self, url: &str) {
        let mut channels = self.channels.lock().expect("no panic happens while connections are looked up");
        channels.0.retain(|known_as, _| known_as.split(' ').next() != Some(url));
    }
}

async fn send(mut client: AdminClient<Channel>, request: Request) -> Result<(), Status> {
    match request {
        Request::AddLearner(r) => client.add_learner(r).await.map(drop),
        Request::Promote(r) => client.promote(r).await.map(drop),
        Request::Remove(r) => client.remove(r).await.map(drop),
        Request::Swap(r) => client.swap(r).await.map(drop),
        Request::Transfer(r) => client.transfer_leader(r).await.map(drop),
        Request::Activate(r) => client.activate(r).await.map(drop),
    }
}

fn told_by(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn refusal(status: &Status) -> ActError {
    match status.code() {
        Code::FailedPrecondition | Code::Aborted | Code::NotFound | Code::AlreadyExists | Code::OutOfRange => {
            ActError::News(told_by(status))
        }
        _ => ActError::Failed(told_by(status)),
    }
}

/// Reads a member's answer. Nothing when somebody else answered under this address.
fn member_word(answer: wire::StatusResponse, record: &MemberRecord, pod_uid: String) -> Option<MemberWord> {
    if answer.name != record.name {
        tracing::debug!(member = record.name, answered = answer.name, "another member answers at this address");
        return None;
    }
    let at = answer.committed_config_at.unwrap_or_default();
    Some(MemberWord {
        record: record.name.clone(),
        pod_uid,
        age_ms: 0,
        cluster_id: ClusterId(answer.cluster_id),
        member_id: MemberId(answer.member_id),
        incarnation: answer.incarnation,
        version: answer.version,
        role: Role::parse(&answer.role)?,
        term: answer.term,
        leader_id: (answer.leader_id != 0).then_some(MemberId(answer.leader_id)),
        commit_index: answer.commit_index,
        applied_index: answer.applied_index,
        last_index: answer.last_index,
        pending_entries: answer.pending_entries,
        leader_contact_age_ms: answer.leader_contact_age_ms,
        elections: answer.elections,
        own_term_index: answer.own_term_index,
        own_term_committed: answer.own_term_committed,
        own_term_applied: answer.own_term_applied,
        quorum_confirmed_age_ms: answer.quorum_confirmed_age_ms,
        led_ms: answer.led_ms,
        config_at: ConfigAt { incarnation: at.incarnation, term: at.term, index: at.index },
        change_in_flight: answer.change_in_flight,
        joint: answer.joint,
        members: answer.members.into_iter().map(config_member).collect(),
        progress: answer.progress.into_iter().map(progress).collect(),
        failover_count: answer.failover_count,
        last_failover_ms: answer.last_failover_ms,
        activated: answer.activated,
        ready: answer.ready,
        not_ready_reason: answer.not_ready_reason,
        fault: answer.fault,
        disk_low: answer.disk_low,
        rot_open: answer.rot_open,
    })
}

fn config_member(member: wire::Member) -> ConfigMember {
    let wire::Member { id, name, is_learner, is_outgoing, .. } = member;
    ConfigMember { id: MemberId(id), name, is_learner, is_outgoing }
}

fn progress(progress: wire::Progress) -> Progress {
    let wire::Progress { member_id, matched, last_ack_age_ms, active, snapshotting } = progress;
    Progress { member_id: MemberId(member_id), matched, last_ack_age_ms, active, snapshotting }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use quorate_plan::RecordRef;

    use super::*;

    #[test]
    fn a_learner_is_added_under_its_records_uid() {
        let record = RecordRef { name: "orders-b7xk2".into(), uid: "u-1".into(), resource_version: "7".into() };
        let expect = ConfigAt { incarnation: 1, term: 2, index: 3 };
        let step = Step::AddLearner { record, leader: MemberId(9), expect };
        let urls = |name: &str| Ok(MemberUrls { peer: vec![format!("http://{name}:2380")], client: Vec::new() });
        let call = call_of(&step, urls).unwrap().unwrap();
        let Request::AddLearner(request) = call.request else { panic!("{call:?}") };
        assert_eq!((call.to, request.idempotency_key.as_str()), (MemberId(9), "u-1"));
        assert_eq!(request.expect, Some(wire::ConfigAt { incarnation: 1, term: 2, index: 3 }));
        assert_eq!(request.peer_urls, ["http://orders-b7xk2:2380"]);
    }

    #[tokio::test]
    async fn connections_in_use_are_kept_and_others_make_room() {
        let mut channels = Channels::default();
        let channel = || Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let start = Instant::now();
        (0..CHANNELS_MAX).for_each(|n| channels.keep(n.to_string(), channel(), start));
        let soon = start + UNUSED / 2;
        channels.keep("one more".to_owned(), channel(), soon);
        assert!(channels.get("one more", soon).is_none(), "there is no room");
        assert!(channels.get("0", soon).is_some());
        channels.keep("one more".to_owned(), channel(), start + UNUSED);
        assert_eq!(channels.0.keys().map(String::as_str).collect::<BTreeSet<_>>(), ["0", "one more"].into());
    }

    #[test]
    fn a_refused_compare_and_set_is_news_and_silence_is_a_failure() {
        assert!(matches!(refusal(&Status::failed_precondition("configuration moved on")), ActError::News(_)));
        assert!(matches!(refusal(&Status::unavailable("closed")), ActError::Failed(_)));
        assert!(matches!(refusal(&Status::deadline_exceeded("late")), ActError::Failed(_)));
    }
}

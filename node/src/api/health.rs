//! Whether this member lives and whether it can serve: judged in one place, told over gRPC and HTTP.
//!
//! Living never depends on other members: restarting a member because others are gone would make things worse.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use quorate_proto::health::v1::health_check_response::ServingStatus;
use quorate_proto::health::v1::health_server::Health;
use quorate_proto::health::v1::{HealthCheckRequest, HealthCheckResponse};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{Api, is_learner};
use crate::clock;
use crate::handle::NodeStatus;

/// The driver publishes its status many times a second; one that has not for this long hangs.
const DRIVER_SILENT_MAX_US: u64 = 10_000_000;
/// Between two probes by a linearizable read: the election timeout, within these bounds. A leader that was lost is not
/// noticed sooner anyhow.
const PROBE_EVERY_READY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
const PROBE_EVERY_NOT_READY: Duration = Duration::from_millis(100);
/// A probe that takes longer says that clients would wait too.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// What the last probe found: `None` when everything holds, else why not.
#[derive(Debug)]
pub(crate) struct Readiness(watch::Sender<Option<Arc<str>>>);

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness(watch::Sender::new(Some(Arc::from("not probed yet"))))
    }
}

impl Readiness {
    /// Why this member is not ready; `None` when it is.
    pub(crate) fn reason(&self) -> Option<Arc<str>> {
        self.0.borrow().clone()
    }

    fn set(&self, found: Option<Arc<str>>) {
        self.0.send_if_modified(|last| {
            let is_new = *last != found;
            *last = found;
            is_new
        });
    }
}

/// Why this member does not live; `None` when it does.
pub(crate) fn why_not_live(status: &NodeStatus, now_us: u64) -> Option<String> {
    let silent_us = now_us.saturating_sub(status.at_us);
    (silent_us > DRIVER_SILENT_MAX_US).then(|| format!("the driver has been silent for {} ms", silent_us / 1_000))
}

/// What gives this member a part in serving, whoever leads, and why it has none.
pub(super) fn voter_checks(status: &NodeStatus) -> [(&'static str, Option<&'static str>); 3] {
    [
        ("activated", (!status.is_activated).then_some("waits for the operator to activate it")),
        ("not_removed", status.raft.is_removed.then_some("was removed from the cluster")),
        ("non_learner", is_learner(status).then_some("is a learner")),
    ]
}

/// Why this member has no part in serving; `None` when it has.
pub(super) fn why_no_voter(status: &NodeStatus) -> Option<&'static str> {
    voter_checks(status).into_iter().find_map(|(_, reason)| reason)
}

/// Probes until the process ends.
pub(crate) async fn probe(api: Api) {
    let (shortest, longest) = PROBE_EVERY_READY;
    loop {
        let found = why_not_ready(&api).await.map(Arc::from);
        let pause = if found.is_none() {
            api.options().election_timeout.clamp(shortest, longest)
        } else {
            PROBE_EVERY_NOT_READY
        };
        api.readiness().set(found);
        tokio::time::sleep(pause).await;
    }
}

async fn why_not_ready(api: &Api) -> Option<String> {
    let status = api.handle().status();
    if let Some(reason) = why_not_live(&status, clock::now().0) {
        return Some(reason);
    }
    if let Some(reason) = why_no_voter(&status) {
        return Some(reason.to_owned());
    }
    match tokio::time::timeout(PROBE_LIMIT, api.handle().linearizable_view()).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("a linearizable read failed: {error}")),
        Err(_) => Some(format!("a linearizable read took more than {} ms", PROBE_LIMIT.as_millis())),
    }
}

fn serving(reason: Option<&str>) -> HealthCheckResponse {
    let status = if reason.is_none() { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Api {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(serving(self.readiness().reason().as_deref())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !request.get_ref().service.is_empty() {
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            let once = futures::stream::once(std::future::ready(Ok(unknown)));
            // The protocol wants the stream to stay open, because a service may be registered later.
            return Ok(Response::new(Box::pin(futures::StreamExt::chain(once, futures::stream::pending()))));
        }
        let mut changes = self.readiness().0.subscribe();
        changes.mark_changed();
        let stream = futures::stream::unfold(changes, |mut changes| async move {
            changes.changed().await.ok()?;
            let response = serving(changes.borrow_and_update().as_deref());
            Some((Ok(response), changes))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

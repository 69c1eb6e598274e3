//! The admin service of a member that cannot become one: it says why, and refuses everything else.
//!
//! Whoever runs the cluster must hear it from the member: a process that only waits looks like one that starts slowly.

use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use quorate_proto::admin::v1 as pb;
use quorate_proto::admin::v1::admin_server::{Admin, AdminServer};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::VERSION;
use super::admin::NEVER_MS;
use crate::tls::{self, Mode, Plane};

/// Answers on the admin sockets from the first fault on, until it is dropped; the sockets stay open for who comes after.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Dropped with this: the end of serving.
    _until: Vec<oneshot::Sender<()>>,
}

impl Faults {
    pub(crate) fn serve(
        name: &str,
        told: &watch::Receiver<String>,
        sockets: &[(TcpListener, Mode)],
        plane: &Arc<Plane>,
    ) -> Result<Faults> {
        let mut ends = Vec::new();
        for (socket, mode) in sockets {
            let copy = std::net::TcpListener::from(socket.as_fd().try_clone_to_owned().context("the admin socket")?);
            let (until, ended) = oneshot::channel();
            let fault = Fault { name: name.to_owned(), told: told.clone() };
            tokio::spawn(answer(fault, copy, (plane.clone(), *mode), ended));
            ends.push(until);
        }
        Ok(Faults { _until: ends })
    }
}

async fn answer(
    mut fault: Fault,
    socket: std::net::TcpListener,
    (plane, mode): (Arc<Plane>, Mode),
    mut ended: oneshot::Receiver<()>,
) {
    // Most members never have a fault: nobody is kept from waiting for the real answers then.
    tokio::select! {
        told = fault.told.wait_for(|told| !told.is_empty()) => if told.is_err() { return },
        _ = &mut ended => return,
    }
    let served = async {
        let incoming = tls::incoming(TcpListener::from_std(socket)?, plane, mode, super::tune, tls::Door::open());
        let server = Server::builder().add_service(AdminServer::new(fault));
        server.serve_with_incoming_shutdown(incoming, async { drop(ended.await) }).await?;
        anyhow::Ok(())
    };
    if let Err(error) = served.await {
        tracing::warn!("nobody can be told of the fault: {error:#}");
    }
}

struct Fault {
    name: String,
    told: watch::Receiver<String>,
}

impl Fault {
    fn why(&self) -> String {
        self.told.borrow().clone()
    }

    fn refuse<T>(&self) -> Result<Response<T>, Status> {
        Err(Status::failed_precondition(self.why()))
    }
}

#[tonic::async_trait]
impl Admin for Fault {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        Ok(Response::new(pb::StatusResponse {
            name: self.name.clone(),
            version: VERSION.to_owned(),
            role: "Follower".to_owned(),
            leader_contact_age_ms: NEVER_MS,
            quorum_confirmed_age_ms: NEVER_MS,
            not_ready_reason: self.why(),
            fault: self.why(),
            ..pb::StatusResponse::default()
        }))
    }

    async fn probe(&self, _: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        self.refuse()
    }
    async fn add_learner(&self, _: Request<pb::AddLearnerRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        self.refuse()
    }
    async fn promote(&self, _: Request<pb::PromoteRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        self.refuse()
    }
    async fn demote(&self, _: Request<pb::DemoteRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        self.refuse()
    }
    async fn remove(&self, _: Request<pb::RemoveRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        self.refuse()
    }
    async fn swap(&self, _: Request<pb::SwapRequest>) -> Result<Response<pb::ChangeResponse>, Status> {
        self.refuse()
    }
    async fn transfer_leader(
        &self,
        _: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        self.refuse()
    }
    async fn activate(&self, _: Request<pb::ActivateRequest>) -> Result<Response<pb::ActivateResponse>, Status> {
        self.refuse()
    }
}

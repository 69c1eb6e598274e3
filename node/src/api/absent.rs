//! Services that are not there yet. They are registered, so that a client is told what is missing and not only that
//! a method is unknown.

use std::pin::Pin;

use futures::Stream;
use quorate_proto::etcdserverpb::auth_server::Auth;
use quorate_proto::etcdserverpb::lease_server::Lease;
use quorate_proto::etcdserverpb::{self as pb, LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use quorate_proto::v3electionpb as election;
use quorate_proto::v3electionpb::election_server::Election;
use quorate_proto::v3lockpb as lock;
use quorate_proto::v3lockpb::lock_server::Lock;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, ForLearner, status};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Absent;

type Nothing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What an `async fn` of such a trait is to the compiler; the attribute does not see through a macro.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

macro_rules! absent {
    ($what:literal: $($method:ident($request:ty) -> $response:ty;)*) => {
        $(fn $method<'life0, 'async_trait>(&'life0 self, _: Request<$request>) -> Answer<'async_trait, $response>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(std::future::ready(Err(status::absent($what))))
        })*
    };
}

#[tonic::async_trait]
impl Lease for Absent {
    type LeaseKeepAliveStream = Nothing<LeaseKeepAliveResponse>;
    absent! { "the lease service":
        lease_grant(pb::LeaseGrantRequest) -> pb::LeaseGrantResponse;
        lease_revoke(pb::LeaseRevokeRequest) -> pb::LeaseRevokeResponse;
        lease_keep_alive(Streaming<LeaseKeepAliveRequest>) -> Self::LeaseKeepAliveStream;
        lease_time_to_live(pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse;
        lease_leases(pb::LeaseLeasesRequest) -> pb::LeaseLeasesResponse;
    }
}

#[tonic::async_trait]
impl Lock for Absent {
    absent! { "the lock service, for want of leases,":
        lock(lock::LockRequest) -> lock::LockResponse;
        unlock(lock::UnlockRequest) -> lock::UnlockResponse;
    }
}

#[tonic::async_trait]
impl Election for Absent {
    type ObserveStream = Nothing<election::LeaderResponse>;
    absent! { "the election service, for want of leases,":
        campaign(election::CampaignRequest) -> election::CampaignResponse;
        proclaim(election::ProclaimRequest) -> election::ProclaimResponse;
        leader(election::LeaderRequest) -> election::LeaderResponse;
        observe(election::LeaderRequest) -> Self::ObserveStream;
        resign(election::ResignRequest) -> election::ResignResponse;
    }
}

#[tonic::async_trait]
impl Auth for Api {
    /// There are no users, so nobody has to be one: the truth, not a stub.
    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        self.admit(request.metadata(), ForLearner::Refused)?;
        let header = Some(self.header(self.handle().view().revision()));
        Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
    }

    absent! { "authentication":
        auth_enable(pb::AuthEnableRequest) -> pb::AuthEnableResponse;
        auth_disable(pb::AuthDisableRequest) -> pb::AuthDisableResponse;
        authenticate(pb::AuthenticateRequest) -> pb::AuthenticateResponse;
        user_add(pb::AuthUserAddRequest) -> pb::AuthUserAddResponse;
        user_get(pb::AuthUserGetRequest) -> pb::AuthUserGetResponse;
        user_list(pb::AuthUserListRequest) -> pb::AuthUserListResponse;
        user_delete(pb::AuthUserDeleteRequest) -> pb::AuthUserDeleteResponse;
        user_change_password(pb::AuthUserChangePasswordRequest) -> pb::AuthUserChangePasswordResponse;
        user_grant_role(pb::AuthUserGrantRoleRequest) -> pb::AuthUserGrantRoleResponse;
        user_revoke_role(pb::AuthUserRevokeRoleRequest) -> pb::AuthUserRevokeRoleResponse;
        role_add(pb::AuthRoleAddRequest) -> pb::AuthRoleAddResponse;
        role_get(pb::AuthRoleGetRequest) -> pb::AuthRoleGetResponse;
        role_list(pb::AuthRoleListRequest) -> pb::AuthRoleListResponse;
        role_delete(pb::AuthRoleDeleteRequest) -> pb::AuthRoleDeleteResponse;
        role_grant_permission(pb::AuthRoleGrantPermissionRequest) -> pb::AuthRoleGrantPermissionResponse;
        role_revoke_permission(pb::AuthRoleRevokePermissionRequest) -> pb::AuthRoleRevokePermissionResponse;
    }
}

//! What goes over the wire: the etcd v3 API, the gRPC health protocol and the admin service, as generated types,
//! clients and servers.
//!
//! The texts under `proto/` are our own; names and numbers agree with etcd 3.7, so that its clients understand us.
//! No logic belongs here.

macro_rules! package {
    ($module:ident, $name:literal) => {
        #[allow(
            missing_debug_implementations,
            clippy::all,
            clippy::pedantic,
            clippy::allow_attributes_without_reason,
            reason = "generated code follows its own style"
        )]
        pub mod $module {
            tonic::include_proto!($name);
        }
    };
}

package!(mvccpb, "mvccpb");
package!(authpb, "authpb");
package!(etcdserverpb, "etcdserverpb");
package!(v3lockpb, "v3lockpb");
package!(v3electionpb, "v3electionpb");

/// `grpc.health.v1`.
pub mod health {
    package!(v1, "grpc.health.v1");
}

/// `quorate.admin.v1`.
pub mod admin {
    package!(v1, "quorate.admin.v1");
}

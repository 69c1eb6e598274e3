//! Compiles the protocol texts without protoc.

use std::error::Error;

const FILES: [&str; 12] = [
    "etcd/mvccpb/kv.proto",
    "etcd/authpb/auth.proto",
    "etcd/etcdserverpb/kv.proto",
    "etcd/etcdserverpb/watch.proto",
    "etcd/etcdserverpb/lease.proto",
    "etcd/etcdserverpb/cluster.proto",
    "etcd/etcdserverpb/maintenance.proto",
    "etcd/etcdserverpb/auth.proto",
    "etcd/v3lockpb/lock.proto",
    "etcd/v3electionpb/election.proto",
    "grpc/health/v1/health.proto",
    "quorate/admin/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // `Bytes` keeps keys and values shared from the socket to the log and back.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

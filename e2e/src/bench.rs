//! Closed-loop load on any cluster that answers the etcd v3 API. Prints one JSON line; compares nothing itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::{PutRequest, RangeRequest};
use tonic::transport::Channel;

use crate::writer::connect;

/// Clients that share one connection, as a pooled client library would.
const CLIENTS_PER_CONNECTION: usize = 8;
const VALUE_BYTES: usize = 256;
/// Distinct keys, so that the store does not grow without bound during a run.
const KEYS: u64 = 10_000;

#[derive(Args, Debug, Clone)]
pub struct LoadArgs {
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    #[arg(long, value_enum)]
    operation: Operation,
    #[arg(long)]
    clients: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Operation {
    Put,
    Range,
}

pub async fn run(args: LoadArgs) -> Result<()> {
    let connections = args.clients.div_ceil(CLIENTS_PER_CONNECTION);
    let mut channels = Vec::new();
    for n in 0..connections {
        channels.push(connect(&args.endpoints[n % args.endpoints.len()]).await?);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let workers: Vec<_> = (0..args.clients)
        .map(|n| tokio::spawn(client(channels[n % connections].clone(), args.operation, n, stop.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies_us = Vec::new();
    let mut failed = 0;
    for worker in workers {
        let (mut took, errors) = worker.await.context("a client panicked")?;
        latencies_us.append(&mut took);
        failed += errors;
    }
    let elapsed = started.elapsed().as_secs_f64();
    ensure!(!latencies_us.is_empty(), "no request succeeded, {failed} failed");
    latencies_us.sort_unstable();
    let at = |quantile: usize| latencies_us[(latencies_us.len() - 1) * quantile / 1000];
    println!(
        "{}",
        serde_json::json!({
            "operations": latencies_us.len(), "failed": failed, "ratePerSecond": latencies_us.len() as f64 / elapsed,
            "p50Us": at(500), "p99Us": at(990),
        })
    );
    Ok(())
}

async fn client(mut kv: KvClient<Channel>, operation: Operation, n: usize, stop: Arc<AtomicBool>) -> (Vec<u32>, u64) {
    let value = bytes::Bytes::from(vec![b'x'; VALUE_BYTES]);
    // A fixed stride per client: equal work for both sides of a comparison, without a random source.
    let mut key = n as u64 * 7919;
    let (mut took, mut failed) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        key = (key + 104_729) % KEYS;
        let name = bytes::Bytes::from(format!("k{key:07}"));
        let started = Instant::now();
        let answered = match operation {
            Operation::Put => {
                kv.put(PutRequest { key: name, value: value.clone(), ..PutRequest::default() }).await.is_ok()
            }
            Operation::Range => kv.range(RangeRequest { key: name, ..RangeRequest::default() }).await.is_ok(),
        };
        if answered {
            took.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
        } else {
            failed += 1;
        }
    }
    (took, failed)
}

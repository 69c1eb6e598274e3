//! The Kubernetes world: objects of an API server, and the controller that calls the loop.
//!
//! Watches say when to look, and how a cluster is that needs nothing. What a step rests on is read live in `observe`, and every
//! write names what it expects.

mod act;
mod cache;
pub mod cert_manager;
pub mod certificates;
mod controller;
mod lease;
pub mod network;
pub mod objects;
pub mod observe;
mod request;
mod tell;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use kube::{Client, Config};
use quorate_plan::{Identity, Intent, Step};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::RunArgs;
use crate::members::Access;
use crate::metrics::Metrics;
use crate::serve;
use crate::world::{ActError, AdminTls, MemberUrls, Observer, Performer, Seen};
use certificates::{Desk, Lifetimes};
use lease::Lease;

/// The world of one API server; shared by all clusters.
pub(crate) struct KubernetesWorld {
    client: Client,
    /// The namespace the operator runs in.
    home: String,
    zones: observe::Zones,
    cache: cache::Cache,
    /// Evictions that were refused, by pod UID.
    refused: Mutex<HashMap<String, u32>>,
    certificates: Desk,
}

impl Observer for KubernetesWorld {
    async fn observe(&self, intent: &Intent) -> Seen {
        observe::observe(&self.client, &self.zones, intent, Some(&self.home)).await
    }

    async fn glance(&self, intent: &Intent) -> Option<Seen> {
        let mut seen = observe::glance(&self.cache, &self.client, &self.zones, intent, Some(&self.home)).await?;
        if !self.certificates.is_as_kept(&self.client, intent.identity()).await {
            return None;
        }
        self.show_certificates(intent, &mut seen);
        Some(seen)
    }

    async fn equip(&self, intent: &Intent, seen: &mut Seen) {
        if let Intent::Run(cluster) = intent {
            self.certificates.keep(&self.client, cluster, &seen.observation).await;
        }
        self.certificates.recall(&self.client, intent.identity(), &seen.observation).await;
        self.show_certificates(intent, seen);
    }
}

impl KubernetesWorld {
    /// As they were kept last.
    fn show_certificates(&self, intent: &Intent, seen: &mut Seen) {
        let identity = intent.identity();
        seen.observation.tls = self.certificates.show(&identity.uid);
        if let Some(access) = self.certificates.access(&identity.uid) {
            seen.equip(identity, &access);
        }
    }
}

impl Seen {
    /// Shows `access` to every member that wants to see a certificate.
    pub fn equip(&mut self, identity: &Identity, access: &Arc<Access>) {
        let by_tls = self.admin_urls.iter().filter(|(_, url)| url.starts_with("https://"));
        let of = |(record, url): (&String, &String)| {
            (url.clone(), AdminTls { host: objects::host(identity, record), access: access.clone() })
        };
        self.admin_tls = by_tls.map(of).collect();
    }
}

impl Performer for KubernetesWorld {
    fn act(&self, intent: &Intent, step: &Step, seen: &Seen) -> impl Future<Output = Result<(), ActError>> + Send {
        self.take(intent, step, seen)
    }

    fn urls(&self, intent: &Intent, record: &str) -> Result<MemberUrls, ActError> {
        match intent {
            Intent::Run(cluster) => Ok(objects::urls(cluster, record)),
            Intent::Delete(_) | Intent::Refused(_) => {
                Err(ActError::Failed("there is no valid spec to take addresses from".to_owned()))
            }
        }
    }
}

/// Reconciles until it is told to stop, or until another operator holds the Lease (an error: the next process starts clean).
///
/// # Errors
/// Flags contradict each other, there is no API server to talk to, or the Lease was lost.
pub async fn run(args: RunArgs) -> Result<()> {
    args.check()?;
    let mut config = Config::infer().await.context("no Kubernetes API server: run in a pod, or set KUBECONFIG")?;
    // What was refused is decided anew on a new reading: a step that is asked for again and again, such as an eviction that a
    // budget forbids, would act on an old one.
    config.default_retry = false;
    let client = Client::try_from(config).context("cannot make a client of the Kubernetes API server")?;
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(serve::Health::default());
    let listener = tokio::net::TcpListener::bind(args.listen_metrics)
        .await
        .with_context(|| format!("--listen-metrics {}: cannot listen", args.listen_metrics))?;
    tokio::spawn(serve::serve(listener, metrics.clone(), health.clone()));
    let lease = Lease::new(&client, &args)?;
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let stopped = async {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::info!("told to stop");
    };
    let work = async {
        health.set_ready();
        lease.acquire().await;
        let (cache, watches) = cache::watch(&client, &args);
        let world = KubernetesWorld {
            client: client.clone(),
            home: args.lease_namespace.clone(),
            zones: observe::Zones::default(),
            cache,
            refused: Mutex::default(),
            certificates: Desk::new(Lifetimes {
                leaf: i64::from(args.certificate_lifetime),
                authority: i64::from(args.authority_lifetime),
            }),
        };
        tokio::select! {
            error = lease.keep() => Err(error),
            () = controller::run(&args, world, watches, metrics, &lease) => anyhow::bail!("the controller ended by itself"),
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = stopped => Ok(()),
    };
    lease.release().await;
    outcome
}

#[cfg(test)]
mod testing {
    use quorate_plan::Identity;

    /// Of the cluster that tests are about.
    pub fn identity() -> Identity {
        Identity {
            name: "orders".to_owned(),
            namespace: "shop".to_owned(),
            uid: "2f1c".to_owned(),
            generation: 1,
            incarnation: 1,
        }
    }
}

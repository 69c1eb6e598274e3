//! One of several operators works: whoever holds the Lease.
//!
//! A convenience, not a safety net: two operators at once are harmless, since every step carries what it expects.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use super::request::{MANAGER, timed};
use crate::args::RunArgs;
use crate::clock;

/// A holder that did not renew for this long has lost it.
const DURATION: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// The holder gives up before others may take over.
const GIVE_UP: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Lease {
    api: Api<LeaseObject>,
    name: String,
    pub identity: String,
    /// The version of the Lease that another holder wrote last, and when it was first seen: clocks of other machines are not
    /// trusted.
    seen: Mutex<Option<(String, Instant)>>,
}

impl Lease {
    pub fn new(client: &Client, args: &RunArgs) -> Result<Lease> {
        let identity = match &args.identity {
            Some(identity) => identity.clone(),
            None => format!("quorate-operator-{}", clock::uuid()?),
        };
        let api = Api::namespaced(client.clone(), &args.lease_namespace);
        Ok(Lease { api, name: args.lease_name.clone(), identity, seen: Mutex::new(None) })
    }

    /// Waits until this operator holds the Lease.
    pub async fn acquire(&self) {
        let mut told = String::new();
        loop {
            let text = match self.try_take().await {
                Ok(Held::Mine) => {
                    tracing::info!(identity = self.identity, "holding the Lease");
                    return;
                }
                Ok(Held::By(holder)) => format!("waiting for the Lease, held by {holder}"),
                Err(error) => format!("cannot take the Lease: {error}"),
            };
            if text != told {
                tracing::info!("{text}");
                told = text;
            }
            tokio::time::sleep(RENEW_EVERY).await;
        }
    }

    /// Renews; returns when the Lease is lost.
    pub async fn keep(&self) -> anyhow::Error {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match tokio::time::timeout(GIVE_UP, self.try_take()).await {
                Ok(Ok(Held::Mine)) => renewed = Instant::now(),
                Ok(Ok(Held::By(holder))) => return anyhow!("the Lease was taken by {holder}"),
                Ok(Err(error)) => tracing::warn!("cannot renew the Lease: {error}"),
                Err(_) => tracing::warn!("cannot renew the Lease: no answer"),
            }
            if renewed.elapsed() > GIVE_UP {
                return anyhow!("the Lease could not be renewed for {} s", renewed.elapsed().as_secs());
            }
        }
    }

    /// Lets the next one go on at once.
    pub async fn release(&self) {
        let Ok(Some(mut live)) = timed(self.api.get_opt(&self.name)).await else { return };
        let spec = live.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        spec.holder_identity = Some(String::new());
        if let Err(error) = timed(self.api.replace(&self.name, &posted(), &live)).await {
            tracing::debug!("the Lease was not released: {error}");
        }
    }

    async fn try_take(&self) -> Result<Held, kube::Error> {
        let Some(mut live) = timed(self.api.get_opt(&self.name)).await? else {
            let fresh = LeaseObject {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.taken(None)),
            };
            timed(self.api.create(&posted(), &fresh)).await?;
            return Ok(Held::Mine);
        };
        let spec = live.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let version = live.metadata.resource_version.clone().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() && !self.has_expired(&version) {
            return Ok(Held::By(holder));
        }
        live.spec = Some(self.taken(Some(&spec)));
        // Under the version that was read: of two takers one gets a conflict.
        timed(self.api.replace(&self.name, &posted(), &live)).await?;
        Ok(Held::Mine)
    }

    fn has_expired(&self, version: &str) -> bool {
        let mut seen = self.seen.lock().expect("no panic happens while the Lease is looked at");
        match &*seen {
            Some((known, since)) if known == version => since.elapsed() > DURATION,
            _ => {
                *seen = Some((version.to_owned(), Instant::now()));
                false
            }
        }
    }

    fn taken(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let same = before.filter(|b| b.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: same.and_then(|b| b.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if same.is_some() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }
}

enum Held {
    Mine,
    By(String),
}

fn posted() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

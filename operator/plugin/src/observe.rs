//! What the planner needs to know, read as the operator reads it: objects from the API server, and the members' own words through a
//! port-forward to each pod. Reads only.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use quorate_api::names;
use quorate_operator::kubernetes::certificates::admin_access;
use quorate_operator::kubernetes::objects::ADMIN_PORT;
use quorate_operator::kubernetes::observe::{Zones, observe};
use quorate_operator::members::Members;
use quorate_operator::world::Seen;
use quorate_plan::{Identity, Intent};
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;

use crate::connect::Connection;

/// One observation, with the words of every member that could be reached; and why some could not, where that is known.
///
/// # Errors
/// This machine gives no listening socket.
pub async fn observed(connection: &Connection, intent: &Intent) -> Result<(Seen, Option<String>)> {
    let mut seen = observe(&connection.client, &Zones::default(), intent, None).await;
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let failed = Failed::default();
    for (record, url) in &mut seen.admin_urls {
        let local = forward(pods.clone(), names::pod(record), failed.clone()).await?;
        let scheme = url.split("://").next().unwrap_or("http");
        *url = format!("{scheme}://{local}");
    }
    let refusal = show_certificate(connection, intent.identity(), &mut seen).await;
    Members::default().ask(&mut seen).await;
    let failed = failed.lock().expect("no panic happens while this is noted").take();
    Ok((seen, refusal.or(failed)))
}

/// Why a port-forward could not be opened, the first time.
type Failed = Arc<Mutex<Option<String>>>;

/// Members that speak TLS take who shows the operator's certificate: a person who may read that Secret may ask them.
async fn show_certificate(connection: &Connection, identity: &Identity, seen: &mut Seen) -> Option<String> {
    if !seen.admin_urls.values().any(|url| url.starts_with("https://")) {
        return None;
    }
    match admin_access(&connection.client, identity).await {
        Ok(access) => {
            seen.equip(identity, &Arc::new(access));
            None
        }
        Err(refusal) => {
            Some(format!("members speak TLS, and the operator's certificate cannot be shown to them: {refusal}"))
        }
    }
}

/// Members whose pods run and who still gave no word.
pub fn silent(seen: &Seen) -> Vec<String> {
    let told = |record: &str| seen.observation.words.iter().any(|w| w.record == record);
    let asked = seen.admin_urls.keys().filter(|record| !told(record));
    asked.cloned().collect()
}

/// Listens on a port of this machine; every connection to it leads to the pod's admin port, while this program runs.
async fn forward(pods: Api<Pod>, pod: String, failed: Failed) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no port of 127.0.0.1 is free")?;
    let local = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (pods, pod, failed) = (pods.clone(), pod.clone(), failed.clone());
            tokio::spawn(async move {
                let port = u16::try_from(ADMIN_PORT).expect("a port fits 16 bits");
                match pods.portforward(&pod, &[port]).await {
                    Ok(mut forwarder) => {
                        if let Some(mut stream) = forwarder.take_stream(port) {
                            // Either side may end it.
                            let _ = copy_bidirectional(&mut socket, &mut stream).await;
                        }
                    }
                    Err(error) => {
                        let mut failed = failed.lock().expect("no panic happens while this is noted");
                        failed.get_or_insert_with(|| {
                            format!("no port-forward to {pod} ({error}); it takes get and create on pods/portforward")
                        });
                    }
                }
            });
        }
    });
    Ok(local)
}

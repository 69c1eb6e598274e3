//! Certificates on a real Kubernetes: made, filled in by others, expired, exchanged, and never told.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::beside::{beside, edit, object, up};
use super::issuer::{self, Authority, Lifetime};
use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, condition, conditions, text};
use crate::poll;

/// The kubelet brings a changed Secret to a pod within a minute and a half, and an exchange takes three of these.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(600);
/// Short enough for the operator to give clients a minute for each step of an exchange, long enough for the kubelet.
const LIFETIME_SECONDS: u32 = 600;

/// Long enough for the operator to do what it should not.
const TEMPTATION: Duration = Duration::from_secs(12);

async fn members(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let namespace = &cluster.args.namespace;
    cluster.api.items(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector=quorate.dev/cluster={name}")).await
}

async fn secret(cluster: &Cluster, name: &str) -> Result<Value> {
    cluster.api.get(&format!("/api/v1/namespaces/{}/secrets/{name}", cluster.args.namespace)).await
}

/// Waits until every member's pod was made to speak this, and all are well.
async fn all_speak(cluster: &Cluster, name: &str, count: usize, modes: &str) -> Result<()> {
    poll::until(&format!("{count} members that speak {modes}"), LIMIT, POLL, async || {
        let spoken: Vec<String> = members(cluster, name)
            .await?
            .iter()
            .map(|pod| pod["metadata"]["annotations"]["quorate.dev/tls"].as_str().unwrap_or("none").to_owned())
            .collect();
        ensure!(spoken.len() == count && spoken.iter().all(|s| s == modes), "{spoken:?}");
        Ok(())
    })
    .await?;
    up(cluster, name).await
}

fn planes(mode: &str) -> Value {
    json!({"tls": {"client": {"mode": mode}, "peer": {"mode": mode}}})
}

async fn remove(cluster: &Cluster, name: &str, pods: &[&str]) -> Result<()> {
    for pod in pods {
        cluster.mine(&["delete", "pod", pod, "--grace-period=0", "--force"]).await?;
    }
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await.map(drop)
}

/// From plain text to TLS and nothing else while clients write, first without, then with a certificate; and back again.
pub async fn off_to_required(cluster: &Cluster) -> Result<String> {
    let (name, plain, by_tls) = ("opened", "writer-plain", "writer-tls");
    let mut wanted = beside(name, 3, json!({"size": "64Mi"}));
    wanted["spec"]["tls"] = planes("Disabled")["tls"].clone();
    cluster.apply(&wanted).await?;
    up(cluster, name).await?;
    let refused = edit(cluster, name, planes("Required")).await;
    ensure!(refused.is_err_and(|e| format!("{e:#}").contains("one step")), "two steps were taken at once");
    let pace = ["--pause-ms=20", "--reconnect-every=10", "--seconds-max=900"];
    cluster.writer_pod(plain, "http://opened:2379", None, &pace).await?;
    edit(cluster, name, planes("Preferred")).await?;
    all_speak(cluster, name, 3, "Preferred/Preferred").await?;
    cluster.writer_pod(by_tls, "https://opened:2379", Some("opened-client-tls"), &pace).await?;
    let first = cluster.stop_writer(plain).await?;
    edit(cluster, name, planes("Required")).await?;
    all_speak(cluster, name, 3, "Required/Required").await?;
    let etcdctl = |endpoint: &'static str| {
        let command = ["exec", by_tls, "--", "/etcdctl", endpoint, "--command-timeout=3s", "get", "x"];
        async move { cluster.mine(&command).await }
    };
    etcdctl("--endpoints=https://opened:2379").await?;
    ensure!(etcdctl("--endpoints=http://opened:2379").await.is_err(), "plain text is still answered");
    let second = cluster.stop_writer(by_tls).await?;
    let told = (first.check()?, second.check()?);
    edit(cluster, name, planes("Preferred")).await?;
    all_speak(cluster, name, 3, "Preferred/Preferred").await?;
    edit(cluster, name, planes("Disabled")).await?;
    all_speak(cluster, name, 3, "none").await?;
    for endpoint in ["--endpoints=http://opened:2379", "--endpoints=http://opened-leader:2379"] {
        cluster.exec(&["/etcdctl", endpoint, "--command-timeout=3s", "get", "x"]).await?;
    }
    remove(cluster, name, &[plain, by_tls]).await?;
    Ok(format!("plain: {}; TLS: {}", told.0, told.1))
}

/// One that was founded when open meant plain text has no mark of its defaults, and stays as it was.
pub async fn older(cluster: &Cluster) -> Result<String> {
    let name = "elder";
    let mut wanted = beside(name, 1, json!({"size": "64Mi"}));
    wanted["spec"]["tls"] = planes("Disabled")["tls"].clone();
    wanted["spec"]["network"] = json!({"policy": "Disabled"});
    // Today's defaults would ask for another amount, and those of then for none.
    wanted["spec"]["resources"] = json!({"requests": {"cpu": "10m"}});
    cluster.apply(&wanted).await?;
    up(cluster, name).await?;
    let of = async || -> Result<Vec<String>> {
        Ok(members(cluster, name).await?.iter().map(|p| text(p, "/metadata/uid")).collect())
    };
    let before = of().await?;
    cluster.mine(&["annotate", &format!("service/{name}-peer"), "quorate.dev/defaults-"]).await?;
    let plane = json!({"mode": null});
    edit(cluster, name, json!({"tls": {"client": plane, "peer": plane}, "network": {"policy": null}})).await?;
    tokio::time::sleep(TEMPTATION).await;
    all_speak(cluster, name, 1, "none").await?;
    ensure!(of().await? == before, "its member was restarted");
    let policy = format!("networkpolicy/{name}");
    ensure!(cluster.mine(&["get", &policy]).await.is_err(), "it has a NetworkPolicy now");
    let put = cluster.exec(&["/etcdctl", "--endpoints=http://elder:2379", "put", "a", "b"]).await?;
    ensure!(put.contains("OK"), "a put in plain text: {put:?}");
    remove(cluster, name, &[]).await?;
    Ok(String::new())
}

/// What somebody spoilt is made anew, and clients go on.
pub async fn damaged(cluster: &Cluster) -> Result<String> {
    let name = format!("{NAME}-client-tls");
    let before = secret(cluster, &name).await?;
    let spoil = r#"[{"op":"remove","path":"/data/tls.key"}]"#;
    cluster.mine(&["patch", "secret", &name, "--type=json", "-p", spoil]).await?;
    poll::until("the Secret to be whole", LIMIT, POLL, async || {
        let now = secret(cluster, &name).await?;
        ensure!(now["data"]["tls.key"].is_string(), "it has no key");
        ensure!(now["data"]["tls.crt"] != before["data"]["tls.crt"], "the certificate is the old one");
        Ok(())
    })
    .await?;
    // The kubelet may have brought the pod what was spoilt, and comes by again after a minute or more.
    poll::until("etcdctl to have its key", LIMIT, POLL, async || cluster.etcdctl(&["put", "from", "a pod"]).await)
        .await?;
    Ok(String::new())
}

/// Leaves and authority are exchanged under a writer that connects anew all the time, and nothing fails.
pub async fn rotation(cluster: &Cluster) -> Result<String> {
    let (writer, client) = ("writer-rotation", format!("{NAME}-client-tls"));
    let operator = cluster.args.operator_namespace.clone();
    let lifetime = async |seconds: &str| {
        let to = format!("QUORATE_CERTIFICATE_LIFETIME={seconds}");
        cluster.kubectl(&["-n", &operator, "set", "env", "deployment/quorate-operator", &to], None).await?;
        let rollout = ["-n", &operator, "rollout", "status", "deployment/quorate-operator", "--timeout=120s"];
        cluster.kubectl(&rollout, None).await
    };
    let pods = async || -> Result<BTreeSet<String>> {
        Ok(members(cluster, NAME).await?.iter().map(|p| text(p, "/metadata/uid")).collect())
    };
    let before = (secret(cluster, &client).await?, pods().await?);
    let issuer = |secret: &Value| secret["metadata"]["annotations"]["quorate.dev/issuer"].clone();
    let old = issuer(&before.0).as_str().context("the client's Secret does not name its issuer")?.to_owned();
    lifetime(&LIFETIME_SECONDS.to_string()).await?;
    let pace = ["--pause-ms=20", "--reconnect-every=5", "--seconds-max=1800"];
    cluster.writer_pod(writer, "https://orders:2379", Some(&client), &pace).await?;
    let since = Instant::now();
    let ask = format!("quorate.dev/rotate-authority={old}");
    cluster.mine(&["annotate", &format!("cc/{NAME}"), &ask, "--overwrite"]).await?;
    poll::until("the old authority to be dropped", EXCHANGE_LIMIT, POLL, async || {
        let authority = secret(cluster, &format!("{NAME}-tls-ca")).await?;
        let now = secret(cluster, &client).await?;
        ensure!(issuer(&now) != old.as_str(), "clients still have a certificate by the old authority");
        ensure!(authority["data"]["previous.crt"].is_null(), "the old authority is still trusted");
        let status = cluster.status().await?;
        ensure!(condition(&status, "TLSReady") == "True", "{}", conditions(&status));
        Ok(())
    })
    .await?;
    let took = since.elapsed().as_secs();
    // What was dropped leaves the members' files, too, while the writer goes on.
    tokio::time::sleep(Duration::from_secs(90)).await;
    let summary = cluster.stop_writer(writer).await?;
    let told = summary.check()?;
    ensure!(
        summary.unknown == 0 && summary.unconnected == 0,
        "{} writes and {} connections failed",
        summary.unknown,
        summary.unconnected
    );
    ensure!(pods().await? == before.1, "members were restarted for their certificates");
    lifetime("7776000").await?;
    cluster.mine(&["delete", "pod", writer, "--grace-period=0", "--force"]).await?;
    Ok(format!("{told}, 0 connections refused, exchanged in {took} s"))
}

/// The Certificates of one cluster that are to be there.
async fn certificates(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let namespace = &cluster.args.namespace;
    let path = format!(
        "/apis/cert-manager.io/v1/namespaces/{namespace}/certificates?labelSelector=quorate.dev/cluster={name}"
    );
    cluster.api.items(&path).await
}

/// Stands in for cert-manager until the cluster is up: fills the Secret of each Certificate and says so in its status.
async fn issue_until_up(cluster: &Cluster, authority: &Authority, name: &str, members: u64) -> Result<()> {
    let mut filled = BTreeSet::new();
    poll::until(&format!("{name} to be up by certificates of the suite"), LIMIT, POLL, async || {
        for certificate in certificates(cluster, name).await? {
            let called = text(&certificate, "/metadata/name");
            if !filled.contains(&called) {
                fill(cluster, authority, &certificate, Lifetime::Long).await?;
                filled.insert(called);
            }
        }
        let status = object(cluster, name).await?["status"].clone();
        let ready = condition(&status, "Ready") == "True" && condition(&status, "TLSReady") == "True";
        ensure!(ready && status["readyReplicas"] == members, "{}", conditions(&status));
        Ok(())
    })
    .await
}

async fn fill(cluster: &Cluster, authority: &Authority, certificate: &Value, lifetime: Lifetime) -> Result<()> {
    let name = text(certificate, "/spec/secretName");
    let made = authority.issue(&certificate["spec"], lifetime)?;
    let data = json!({"ca.crt": made.authority, "tls.crt": made.certificate, "tls.key": made.key});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/tls", "stringData": data,
    });
    cluster.apply(&secret).await?;
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "True", "reason": "Ready", "message": "issued",
        "lastTransitionTime": certificate["metadata"]["creationTimestamp"],
    }]}});
    let what = format!("certificate.cert-manager.io/{}", text(certificate, "/metadata/name"));
    cluster.mine(&["patch", &what, "--subresource=status", "--type=merge", "-p", &status.to_string()]).await.map(drop)
}

fn by_cert_manager(name: &str, replicas: u64) -> Value {
    let mut wanted = beside(name, replicas, json!({"size": "64Mi"}));
    let plane = json!({"mode": "Required", "certManager": {"issuerRef": {"name": "house"}}});
    wanted["spec"]["tls"] = json!({"client": plane, "peer": plane});
    wanted
}

/// Without cert-manager's definition the condition names the remedy; with it, members use what it fills in.
pub async fn cert_manager(cluster: &Cluster) -> Result<String> {
    let name = "certified";
    cluster.apply(&by_cert_manager(name, 1)).await?;
    poll::until("the missing definition to be told", LIMIT, POLL, async || {
        let status = object(cluster, name).await?["status"].clone();
        let told = conditions(&status);
        ensure!(condition(&status, "TLSReady") == "False" && told.contains("install cert-manager"), "{told}");
        Ok(())
    })
    .await?;
    cluster.kubectl(&["apply", "-f", "-"], Some(&issuer::DEFINITION.to_string())).await?;
    let authority = Authority::new()?;
    issue_until_up(cluster, &authority, name, 1).await?;
    let writer = "writer-certified";
    cluster.writer_pod(writer, "https://certified:2379", Some("certified-client-tls"), &["--seconds-max=600"]).await?;
    let told = cluster.stop_writer(writer).await?.check()?;
    remove(cluster, name, &[writer]).await?;
    let left = certificates(cluster, name).await?.len();
    cluster.kubectl(&["delete", "crd", "certificates.cert-manager.io", "--timeout=60s"], None).await?;
    Ok(format!("{told}; {left} Certificates left to the garbage collector"))
}

/// A member whose certificates have ended is told, the others serve; with new ones it comes back by itself.
pub async fn expired(cluster: &Cluster) -> Result<String> {
    let (name, writer) = ("lapsed", "writer-lapsed");
    cluster.kubectl(&["apply", "-f", "-"], Some(&issuer::DEFINITION.to_string())).await?;
    let authority = Authority::new()?;
    cluster.apply(&by_cert_manager(name, 3)).await?;
    issue_until_up(cluster, &authority, name, 3).await?;
    let pace = ["--pause-ms=20", "--reconnect-every=10", "--seconds-max=900"];
    cluster.writer_pod(writer, "https://lapsed-leader:2379", Some("lapsed-client-tls"), &pace).await?;
    let status = object(cluster, name).await?["status"].clone();
    let follower = status["members"].as_array().into_iter().flatten().find(|m| m["role"] == "Follower");
    let victim = text(follower.context("nobody follows")?, "/name");
    let own = async || -> Result<Vec<Value>> {
        let all = certificates(cluster, name).await?;
        Ok(all.into_iter().filter(|c| text(c, "/metadata/name").starts_with(&victim)).collect())
    };
    for certificate in own().await? {
        fill(cluster, &authority, &certificate, Lifetime::Over).await?;
    }
    // It reads them when it starts, and on its own a minute later.
    cluster.mine(&["delete", "pod", &format!("{victim}-0")]).await?;
    poll::until("the expired certificate to be told", LIMIT, POLL, async || {
        let status = object(cluster, name).await?["status"].clone();
        let told = conditions(&status);
        ensure!(condition(&status, "TLSReady") == "False" && told.contains("has expired"), "{told}");
        ensure!(told.contains(&victim) && condition(&status, "Available") == "True", "{told}");
        ensure!(status["readyReplicas"] == 2, "{} are ready", status["readyReplicas"]);
        Ok(())
    })
    .await?;
    let since = Instant::now();
    for certificate in own().await? {
        fill(cluster, &authority, &certificate, Lifetime::Long).await?;
    }
    poll::until("the member to be back", LIMIT, POLL, async || {
        let status = object(cluster, name).await?["status"].clone();
        let well = condition(&status, "TLSReady") == "True" && condition(&status, "Ready") == "True";
        ensure!(well && status["readyReplicas"] == 3, "{}", conditions(&status));
        Ok(())
    })
    .await?;
    let back = since.elapsed().as_secs();
    let told = cluster.stop_writer(writer).await?.check()?;
    remove(cluster, name, &[writer]).await?;
    cluster.kubectl(&["delete", "crd", "certificates.cert-manager.io", "--timeout=60s"], None).await?;
    Ok(format!("{victim} back {back} s after it got new ones; {told}"))
}

/// A line that stands in no file but a key's.
const CANARY: &str = "Q0FOQVJZLW5vYm9keS1tYXktcmVhZC10aGlzLWxpbmUtYW55d2hlcmU=";

/// Lines of the keys in the Secrets of this namespace that are long enough to be found by accident nowhere.
fn key_lines(secrets: &[Value]) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for (name, data) in secrets.iter().flat_map(|s| s["data"].as_object().into_iter().flatten()) {
        if name.ends_with(".key") {
            let bytes: ByteString = serde_json::from_value(data.clone())?;
            let pem = String::from_utf8_lossy(&bytes.0).into_owned();
            lines.extend(pem.lines().filter(|l| l.len() >= 40 && !l.contains("----")).map(str::to_owned));
            lines.extend(data.as_str().map(|text| text.chars().skip(60).take(60).collect()));
        }
    }
    Ok(lines)
}

/// No key is in a log, an Event, a status or a pod, not even where it could not be read.
pub async fn told_nowhere(cluster: &Cluster) -> Result<String> {
    let (name, namespace) = ("canary", cluster.args.namespace.as_str());
    let pem = |kind: &str| format!("-----BEGIN {kind}-----\n{CANARY}\n-----END {kind}-----\n");
    let data = json!({
        "ca.crt": pem("CERTIFICATE"), "tls.crt": pem("CERTIFICATE"), "tls.key": pem("PRIVATE KEY"),
    });
    let broken = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
    cluster.apply(&broken).await?;
    let mut wanted = beside(name, 1, json!({"size": "64Mi"}));
    wanted["spec"]["tls"] = json!({"client": {"mode": "Required", "secretRef": {"name": name}}});
    cluster.apply(&wanted).await?;
    let logs = async || -> Result<String> {
        let mut all = String::new();
        for entry in std::fs::read_dir(&cluster.args.logs)? {
            all.push_str(&String::from_utf8_lossy(&std::fs::read(entry?.path())?));
        }
        Ok(all)
    };
    poll::until("a member to say that it cannot use its certificate", LIMIT, POLL, async || {
        ensure!(logs().await?.contains("/tls-client/"), "nobody complains of it");
        Ok(())
    })
    .await?;
    cluster.mine(&["delete", "cc", name, "--timeout=120s"]).await?;
    let secrets = cluster.api.items(&format!("/api/v1/namespaces/{namespace}/secrets")).await?;
    let mut keys = key_lines(&secrets)?;
    ensure!(keys.contains(CANARY) && keys.len() > 8, "{} lines of keys: the search is blind", keys.len());
    keys.insert(CANARY.trim_end_matches('=').to_owned());
    let operator = cluster.args.operator_namespace.as_str();
    let places = [
        ("the members' logs", logs().await?),
        (
            "the operator's log",
            cluster.kubectl(&["-n", operator, "logs", "--all-pods=true", "deployment/quorate-operator"], None).await?,
        ),
        ("the Events", cluster.mine(&["get", "events", "-o", "json"]).await?),
        ("the status", cluster.mine(&["get", "cc", "-o", "json"]).await?),
        ("pods and records", cluster.mine(&["get", "pods,statefulsets", "-o", "json"]).await?),
    ];
    for (place, told) in &places {
        ensure!(told.len() > 200, "{place}: there is nothing in it to look at");
        ensure!(!keys.iter().any(|line| told.contains(line.as_str())), "a key is in {place}");
    }
    cluster.mine(&["delete", "secret", name]).await?;
    let looked: usize = places.iter().map(|(_, told)| told.len()).sum();
    Ok(format!("{} lines of keys, none in {} kB", keys.len(), looked / 1_000))
}

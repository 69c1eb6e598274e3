//! Keeps the logs of every pod of a label from its first line on: pods vanish, and their logs with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::io::AsyncBufReadExt;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::task::{JoinHandle, JoinSet};

use super::api::{Api, is_code};
use super::story::{self, Event, LOG_ENDED};

/// New pods are looked for this often; a member needs longer to become a leader.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const RETRY_AFTER: Duration = Duration::from_millis(300);

/// The newest leader, by `namespace/cluster`.
pub type Leaders = Arc<Mutex<BTreeMap<String, Leading>>>;

/// A leader that was ready to serve at some time, by its own log.
#[derive(Debug, Clone)]
pub struct Leading {
    pub term: u64,
    pub since: Timestamp,
    member: String,
    /// It may have been one for a moment only, of which nobody needs to tell afterwards.
    pub still_leads: bool,
}

fn take_note(leaders: &Leaders, cluster: String, member: &str, event: &Event, at: Timestamp) {
    let mut leaders = leaders.lock().expect("nobody panics with this lock held");
    let newest = leaders.get_mut(&cluster);
    match event {
        Event::LeaderReady { term } if newest.as_ref().is_none_or(|newest| newest.term < *term) => {
            let leading = Leading { term: *term, since: at, member: member.to_owned(), still_leads: true };
            leaders.insert(cluster, leading);
        }
        Event::Retired | Event::Follows | Event::Started { .. } | Event::Ended => {
            newest.filter(|newest| newest.member == member).into_iter().for_each(|newest| newest.still_leads = false);
        }
        _ => {}
    }
}

fn cluster_of(pod: &Pod) -> (String, &str) {
    let member = pod.name.strip_suffix("-0").unwrap_or(&pod.name);
    let cluster = member.rsplit_once('-').map_or(member, |(cluster, _)| cluster);
    (format!("{}/{cluster}", pod.namespace), member)
}

/// Runs until dropped. One file a pod: `<namespace>_<pod>_<uid>.log`.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    pub leaders: Leaders,
    /// Ends with this.
    _look: JoinSet<()>,
}

impl Follower {
    pub fn start(api: Api, selector: &str, dir: &Path) -> Result<Follower> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = format!("/api/v1/pods?labelSelector={selector}");
        let leaders = Leaders::default();
        let _look = JoinSet::from_iter([look(api, path, dir.to_path_buf(), leaders.clone())]);
        Ok(Follower { dir: dir.to_path_buf(), leaders, _look })
    }

    /// Every line so far, as (`namespace/pod`, line).
    pub fn lines(&self) -> Result<Vec<(String, String)>> {
        let mut lines = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut parts = name.split('_');
            let (Some(namespace), Some(pod)) = (parts.next(), parts.next()) else { continue };
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            lines.extend(text.lines().map(|line| (format!("{namespace}/{pod}"), line.to_owned())));
        }
        Ok(lines)
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
}

async fn look(api: Api, path: String, dir: PathBuf, leaders: Leaders) {
    let known = Arc::new(Mutex::new(BTreeSet::new()));
    let mut tasks = JoinSet::new();
    loop {
        // While the API server is away there is nothing to find.
        for item in api.items(&path).await.unwrap_or_default() {
            let text = |key: &str| item["metadata"][key].as_str().unwrap_or_default().to_owned();
            let pod = Pod { namespace: text("namespace"), name: text("name"), uid: text("uid") };
            if known.lock().expect("nobody panics with this lock held").insert(pod.clone()) {
                tasks.spawn(follow(api.clone(), pod, dir.clone(), leaders.clone()));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Follows one pod through restarts of its container until the pod is gone.
async fn follow(api: Api, pod: Pod, dir: PathBuf, leaders: Leaders) {
    let file = dir.join(format!("{}_{}_{}.log", pod.namespace, pod.name, pod.uid));
    let mut last = None;
    loop {
        if let Err(error) = read_on(&api, &pod, &file, &mut last, &leaders).await
            && !is_code(&error, 400)
            && !is_code(&error, 404)
        {
            eprintln!("    (log of {}/{}: {error:#})", pod.namespace, pod.name);
        }
        if matches!(is_there(&api, &pod).await, Ok(false)) {
            let _ = append(&file, &format!("{:.6} {LOG_ENDED}\n", Timestamp::now())).await;
            let (cluster, member) = cluster_of(&pod);
            take_note(&leaders, cluster, member, &Event::Ended, Timestamp::now());
            return;
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

async fn is_there(api: &Api, pod: &Pod) -> Result<bool> {
    let found = api.get_opt(&format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)).await?;
    Ok(found.is_some_and(|found| found["metadata"]["uid"] == pod.uid.as_str()))
}

async fn append(file: &Path, text: &str) -> Result<()> {
    let mut file = tokio::fs::File::options().create(true).append(true).open(file).await?;
    file.write_all(text.as_bytes()).await?;
    Ok(file.flush().await?)
}

/// Reads from after `last` to the end of the stream. The server's own times tell which lines are known already.
async fn read_on(api: &Api, pod: &Pod, file: &Path, last: &mut Option<Timestamp>, leaders: &Leaders) -> Result<()> {
    let (cluster, member) = cluster_of(pod);
    let since = last.map(|at| format!("&sinceTime={at:.0}")).unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/pods/{}/log?follow=true&timestamps=true{since}", pod.namespace, pod.name);
    let mut lines = api.stream(&path).await?.lines();
    while let Some(line) = lines.try_next().await? {
        let Some((stamp, text)) = line.split_once(' ') else { continue };
        let Ok(at) = stamp.parse::<Timestamp>() else { continue };
        if last.is_some_and(|last| at <= last) {
            continue;
        }
        *last = Some(at);
        if let Some(told) = story::line(member, text) {
            take_note(leaders, cluster.clone(), member, &told.event, at);
        }
        append(file, &format!("{text}\n")).await?;
    }
    Ok(())
}

/// Follows one pod's log into a callback; for logs that are looked at while they grow.
pub fn each_line(
    api: Api,
    namespace: String,
    name: String,
    mut take: impl FnMut(&str) + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut last: Option<Timestamp> = None;
        loop {
            let since = last.map(|at| format!("&sinceTime={at:.0}")).unwrap_or_default();
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/log?follow=true&timestamps=true{since}");
            if let Ok(stream) = api.stream(&path).await {
                let mut lines = stream.lines();
                while let Some(Ok(line)) = lines.next().await {
                    let Some((stamp, text)) = line.split_once(' ') else { continue };
                    let Ok(at) = stamp.parse::<Timestamp>() else { continue };
                    if last.is_none_or(|last| at > last) {
                        last = Some(at);
                        take(text);
                    }
                }
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_no_more_need_not_be_told() {
        let leaders = Leaders::default();
        let at: Timestamp = "2026-11-25T07:00:00Z".parse().unwrap();
        let note = |member: &str, event: &Event| take_note(&leaders, "n/orders".to_owned(), member, event, at);
        let newest = || {
            let leaders = leaders.lock().unwrap();
            leaders.get("n/orders").map(|newest| (newest.term, newest.still_leads))
        };
        note("orders-a", &Event::LeaderReady { term: 3 });
        note("orders-b", &Event::Retired);
        assert_eq!(newest(), Some((3, true)));
        note("orders-a", &Event::Retired);
        note("orders-b", &Event::LeaderReady { term: 2 });
        assert_eq!(newest(), Some((3, false)));
        note("orders-b", &Event::LeaderReady { term: 4 });
        assert_eq!(newest(), Some((4, true)));
        note("orders-b", &Event::Ended);
        assert_eq!(newest(), Some((4, false)));
    }
}

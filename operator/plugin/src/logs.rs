//! Fetches the members' logs and prints them in order of time.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::{AsyncBufReadExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use quorate_api::names;
use tokio::sync::mpsc;

use crate::connect::{Connection, Found};
use crate::merge::{self, Line};
use crate::paint::{Paint, Tone};

/// While following, a line waits this long for earlier ones of other members.
const WINDOW: Duration = Duration::from_millis(300);
/// Lines on their way from the members to the screen.
const QUEUE: usize = 4_096;

#[derive(Debug, Clone)]
pub struct Wanted {
    pub members: Vec<String>,
    pub follow: bool,
    pub since: Option<Duration>,
    pub tail: Option<u32>,
    pub previous: bool,
    pub timestamps: bool,
}

impl Wanted {
    fn params(&self) -> LogParams {
        LogParams {
            follow: self.follow,
            since_seconds: self.since.and_then(|d| i64::try_from(d.as_secs()).ok()),
            tail_lines: self.tail.map(i64::from),
            previous: self.previous,
            timestamps: true,
            ..LogParams::default()
        }
    }
}

/// The members whose logs are wanted, by name.
///
/// # Errors
/// A name that is no member's.
pub fn chosen(found: &Found, wanted: &[String]) -> Result<Vec<String>> {
    let label = |pod: &Pod| pod.metadata.labels.as_ref().and_then(|l| l.get(names::LABEL_MEMBER)).cloned();
    let mut known: Vec<String> = found.pods.iter().filter_map(label).collect();
    known.sort();
    if let Some(stranger) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("{stranger} has no pod; members with pods are {}", known.join(", "));
    }
    Ok(known.into_iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect())
}

/// # Errors
/// There is no pod to read from, or nobody reads any more.
pub async fn print(connection: &Connection, cluster: &str, wanted: &Wanted, paint: Paint) -> Result<()> {
    let found = connection.found(cluster).await?;
    let members = chosen(&found, &wanted.members)?;
    if members.is_empty() {
        bail!("{cluster} has no pods; `kubectl quorate status {cluster}` says why");
    }
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let (sender, mut receiver) = mpsc::channel::<Line>(QUEUE);
    for (number, member) in members.iter().enumerate() {
        let (pods, member, params, sender) = (pods.clone(), member.clone(), wanted.params(), sender.clone());
        tokio::spawn(async move {
            if let Err(error) = read(&pods, &member, &params, number, &sender).await {
                eprintln!("{member}: {error:#}");
            }
        });
    }
    drop(sender);
    let width = members.iter().map(String::len).max().unwrap_or_default();
    let shown = |line: &Line| {
        let name = paint.member(line.member, &format!("{:<width$}", members[line.member]));
        let time = line.time.filter(|_| wanted.timestamps).map(|t| paint.tone(Tone::Faint, &format!("{t} ")));
        format!("{name} {}{}\n", time.unwrap_or_default(), line.text)
    };
    let mut held: Vec<Line> = Vec::new();
    loop {
        let come = if wanted.follow && !held.is_empty() {
            tokio::time::timeout(WINDOW, receiver.recv()).await
        } else {
            Ok(receiver.recv().await)
        };
        match come {
            // All of it is merged at once, unless it never ends.
            Ok(Some(line)) if !wanted.follow || held.len() < QUEUE => held.push(line),
            Ok(Some(line)) => {
                write_all(&merge::merged(std::mem::take(&mut held)), &shown)?;
                held.push(line);
            }
            Ok(None) => return write_all(&merge::merged(held), &shown),
            Err(_) => write_all(&merge::merged(std::mem::take(&mut held)), &shown)?,
        }
    }
}

fn write_all(lines: &[Line], shown: &impl Fn(&Line) -> String) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        if let Err(error) = out.write_all(shown(line).as_bytes()) {
            // `| head` has seen enough.
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                std::process::exit(0);
            }
            return Err(error.into());
        }
    }
    Ok(out.flush()?)
}

/// Hands every line of a member's log on.
///
/// # Errors
/// The log cannot be read.
async fn read(
    pods: &Api<Pod>,
    member: &str,
    params: &LogParams,
    number: usize,
    sender: &mpsc::Sender<Line>,
) -> Result<()> {
    let mut lines = pods.log_stream(&names::pod(member), params).await?.lines();
    while let Some(line) = lines.next().await {
        if sender.send(merge::line(number, &line?)).await.is_err() {
            // Nobody reads any more.
            return Ok(());
        }
    }
    Ok(())
}

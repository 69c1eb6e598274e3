//! Fetches the members' logs and prints them in order of time.

use std::io::Write;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::{AsyncBufRead, AsyncBufReadExt, StreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::LogParams;
use quorate_api::names;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::connect::{Connection, Found};
use crate::merge::{self, Line};
use crate::paint::{Paint, Tone};

/// While following, a line waits this long for earlier ones of other members.
const WINDOW: Duration = Duration::from_millis(300);
/// A log that ended is looked for again after this while following.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
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
    let sets: Api<StatefulSet> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let (sender, mut receiver) = mpsc::channel::<Line>(QUEUE);
    let mut readers = JoinSet::new();
    for (number, member) in members.iter().enumerate() {
        let reader =
            Reader { pods: pods.clone(), sets: sets.clone(), member: member.clone(), number, sender: sender.clone() };
        let params = wanted.params();
        readers.spawn(async move {
            let read = reader.all(params).await;
            read.inspect_err(|error| eprintln!("{}: {error:#}", reader.member)).is_ok()
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
    // Of the first line that is held.
    let mut due = None;
    loop {
        let come = match due {
            Some(due) if wanted.follow => tokio::time::timeout_at(due, receiver.recv()).await,
            _ => Ok(receiver.recv().await),
        };
        match come {
            // All of it is merged at once, unless it never ends.
            Ok(Some(line)) if !wanted.follow || held.len() < QUEUE => {
                due.get_or_insert_with(|| Instant::now() + WINDOW);
                held.push(line);
            }
            Ok(Some(line)) => {
                write_all(&merge::merged(std::mem::take(&mut held)), &shown)?;
                due = Some(Instant::now() + WINDOW);
                held.push(line);
            }
            Ok(None) => break,
            Err(_) => {
                write_all(&merge::merged(std::mem::take(&mut held)), &shown)?;
                due = None;
            }
        }
    }
    write_all(&merge::merged(held), &shown)?;
    if !readers.join_all().await.contains(&true) {
        bail!("no log could be read");
    }
    Ok(())
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

/// Hands the lines of one member on.
struct Reader {
    pods: Api<Pod>,
    sets: Api<StatefulSet>,
    member: String,
    number: usize,
    sender: mpsc::Sender<Line>,
}

impl Reader {
    /// Every line there is; who follows goes on with the next container and the next pod while there is such a member.
    ///
    /// # Errors
    /// The log cannot be read.
    async fn all(&self, wanted: LogParams) -> Result<()> {
        let mut last = None;
        let pod = names::pod(&self.member);
        let first = self.pods.log_stream(&pod, &wanted).await?;
        self.some(first, &mut last).await;
        while wanted.follow && !self.sender.is_closed() && self.is_there().await {
            tokio::time::sleep(REOPEN_AFTER).await;
            let params = match last {
                // It is asked for in whole seconds, rounded.
                Some(last) => LogParams {
                    since_time: Some(last - Duration::from_secs(1)),
                    since_seconds: None,
                    tail_lines: None,
                    ..wanted.clone()
                },
                None => wanted.clone(),
            };
            // There is no container yet, or its node does not answer.
            if let Ok(next) = self.pods.log_stream(&pod, &params).await {
                self.some(next, &mut last).await;
            }
        }
        Ok(())
    }

    /// Whom the API server cannot tell of may come back with it.
    async fn is_there(&self) -> bool {
        self.sets.get_opt(&self.member).await.map_or(true, |set| set.is_some())
    }

    /// One stream to its end, without what is not after `last`, which moves along.
    async fn some(&self, stream: impl AsyncBufRead, last: &mut Option<Timestamp>) {
        let known = *last;
        let mut lines = pin!(stream.lines());
        while let Some(Ok(line)) = lines.next().await {
            let line = merge::line(self.number, &line);
            if known.is_some() && line.time <= known {
                continue;
            }
            *last = line.time.or(*last);
            if self.sender.send(line).await.is_err() {
                // Nobody reads any more.
                return;
            }
        }
    }
}

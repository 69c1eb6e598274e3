//! Runs many members as plain processes on addresses of their own, as it is told line by line: what a kubelet and a container
//! runtime do, without what a pod costs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How often members are asked whether they are ready, as a kubelet asks them, and looked at whether they still run.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A member that is well answers within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const CLIENT_PORT: u16 = 2379;

#[derive(Args, Debug, Clone)]
pub struct HostArgs {
    /// The member program
    #[arg(long, default_value = "/quorate-node")]
    node: PathBuf,
    /// Where members keep their data, a directory each
    #[arg(long, default_value = "/hosted")]
    dir: PathBuf,
}

/// A line of what to do.
#[derive(Serialize, Deserialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// `data` names the directory, which a later start of the same member finds again.
    Start {
        id: String,
        data: String,
        address: String,
        arguments: Vec<String>,
    },
    Stop {
        id: String,
    },
    /// Connections are taken and nothing is ever answered.
    Freeze {
        id: String,
    },
    Thaw {
        id: String,
    },
}

/// A line of what is.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Told {
    Ready { id: String },
    NotReady { id: String },
    Ended { id: String },
}

struct Member {
    child: Child,
    address: String,
    is_ready: bool,
}

pub async fn run(args: HostArgs) -> Result<()> {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut members = BTreeMap::<String, Member>::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            line = orders.next_line() => match line? {
                Some(line) => obey(&args, &mut members, serde_json::from_str(&line).context(line)?)?,
                // Nobody is left to tell what to do: the members go with this process.
                None => return Ok(()),
            },
            _ = look.tick() => tell(&mut members).await?,
        }
    }
}

fn obey(args: &HostArgs, members: &mut BTreeMap<String, Member>, order: Order) -> Result<()> {
    match order {
        Order::Start { id, data, address, arguments } => {
            let dir = args.dir.join(data);
            std::fs::create_dir_all(&dir)?;
            let log = std::fs::File::options().create(true).append(true).open(dir.join("log.txt"))?;
            let mut command = Command::new(&args.node);
            let own = arguments.into_iter().filter(|argument| !argument.starts_with("--data-dir="));
            command.args(own.map(|argument| argument.replace("0.0.0.0", &address)));
            command.arg("--data-dir").arg(dir.join("member")).args(["--log-segment-bytes", "1048576"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
            let child = command.spawn().with_context(|| format!("cannot start {}", args.node.display()))?;
            members.insert(id, Member { child, address, is_ready: false });
        }
        Order::Stop { id } => signal(members, &id, rustix::process::Signal::TERM),
        Order::Freeze { id } => signal(members, &id, rustix::process::Signal::STOP),
        Order::Thaw { id } => signal(members, &id, rustix::process::Signal::CONT),
    }
    Ok(())
}

fn signal(members: &BTreeMap<String, Member>, id: &str, signal: rustix::process::Signal) {
    let pid = members.get(id).and_then(|member| member.child.id()).and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // It may have ended by itself, which is told all the same.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

async fn tell(members: &mut BTreeMap<String, Member>) -> Result<()> {
    let mut told = Vec::new();
    for (id, member) in members.iter_mut() {
        if member.child.try_wait()?.is_some() {
            told.push(Told::Ended { id: id.clone() });
        }
    }
    for gone in &told {
        if let Told::Ended { id } = gone {
            members.remove(id);
        }
    }
    let asked = members.values().map(|member| is_ready(&member.address));
    let answers = futures::future::join_all(asked).await;
    for ((id, member), now) in members.iter_mut().zip(answers) {
        if now != member.is_ready {
            member.is_ready = now;
            let id = id.clone();
            told.push(if now { Told::Ready { id } } else { Told::NotReady { id } });
        }
    }
    let mut out = tokio::io::stdout();
    for line in told {
        out.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes()).await?;
    }
    Ok(out.flush().await?)
}

/// As a kubelet probes.
async fn is_ready(address: &str) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect((address, CLIENT_PORT)).await.ok()?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: member\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer == *b"HTTP/1.1 200")
    };
    tokio::time::timeout(ANSWER_LIMIT, asked).await.ok().flatten().unwrap_or_default()
}

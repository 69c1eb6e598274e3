//! `kubectl-quorate`: the command line around the library. kubectl finds it in PATH and runs it as `kubectl quorate`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser};
use kube::api::{Patch, PatchParams};
use quorate_api::{ConsistentCluster, names, unknown_fields};
use quorate_kubectl::args::{Cli, Command, Output};
use quorate_kubectl::ask::Ask;
use quorate_kubectl::connect::{Connection, explain};
use quorate_kubectl::logs::{self, Wanted};
use quorate_kubectl::paint::Paint;
use quorate_kubectl::planned::{Planned, as_applied, changes, doubts, last_applied};
use quorate_kubectl::{bundle, observe, screen, wait};
use quorate_plan::{Intent, plan};
use serde::Serialize;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(command(Cli::parse())),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubectl quorate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn command(cli: Cli) -> Result<()> {
    let paint = Paint::of(cli.color);
    let connect = async || Connection::open(&cli.connect).await;
    let ask = async |cluster: &str, what: Ask, how| wait::ask(&connect().await?, cluster, &what, how).await;
    match &cli.command {
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "kubectl-quorate", &mut std::io::stdout());
            Ok(())
        }
        Command::Status { cluster, output } => status(&connect().await?, cluster.as_deref(), *output, paint).await,
        Command::Plan { cluster, file, output } => {
            show_plan(connect().await?, cli.connect.namespace.is_some(), cluster.as_deref(), file.as_deref(), *output)
                .await
        }
        Command::TransferLeader { cluster, member, wait } => {
            ask(cluster, Ask::Transfer { to: member.clone() }, wait).await
        }
        Command::Fence { cluster, member, wait } => ask(cluster, Ask::Fence { member: member.clone() }, wait).await,
        Command::Unfence { cluster, member, wait } => ask(cluster, Ask::Unfence { member: member.clone() }, wait).await,
        Command::Replace { cluster, member, wait } => ask(cluster, Ask::Replace { member: member.clone() }, wait).await,
        Command::Restart { cluster, member, wait } => ask(cluster, Ask::Restart { member: member.clone() }, wait).await,
        Command::Logs { cluster, members, follow, since, tail, previous, timestamps } => {
            let wanted = Wanted {
                members: members.clone(),
                follow: *follow,
                since: *since,
                tail: *tail,
                previous: *previous,
                timestamps: *timestamps,
            };
            logs::print(&connect().await?, cluster, &wanted, paint).await
        }
        Command::Report { cluster, file, tail } => {
            let path = file.clone().unwrap_or_else(|| PathBuf::from(format!("{cluster}-report.tar.gz")));
            let (files, unread) = bundle::write(&connect().await?, cluster, &path, *tail).await?;
            for what in &unread {
                eprintln!("not in it: {what}");
            }
            println!("{}: {files} files. Look at what is in it before you give it away", path.display());
            Ok(())
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn status(connection: &Connection, cluster: Option<&str>, output: Output, paint: Paint) -> Result<()> {
    let Some(name) = cluster else {
        let clusters = connection.list().await?;
        match output {
            Output::Text if clusters.is_empty() => {
                println!("no ConsistentCluster in namespace {}; give --namespace", connection.namespace);
            }
            Output::Text => print!("{}", screen::list(&clusters)),
            Output::Json | Output::Yaml => print_as(&clusters.iter().map(named).collect::<Vec<_>>(), output)?,
        }
        return Ok(());
    };
    let cluster = connection.cluster(name).await?;
    match output {
        Output::Text => {
            print!("{}", screen::screen(&cluster, i64::try_from(now_ms()).unwrap_or(i64::MAX), paint));
            Ok(())
        }
        Output::Json | Output::Yaml => print_as(&cluster.status, output),
    }
}

/// A status says everything but whose it is.
fn named(cluster: &ConsistentCluster) -> Value {
    let meta = &cluster.metadata;
    json!({"namespace": meta.namespace, "name": meta.name, "status": cluster.status})
}

fn print_as(value: &impl Serialize, output: Output) -> Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Output::Yaml | Output::Text => print!("{}", serde_yaml_ng::to_string(value)?),
    }
    Ok(())
}

async fn show_plan(
    mut connection: Connection,
    is_namespace_given: bool,
    cluster: Option<&str>,
    file: Option<&Path>,
    output: Output,
) -> Result<()> {
    let (intended, changed) = match (file, cluster) {
        (None, None) => bail!("which cluster? give its name, or a manifest with -f"),
        (None, Some(name)) => (connection.cluster(name).await?, Vec::new()),
        (Some(path), _) => {
            let manifest = read_manifest(path)?;
            let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
            if let Some(asked) = cluster.filter(|asked| *asked != name) {
                bail!("{} is about {name:?}, not {asked:?}; leave the name away", path.display());
            }
            if let Some(namespace) = manifest["metadata"]["namespace"].as_str().filter(|_| !is_namespace_given) {
                namespace.clone_into(&mut connection.namespace);
            }
            edited(&connection, name, &manifest).await?
        }
    };
    let intent = Intent::of(&intended);
    let (seen, refusal) = observe::observed(&connection, &intent).await?;
    let plan = plan(&intent, &seen.observation, now_ms(), names::seed(&intent.identity().uid));
    let doubts = doubts(&plan, &observe::silent(&seen), refusal);
    let planned = Planned::of(&plan, changed, doubts);
    match output {
        Output::Text => print!("{}", planned.text()),
        Output::Json | Output::Yaml => print_as(&planned, output)?,
    }
    Ok(())
}

fn read_manifest(path: &Path) -> Result<Value> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    let manifest: Value =
        serde_yaml_ng::from_str(&text).with_context(|| format!("{} is not one YAML document", path.display()))?;
    if manifest["kind"] != "ConsistentCluster" {
        bail!("{}: kind is {}, not ConsistentCluster", path.display(), manifest["kind"]);
    }
    let unknown = unknown_fields(&manifest);
    if !unknown.is_empty() {
        bail!("{}: {} is not a field; correct or remove it", path.display(), unknown.join(", "));
    }
    if manifest["metadata"]["name"].as_str().is_none_or(str::is_empty) {
        bail!("{}: metadata.name is missing", path.display());
    }
    Ok(manifest)
}

/// The cluster as it would be, which the API server says, and what changes.
async fn edited(connection: &Connection, name: &str, manifest: &Value) -> Result<(ConsistentCluster, Vec<String>)> {
    let api = connection.clusters();
    let live = api.get_opt(name).await.map_err(|e| explain(&e, "read the ConsistentCluster"))?;
    let dry = match &live {
        Some(live) => {
            let params =
                PatchParams { dry_run: true, field_manager: Some(wait::MANAGER.to_owned()), ..PatchParams::default() };
            api.patch(name, &params, &Patch::Merge(&as_applied(manifest, last_applied(live).as_ref()))).await
        }
        None => {
            let params = PatchParams { dry_run: true, ..PatchParams::apply(wait::MANAGER) };
            api.patch(name, &params, &Patch::Apply(manifest)).await
        }
    };
    let edited = dry.map_err(|e| explain(&e, "apply the file, not even as a dry run"))?;
    let changed = match live {
        Some(live) => changes(&serde_json::to_value(live.spec)?, &serde_json::to_value(&edited.spec)?),
        None => vec![format!("{name} is made anew")],
    };
    Ok((edited, changed))
}

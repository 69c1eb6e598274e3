//! Who this member is: from its data directory, from the first configuration, or from the cluster it was added to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_log::{Identity, Log, LogError, Options, RealDisk};
use quorate_raft::types::{Config, ConfigAt, MemberId, MemberInfo, Recovered, SnapMeta};
use tokio::sync::watch;

use crate::args::{Args, ClusterState};
use crate::repair;
use crate::tls::Plane;
use crate::transport::{self, Frame, Hello, Purpose};

/// The incarnation a cluster is founded with.
const FIRST_INCARNATION: u64 = 1;
const JOIN_PAUSE: Duration = Duration::from_millis(500);

/// An opened data directory.
pub(crate) struct Opened {
    pub log: Log<RealDisk>,
    pub recovered: Recovered,
    pub identity: Identity,
    pub generation: u64,
    /// Members known before the log says so: those a joiner was told of.
    pub known: Config,
}

/// FNV-1a over the parts, finished with a mix. Never 0, which means "nobody".
pub fn hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash = (hash ^ (hash >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (hash ^ (hash >> 29)).max(1)
}

/// NAME=URL pairs; a name may come more than once.
fn parse_cluster(text: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in text.split(',').filter(|p| !p.is_empty()) {
        let (name, url) =
            pair.split_once('=').with_context(|| format!("--initial-cluster: {pair:?} is not NAME=PEER-URL"))?;
        transport::authority(url).with_context(|| format!("--initial-cluster: member {name:?}"))?;
        members.entry(name.to_owned()).or_default().push(url.to_owned());
    }
    ensure!(!members.is_empty(), "--initial-cluster is empty: write NAME=PEER-URL for each member");
    Ok(members)
}

fn sorted(urls: &[String]) -> Vec<&str> {
    let set: BTreeSet<&str> = urls.iter().map(String::as_str).collect();
    set.into_iter().collect()
}

/// The first configuration and the cluster id: the same on every member that was given the same flags.
fn founded(args: &Args) -> Result<(MemberId, u64, Config)> {
    let members = parse_cluster(&args.initial_cluster)?;
    let token = args.initial_cluster_token.as_str();
    let own = members.get(&args.name).with_context(|| {
        format!(
            "--initial-cluster {:?} has no member named {:?}: add it or correct --name",
            args.initial_cluster, args.name
        )
    })?;
    ensure!(
        sorted(own) == sorted(&args.initial_advertise_peer_urls),
        "--initial-cluster gives {:?} the peer URLs {own:?}, --initial-advertise-peer-urls says {:?}: make them equal",
        args.name,
        args.initial_advertise_peer_urls
    );
    let id = |urls: &[String]| {
        let mut parts = sorted(urls);
        parts.push(token);
        MemberId(hash(&parts))
    };
    let mut config = Config::default();
    for (name, urls) in &members {
        let member = id(urls);
        ensure!(config.voters.insert(member), "--initial-cluster: member {name:?} has the peer URLs of another one");
        let info = MemberInfo { name: name.clone(), peer_urls: urls.clone(), client_urls: Vec::new() };
        config.members.insert(member, info);
    }
    let ids: Vec<String> = config.voters.iter().map(ToString::to_string).collect();
    let mut parts: Vec<&str> = ids.iter().map(String::as_str).collect();
    parts.push(token);
    Ok((id(own), hash(&parts), config))
}

pub(crate) fn token_hash(args: &Args) -> u64 {
    hash(&[&args.initial_cluster_token])
}

/// Opens a damaged log once it was repaired; otherwise nothing was changed, and the error says what is lost.
async fn mend(
    args: &Args,
    plane: &Plane,
    dir: &Path,
    options: Options,
    engine: Option<&SnapMeta>,
    found: LogError,
) -> Result<Opened> {
    // What the log may begin with: the first configuration, or where the engine stands.
    let mut hints: Vec<SnapMeta> = engine.into_iter().cloned().collect();
    if let Ok((_, _, config)) = founded(args) {
        let config_at = ConfigAt { incarnation: FIRST_INCARNATION, term: 0, index: 0 };
        hints.push(SnapMeta { index: 0, term: 0, config, config_at });
    }
    hints.push(SnapMeta {
        config_at: ConfigAt { incarnation: FIRST_INCARNATION, term: 0, index: 0 },
        ..SnapMeta::default()
    });
    let own = &args.initial_advertise_peer_urls;
    let named = parse_cluster(&args.initial_cluster)?.into_values();
    let held = hints.iter().flat_map(|meta| meta.config.members.values().map(|info| info.peer_urls.clone()));
    // Those named may all be replaced by now.
    let joined = std::iter::once(args.join_urls.clone());
    let urls: BTreeSet<String> = named.chain(held).chain(joined).flatten().filter(|url| !own.contains(url)).collect();
    let urls: Vec<String> = urls.into_iter().collect();
    let disk = repair::at_start(lock(dir)?, &options, hints, plane, &urls, token_hash(args), found).await?;
    let (log, recovered) = Log::open(disk, options, None).map_err(repair::for_good)?;
    Ok(opened(log, recovered, Config::default()))
}

/// Opens the directory's log, or founds or joins first when it holds none. Tells `lost` why this member can never join, if the
/// others know that it ran before.
pub(crate) async fn open(
    args: &Args,
    plane: &Plane,
    boot_nonce: u64,
    engine: Option<&SnapMeta>,
    lost: &watch::Sender<String>,
) -> Result<Opened> {
    let dir = repair::log_dir(&args.data_dir);
    let options = args.log_options(boot_nonce);
    let disk = lock(&dir)?;
    match Log::open(disk, options, None) {
        Ok((log, recovered)) => Ok(opened(log, recovered, Config::default())),
        Err(LogError::Missing) => create(args, plane, &dir, options, lost).await,
        Err(error) if repair::is_damage(&error) => mend(args, plane, &dir, options, engine, error)
            .await
            .with_context(|| format!("cannot open the log in {}: replace this member under a new id", dir.display())),
        Err(error) => Err(repair::for_good(error)).with_context(|| format!("cannot open the log in {}", dir.display())),
    }
}

fn lock(dir: &Path) -> Result<RealDisk> {
    RealDisk::open_dir(dir).with_context(|| {
        format!("cannot use {}: another process may hold it, or its permissions are wrong", dir.display())
    })
}

fn opened(log: Log<RealDisk>, recovered: Recovered, known: Config) -> Opened {
    let (identity, generation) = (log.identity(), log.generation());
    Opened { log, recovered, identity, generation, known }
}

async fn create(
    args: &Args,
    plane: &Plane,
    dir: &Path,
    options: Options,
    lost: &watch::Sender<String>,
) -> Result<Opened> {
    let (identity, config, known) = match args.initial_cluster_state {
        ClusterState::New => {
            let (member, cluster_id, config) = founded(args)?;
            tracing::info!(cluster_id = format!("{cluster_id:x}"), %member, members = config.voters.len(), "founding a cluster");
            let identity = Identity { cluster_id, member_id: member.0, incarnation: FIRST_INCARNATION };
            (identity, config.clone(), config)
        }
        ClusterState::Existing => {
            let (identity, known) = join(args, plane, lost).await?;
            (identity, Config::default(), known)
        }
    };
    let config_at = ConfigAt { incarnation: identity.incarnation, term: 0, index: 0 };
    let bootstrap = SnapMeta { index: 0, term: 0, config, config_at };
    let log = Log::create(lock(dir)?, options, identity, bootstrap.clone())
        .with_context(|| format!("cannot create a log in {}", dir.display()))?;
    let recovered = Recovered { snapshot: bootstrap, incarnation: identity.incarnation, ..Recovered::default() };
    Ok(opened(log, recovered, known))
}

/// Whether two members' URLs have an address in common. The scheme is how it is spoken to, not where it is.
fn are_of_one(some: &[String], others: &[String]) -> bool {
    let address = |url: &String| url.split_once("://").map_or("", |(_, rest)| rest.trim_end_matches('/')).to_owned();
    some.iter().any(|one| others.iter().any(|other| address(one) == address(other)))
}

/// Asks the members until one of them has this member in its committed configuration.
async fn join(args: &Args, plane: &Plane, lost: &watch::Sender<String>) -> Result<(Identity, Config)> {
    let members = parse_cluster(&args.initial_cluster)?;
    let named = members.iter().filter(|(name, _)| **name != args.name).flat_map(|(_, urls)| urls.clone());
    let others: Vec<String> = named.chain(args.join_urls.iter().cloned()).collect();
    if others.is_empty() {
        bail!(
            "--initial-cluster-state existing, but --initial-cluster {:?} names nobody else to ask: add one, or give --join-urls",
            args.initial_cluster
        );
    }
    let hello = Hello::of_nobody(Purpose::Members, token_hash(args));
    let mut told = String::new();
    loop {
        let mut why = String::new();
        for url in &others {
            match transport::ask_members(std::slice::from_ref(url), plane, &hello).await {
                Ok(Frame::Members { cluster_id, incarnation, at: _, config, started }) => {
                    let urls = &args.initial_advertise_peer_urls;
                    let own = config.members.iter().find(|(_, info)| are_of_one(&info.peer_urls, urls));
                    if let Some((member, _)) = own
                        && started.contains(member)
                    {
                        why = format!(
                            "member {member} with a peer URL of {urls:?} has run before, and its data directory is not \
                             here: what it promised is lost; remove it and add it again under a new id"
                        );
                        lost.send_replace(why.clone());
                        break;
                    }
                    if let Some((member, _)) = own {
                        tracing::info!(%member, cluster_id = format!("{cluster_id:x}"), "joining a cluster");
                        return Ok((Identity { cluster_id, member_id: member.0, incarnation }, config));
                    }
                    why = format!(
                        "no member of the cluster has a peer URL of {urls:?} yet: add it with `etcdctl member add --learner`"
                    );
                }
                Ok(_) => why = format!("{url} answered something else"),
                Err(error) => why = format!("{error:#}"),
            }
        }
        if why != told {
            tracing::info!("waiting to join: {why}");
            told = why;
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(name: &str, url: &str) -> Args {
        let cluster = "a=http://h:1,b=http://h:2,c=http://h:3";
        Args::parse_from([
            "quorate-node",
            "--name",
            name,
            "--initial-cluster",
            cluster,
            "--initial-advertise-peer-urls",
            url,
        ])
    }

    #[test]
    fn every_founder_computes_the_same_cluster() {
        let (a, cluster, config) = founded(&args("a", "http://h:1")).expect("valid flags");
        let (b, same, equal) = founded(&args("b", "http://h:2")).expect("valid flags");
        assert_eq!((cluster, &config), (same, &equal));
        assert!(a != b && config.voters.contains(&a) && config.voters.contains(&b));
    }

    #[test]
    fn a_member_is_found_by_its_address_whatever_the_scheme() {
        let urls = |url: &str| vec![url.to_owned()];
        assert!(are_of_one(&urls("http://h:1"), &urls("https://h:1/")));
        assert!(!are_of_one(&urls("http://h:1"), &urls("http://h:2")));
    }

    #[test]
    fn wrong_flags_are_named() {
        let text = |args: &Args| format!("{:#}", founded(args).expect_err("invalid"));
        assert!(text(&args("d", "http://h:1")).contains("no member named \"d\""));
        assert!(text(&args("a", "http://h:9")).contains("--initial-advertise-peer-urls"));
    }
}

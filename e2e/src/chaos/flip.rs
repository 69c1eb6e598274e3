//! Flipped bits in the files of a member that stands still.
//!
//! Started again, it serves the right bytes (untouched or repaired), or refuses to start and says why; then it gets the copy
//! back that was taken before the flip, which is no loss of memory, because it did not speak meanwhile.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use rustix::process::Signal;

use crate::chaos::load::ONCE_PREFIX;
use crate::chaos::members::Members;
use crate::chaos::rig::tool;
use crate::chaos::{Campaign, Row, Setting, judge};
use crate::poll;
use crate::writer::read_all;

const ROUNDS: u32 = 50;
/// What a member logs that can never be one again.
const SILENCED: &str = "this member must not speak any more";
/// Flips on one cluster: damage that nothing has read yet stays, and the history grows.
const ROUNDS_PER_CLUSTER: u32 = 50;
const BITS_MAX: u64 = 3;
/// A stopped process ends within this; so does one that refuses its data.
const END_LIMIT: Duration = Duration::from_secs(10);
/// From start to serving what all others have, or to a refusal.
const VERDICT_LIMIT: Duration = Duration::from_secs(20);
/// Share of flips in the part of a file that holds anything but zeros written ahead.
const USED_PERCENT: u64 = 90;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Outcome {
    Served,
    Refused,
}

pub async fn run(setting: &Setting) -> Result<Vec<Row>> {
    self_test(&setting.dir)?;
    let total = setting.rounds(ROUNDS);
    let (mut rows, mut rng, mut done) = (Vec::new(), setting.rng(5), 0);
    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
    while done < total {
        let rounds = ROUNDS_PER_CLUSTER.min(total - done);
        let part = Setting { dir: setting.dir.join(format!("from-{done}")), ..setting.clone() };
        std::fs::create_dir_all(&part.dir)?;
        // In memory: a thousand copies of a member's data would only keep the disk busy.
        tool("mount", ["-t", "tmpfs", "chaos", &part.dir.to_string_lossy()]).await?;
        let result = some(&part, rounds, &mut rng, &mut outcomes).await;
        let is_broken = result.as_ref().map_or(true, |rows| rows.iter().any(|r| r.problem.is_some()));
        if is_broken {
            let to = setting.dir.join("broken");
            tool("cp", ["-a", "--sparse=always", &part.dir.to_string_lossy(), &to.to_string_lossy()]).await?;
        }
        tool("umount", ["-l", &part.dir.to_string_lossy()]).await?;
        merge(&mut rows, result?);
        done += rounds;
        if is_broken {
            break;
        }
    }
    let counted: Vec<String> = outcomes.iter().map(|(what, count)| format!("{what} {count}")).collect();
    if let Some(first) = rows.first_mut() {
        first.remark = counted.join(", ");
    }
    Ok(rows)
}

/// Adds the rows of one more cluster to those of the same class.
fn merge(rows: &mut Vec<Row>, more: Vec<Row>) {
    for row in more {
        match rows.iter_mut().find(|r| r.class == row.class) {
            Some(sum) => {
                sum.rounds += row.rounds;
                sum.faults += row.faults;
                sum.operations += row.operations;
                sum.worst_gap = sum.worst_gap.max(row.worst_gap);
                sum.problem = sum.problem.take().or(row.problem);
                sum.remark = row.remark;
            }
            None => rows.push(row),
        }
    }
}

async fn some(setting: &Setting, rounds: u32, rng: &mut Rng, outcomes: &mut BTreeMap<String, u32>) -> Result<Vec<Row>> {
    let program = setting.program(&["--snapshot-count", "300", "--snapshot-catchup-entries", "100"]);
    let members = Members::on_loopback(program, &setting.dir, 0)?;
    let mut campaign = Campaign::start(setting, members).await?;
    let body = campaign.class("flipped bits", rounds, async |c, _| round(c, rng, outcomes).await).await;
    campaign.finish("flip", body).await
}

async fn round(campaign: &mut Campaign, rng: &mut Rng, outcomes: &mut BTreeMap<String, u32>) -> Result<u32> {
    let victim = rng.usize(..3);
    let kept = campaign.context.dir.join("kept");
    let data_dir = campaign.members.list[victim].home.data_dir.clone();
    campaign.members.list[victim].signal(if rng.bool() { Signal::KILL } else { Signal::TERM })?;
    campaign.members.list[victim].ended(END_LIMIT).await?;
    copy(&data_dir, &kept).await?;
    let mut files = Vec::new();
    let bits = 1 + rng.u64(..BITS_MAX);
    for _ in 0..bits {
        files.push(flip(&data_dir, rng, &campaign.context.dir.join("flips.log"))?);
    }
    let log_from = campaign.members.list[victim].log_bytes();
    campaign.members.start(victim)?;
    let outcome = verdict(campaign, victim, log_from).await.with_context(|| format!("flipped in {files:?}"))?;
    for file in &files {
        *outcomes.entry(format!("{} {outcome:?}", kind(file))).or_default() += 1;
    }
    if outcome == Outcome::Refused {
        std::fs::remove_dir_all(&data_dir)?;
        std::fs::rename(&kept, &data_dir)?;
        campaign.members.start(victim)?;
    }
    Ok(u32::try_from(bits)?)
}

/// What a file is, for the count: its path with numbers left out.
fn kind(file: &str) -> String {
    let words = file.split(['/', '-', '.']).map(|w| if w.chars().any(|c| c.is_ascii_digit()) { "N" } else { w });
    words.collect::<Vec<_>>().join(".")
}

/// Waits until the member serves the right bytes or has refused its data.
async fn verdict(campaign: &mut Campaign, victim: usize, log_from: u64) -> Result<Outcome> {
    let started = Instant::now();
    let mut last = anyhow::anyhow!("not asked yet");
    while started.elapsed() < VERDICT_LIMIT {
        let member = &mut campaign.members.list[victim];
        if let Some(status) = member.try_ended()? {
            let said = member.log_since(log_from);
            let reason = said.lines().rev().find(|l| l.contains("ERROR")).map(str::to_owned);
            ensure!(
                status.code() == Some(1) && reason.is_some(),
                "{} ended with {status} without a clear reason: {}",
                member.name,
                member.log_tail(8)
            );
            eprintln!("      refused: {}", reason.unwrap_or_default().chars().take(220).collect::<String>());
            return Ok(Outcome::Refused);
        }
        // It stays up to tell that it has to be replaced, and says nothing else.
        if let Some(reason) = member.log_since(log_from).lines().find(|line| line.contains(SILENCED)) {
            eprintln!("      refused: {}", reason.chars().take(220).collect::<String>());
            member.signal(Signal::KILL)?;
            member.ended(END_LIMIT).await?;
            return Ok(Outcome::Refused);
        }
        match serves(campaign, victim).await {
            Ok(revision) => {
                same_everywhere(campaign, victim, revision).await?;
                return Ok(Outcome::Served);
            }
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    bail!("neither serves nor refuses after {} s: {last:#}", VERDICT_LIMIT.as_secs())
}

/// The revision the member serves, once it has a leader and is up to date.
async fn serves(campaign: &Campaign, victim: usize) -> Result<i64> {
    let leader = campaign.members.leader().await?;
    let status = campaign.members.list[victim].status().await?;
    let reference = campaign.members.list[leader].status().await?;
    ensure!(status.leader == reference.leader, "names leader {:x}", status.leader);
    let revision = |s: &quorate_proto::etcdserverpb::StatusResponse| s.header.as_ref().map_or(0, |h| h.revision);
    // The leader was asked later; what it had a moment ago is enough.
    ensure!(revision(&status) > 1 && status.raft_applied_index + 200 > reference.raft_applied_index, "is behind");
    Ok(revision(&status))
}

/// The victim's own word at a revision, beside that of the others, and the hash of all.
async fn same_everywhere(campaign: &Campaign, victim: usize, revision: i64) -> Result<()> {
    let url = campaign.members.list[victim].client_url();
    let other = campaign.members.list[(victim + 1) % 3].client_url();
    for prefix in [ONCE_PREFIX, "r/"] {
        let own = read_all(&url, prefix, Some(revision)).await?.1;
        let right = poll::until("the others to have that revision", END_LIMIT, Duration::from_millis(20), async || {
            Ok(read_all(&other, prefix, Some(revision)).await?.1)
        });
        let right = right.await?;
        if let Some((got, want)) = own.iter().zip(&right).find(|(got, want)| got != want) {
            bail!("WRONG BYTES at revision {revision}: {got:?} instead of {want:?}");
        }
        ensure!(own.len() == right.len(), "WRONG BYTES: {} keys under {prefix}, not {}", own.len(), right.len());
    }
    poll::until("all members to have that revision", END_LIMIT, Duration::from_millis(20), async || {
        judge::same_hashes(&campaign.members, revision).await
    })
    .await
}

/// A copy in place of what was there. Files that hold no promise stay behind.
async fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    tool("cp", ["-a", "--sparse=always", &from.to_string_lossy(), &to.to_string_lossy()]).await?;
    Ok(())
}

/// Flips one bit in one file below `dir`; returns the file's path there.
fn flip(dir: &Path, rng: &mut Rng, log: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(dir, &mut files)?;
    ensure!(!files.is_empty(), "{} holds no file", dir.display());
    let path = &files[rng.usize(..files.len())];
    let mut bytes = std::fs::read(path)?;
    let used = bytes.iter().rposition(|b| *b != 0).map_or(bytes.len(), |at| at + 1);
    let within = if rng.u64(..100) < USED_PERCENT { used } else { bytes.len() };
    let (at, bit) = (rng.usize(..within), rng.u64(..8));
    let before = bytes[at];
    bytes[at] ^= 1 << bit;
    let shown = path.strip_prefix(dir).unwrap_or(path).display().to_string();
    // One byte in place: the rest of the file keeps its holes.
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(path)?,
        &bytes[at..=at],
        at as u64,
    )?;
    let now = std::fs::read(path)?;
    ensure!(now[at] != before, "the flip in {shown} had no effect");
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    writeln!(log, "{} byte {at} of {used} used, bit {bit}: {before:#04x} to {:#04x}", path.display(), now[at])?;
    Ok(shown)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.metadata()?.len() > 0 {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// A flip changes exactly one bit of what is read back.
fn self_test(dir: &Path) -> Result<()> {
    let probe = dir.join("self-test");
    std::fs::create_dir_all(&probe)?;
    let before = vec![0x5a_u8; 8192];
    std::fs::write(probe.join("file"), &before)?;
    flip(&probe, &mut Rng::with_seed(1), &dir.join("self-test.log"))?;
    let after = std::fs::read(probe.join("file"))?;
    let bits: u32 = before.iter().zip(&after).map(|(a, b)| (a ^ b).count_ones()).sum();
    ensure!(bits == 1 && before.len() == after.len(), "a flip changed {bits} bits");
    std::fs::remove_dir_all(&probe)?;
    eprintln!("    self-test: a flip changed 1 bit of {}", before.len() * 8);
    Ok(())
}

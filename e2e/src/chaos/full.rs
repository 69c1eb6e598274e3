//! Full disks: a follower waits for room while the others go on; a leader refuses what grows or hands over; whoever ends
//! says why; reads go on; freed space is all it takes to recover.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::chaos::members::Members;
use crate::chaos::rig::{Image, tool};
use crate::chaos::{Campaign, Row, Setting};
use crate::poll;

const ROUNDS: u32 = 2;
/// Room for everything a whole run writes: the ballast takes what is to be missing.
const IMAGE_MIB: u64 = 2048;
/// What the ballast leaves.
const LEFT_BYTES: u64 = 3 << 20;
const BALLAST_LIMIT: Duration = Duration::from_secs(10);
/// Values while the disk fills: a segment is full in seconds.
const VALUE_BYTES: usize = 256 << 10;
/// From the first large value until the disk is full: two segments of the log lie ready.
const FILL_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// Between the first member that ends and the last.
const LAST_ENDS: Duration = Duration::from_secs(2);
/// Reads that must be answered while the disk is full, and writes if one follower alone has no room.
const READS: u64 = 50;
const WRITES: u64 = 50;
const READ_LIMIT: Duration = Duration::from_secs(10);

/// What a member says whose log finds no room.
const WAITS: &str = "a write waits for room";

/// How a full disk showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shown {
    Refused,
    Ended,
    /// The member's own writes wait for room, and the cluster goes on without it.
    Waits,
}

pub async fn run(setting: &Setting) -> Result<Vec<Row>> {
    self_test(setting).await.context("self-test of the full disk")?;
    let (mut images, homes) = setting.on_images(IMAGE_MIB).await?;
    let program = setting.program(&["--snapshot-count", "1000"]);
    let members = Members::new(program, homes, &setting.dir)?;
    let mut campaign = Campaign::start(setting, members).await?;
    let body = classes(&mut campaign, setting, &images).await;
    let rows = campaign.finish("full", body).await?;
    for image in &mut images {
        image.unmount().await?;
    }
    Ok(rows)
}

async fn classes(campaign: &mut Campaign, setting: &Setting, images: &[Image]) -> Result<()> {
    let rounds = setting.rounds(ROUNDS);
    campaign
        .class("full disk of follower", rounds, async |c, _| {
            let victim = (c.members.led().await? + 1) % 3;
            fill(c, images, &[victim]).await
        })
        .await?;
    campaign
        .class("full disk of leader", rounds, async |c, _| {
            let victim = c.members.led().await?;
            fill(c, images, &[victim]).await
        })
        .await?;
    campaign.class("full disk of all", rounds, async |c, _| fill(c, images, &[0, 1, 2]).await).await
}

async fn fill(campaign: &mut Campaign, images: &[Image], victims: &[usize]) -> Result<u32> {
    let log_from: Vec<u64> = campaign.members.list.iter().map(super::members::Member::log_bytes).collect();
    let mut ballasts = Vec::new();
    for victim in victims {
        ballasts.push(ballast(&images[*victim]).await?);
    }
    campaign.recorder().pad_values(VALUE_BYTES);
    let shown = shows(campaign, victims, &log_from).await;
    let reads = if shown.is_ok() { reads_go_on(campaign, victims).await } else { Ok(()) };
    campaign.recorder().pad_values(0);
    for ballast in &ballasts {
        std::fs::remove_file(ballast)?;
    }
    let shown = shown?;
    reads?;
    eprintln!("      {shown:?}");
    // Whoever met the full disk ends by now; a first one that ended told nothing of the others.
    tokio::time::sleep(LAST_ENDS).await;
    for (at, from) in log_from.iter().enumerate() {
        ended_clearly(campaign, at, *from)?;
    }
    campaign.members.start_missing()?;
    Ok(1)
}

/// Whether a member has ended; if so it must have said why.
fn ended_clearly(campaign: &mut Campaign, at: usize, log_from: u64) -> Result<bool> {
    let member = &mut campaign.members.list[at];
    let Some(status) = member.try_ended()? else { return Ok(false) };
    let said = member.log_since(log_from);
    let is_clear = said.contains("os error 28") || said.to_lowercase().contains("no space");
    ensure!(is_clear, "{} ended ({status}) without a clear reason: {}", member.name, member.log_tail(5));
    Ok(true)
}

/// Waits until a victim ended for want of space or waits for some, or clients are refused.
async fn shows(campaign: &mut Campaign, victims: &[usize], log_from: &[u64]) -> Result<Shown> {
    let (started, refused) = (Instant::now(), campaign.recorder().refused());
    while started.elapsed() < FILL_LIMIT {
        if campaign.recorder().refused() > refused {
            return Ok(Shown::Refused);
        }
        for &victim in victims {
            if ended_clearly(campaign, victim, log_from[victim])? {
                return Ok(Shown::Ended);
            }
            let is_alone = victims.len() == 1;
            if is_alone && campaign.members.list[victim].log_since(log_from[victim]).contains(WAITS) {
                writes_go_on(campaign).await?;
                return Ok(Shown::Waits);
            }
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("after {} s on a full disk no member has ended and no write was refused", FILL_LIMIT.as_secs())
}

/// One member without room takes nothing from the others.
async fn writes_go_on(campaign: &mut Campaign) -> Result<()> {
    let (started, before) = (Instant::now(), campaign.recorder().acknowledged());
    while started.elapsed() < READ_LIMIT {
        if campaign.recorder().acknowledged() >= before + WRITES {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    let done = campaign.recorder().acknowledged() - before;
    bail!("only {done} writes acknowledged in {} s beside one full disk", READ_LIMIT.as_secs())
}

/// With a majority left, reads are answered; so they are if all run on.
async fn reads_go_on(campaign: &mut Campaign, victims: &[usize]) -> Result<()> {
    let running = campaign.members.list.iter().filter(|m| m.is_running()).count();
    if victims.len() > 1 && running < 3 {
        return Ok(());
    }
    let (started, before) = (Instant::now(), campaign.recorder().reads());
    while started.elapsed() < READ_LIMIT {
        if campaign.recorder().reads() >= before + READS {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("only {} reads answered in {} s", campaign.recorder().reads() - before, READ_LIMIT.as_secs())
}

/// A file that leaves almost no room. Members write meanwhile, so what was free may not be when it is taken.
async fn ballast(image: &Image) -> Result<PathBuf> {
    let path = image.mount.join("ballast");
    let shown = path.to_string_lossy().into_owned();
    poll::until("room for the ballast", BALLAST_LIMIT, POLL, async || {
        let bytes = image.free_bytes()?.saturating_sub(LEFT_BYTES).to_string();
        tool("fallocate", ["-l", bytes.as_str(), shown.as_str()]).await
    })
    .await?;
    Ok(path)
}

async fn self_test(setting: &Setting) -> Result<()> {
    let mut image = Image::create(&setting.dir, "self-test", 64).await?;
    let ballast = ballast(&image).await?;
    let result = std::fs::write(image.mount.join("more"), vec![b'x'; usize::try_from(2 * LEFT_BYTES)?]);
    let refused = result.is_err_and(|e| e.kind() == std::io::ErrorKind::StorageFull);
    ensure!(refused, "a write of {} bytes fits beside the ballast", 2 * LEFT_BYTES);
    std::fs::remove_file(ballast)?;
    image.unmount().await?;
    eprintln!("    self-test: beside the ballast a write ends with ENOSPC");
    Ok(())
}

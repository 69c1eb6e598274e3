//! The power of the whole cluster is cut: what was not flushed is gone on every member at one moment.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::chaos::members::{Members, Program};
use crate::chaos::rig::{Image, cut_power};
use crate::chaos::{Campaign, Row, Setting, judge};

const ROUNDS: u32 = 20;
/// Room for the log's segments with their spare, and for checkpoints.
const IMAGE_MIB: u64 = 640;
/// Work before the cut. Short: the kernel writes dirty pages back by itself within seconds.
const WORK_MS_MAX: u64 = 700;
const SELF_TEST_BYTES: usize = 4096;
/// Without flushes the first cut should do; a quiet kernel may have written everything back.
const LYING_CUTS_MAX: u32 = 5;
const DEAD_LIMIT: Duration = Duration::from_secs(5);

pub async fn run(setting: &Setting) -> Result<Vec<Row>> {
    self_test(&setting.dir).await.context("self-test of the power cut")?;
    lying_disks_lose(setting).await.context("self-test of the power cut")?;
    let (mut campaign, mut images) = start(setting, Vec::new()).await?;
    let mut rng = setting.rng(4);
    let body = campaign
        .class("power cut of all", setting.rounds(ROUNDS), async |c, _| {
            tokio::time::sleep(Duration::from_millis(rng.u64(..WORK_MS_MAX))).await;
            cut(c, &mut images).await
        })
        .await;
    let rows = campaign.finish("power", body).await?;
    for image in &mut images {
        image.unmount().await?;
    }
    Ok(rows)
}

async fn start(setting: &Setting, prefix: Vec<String>) -> Result<(Campaign, Vec<Image>)> {
    let (images, homes) = setting.on_images(IMAGE_MIB).await?;
    // Few entries between checkpoints, so that cuts meet them, too.
    let program = setting.program(&["--snapshot-count", "300", "--snapshot-catchup-entries", "100"]);
    let members = Members::new(Program { prefix, ..program }, homes, &setting.dir)?;
    Ok((Campaign::start(setting, members).await?, images))
}

/// On disks whose flushes do nothing, the same cuts must be seen to lose what was acknowledged: otherwise neither the cuts
/// nor the account of acknowledgements are worth anything.
async fn lying_disks_lose(setting: &Setting) -> Result<()> {
    let setting = Setting { dir: setting.dir.join("lying"), ..setting.clone() };
    std::fs::create_dir_all(&setting.dir)?;
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"];
    let inject = ["-e", "inject=fdatasync,fsync:retval=0"];
    let prefix = strace.iter().chain(&inject).map(|w| (*w).to_owned()).collect();
    let (mut campaign, mut images) = start(&setting, prefix).await?;
    let mut lost = None;
    for _ in 0..LYING_CUTS_MAX {
        if let Err(error) = cut(&mut campaign, &mut images).await {
            lost = Some(error);
            break;
        }
    }
    // Before the next cluster takes the same ports: its clients know nothing of these.
    campaign.load.stop().await?;
    campaign.members.end().await;
    for image in &mut images {
        image.unmount().await?;
    }
    let lost = lost.with_context(|| format!("{LYING_CUTS_MAX} cuts lost nothing although nothing was flushed"))?;
    eprintln!("    self-test: with flushes that do nothing a cut shows: {lost:#}");
    Ok(())
}

async fn cut(campaign: &mut Campaign, images: &mut [Image]) -> Result<u32> {
    let mounts: Vec<&Path> = images.iter().map(|i| i.mount.as_path()).collect();
    cut_power(&mounts).await?;
    // They may have noticed and ended already; what they say now reaches no disk.
    for member in &mut campaign.members.list {
        if member.try_ended()?.is_none() {
            member.signal(Signal::KILL)?;
            member.ended(DEAD_LIMIT).await?;
        }
    }
    for image in images.iter() {
        let written = std::fs::write(image.mount.join("after"), b"x");
        ensure!(written.is_err(), "the file system in {} still takes writes", image.file.display());
    }
    for image in images.iter_mut() {
        image.unmount().await?;
        image.mount().await?;
    }
    campaign.members.start_all()?;
    campaign.members.ready().await.context("the cluster does not come back")?;
    let leader = campaign.members.list[campaign.members.led().await?].client_url();
    judge::check_acks(campaign.recorder(), &leader).await?;
    Ok(1)
}

/// 4096 bytes flushed, 4096 more not: after the cut exactly the first are there.
async fn self_test(dir: &Path) -> Result<()> {
    let mut image = Image::create(dir, "self-test", 64).await?;
    let path = image.mount.join("probe");
    {
        let mut file = std::fs::File::create(&path)?;
        file.write_all(&[b'a'; SELF_TEST_BYTES])?;
        file.sync_all()?;
        std::fs::File::open(&image.mount)?.sync_all()?;
        file.write_all(&[b'b'; SELF_TEST_BYTES])?;
        cut_power(&[&image.mount]).await?;
    }
    image.unmount().await?;
    image.mount().await?;
    let left = std::fs::read(&path)?;
    image.unmount().await?;
    ensure!(
        left == [b'a'; SELF_TEST_BYTES],
        "{} bytes are left after a cut, not the {SELF_TEST_BYTES} that were flushed",
        left.len()
    );
    eprintln!("    self-test: of {} bytes written, the {} flushed are left", 2 * SELF_TEST_BYTES, left.len());
    Ok(())
}

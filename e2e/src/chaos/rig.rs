//! The machine's own means: namespaces, filters, loop devices, system calls that fail. Each runs a tool of the system.
//!
//! Everything is meant to run inside namespaces of this process (see `cargo xtask chaos`), so that whatever is left over
//! goes away with it. Must not know what members do.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// A tool of the system that takes longer hangs.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// Runs a tool to its end; returns what it printed.
pub async fn tool<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let shown = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(TOOL_LIMIT, command.output())
        .await
        .with_context(|| format!("{shown} did not end"))?
        .with_context(|| format!("cannot start {program}: is it installed?"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`tool`], with the words of one string.
pub async fn run(words: &str) -> Result<String> {
    let mut words = words.split_whitespace();
    tool(words.next().context("no program")?, words).await
}

/// A file system of its own in a file.
#[derive(Debug)]
pub struct Image {
    pub file: PathBuf,
    pub mount: PathBuf,
    is_mounted: bool,
}

impl Image {
    /// Makes an ext4 image and mounts it.
    pub async fn create(dir: &Path, name: &str, size_mib: u64) -> Result<Image> {
        let mut image =
            Image { file: dir.join(format!("{name}.ext4")), mount: dir.join(format!("{name}.mnt")), is_mounted: false };
        std::fs::create_dir_all(&image.mount)?;
        std::fs::File::create(&image.file)?.set_len(size_mib << 20)?;
        // No blocks kept back for root: full is full.
        let options = ["-q", "-F", "-m", "0"].map(OsStr::new);
        tool("mkfs.ext4", options.into_iter().chain([image.file.as_os_str()])).await?;
        image.mount().await?;
        Ok(image)
    }

    pub async fn mount(&mut self) -> Result<()> {
        ensure!(!self.is_mounted, "{} is mounted already", self.mount.display());
        tool("mount", [OsStr::new("-o"), OsStr::new("loop"), self.file.as_os_str(), self.mount.as_os_str()]).await?;
        self.is_mounted = true;
        Ok(())
    }

    pub async fn unmount(&mut self) -> Result<()> {
        tool("umount", [self.mount.as_os_str()]).await?;
        self.is_mounted = false;
        Ok(())
    }

    pub fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.mount)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.is_mounted {
            // After a failure a process may still use it; the namespace takes it along then.
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.mount).status();
        }
    }
}

/// Cuts the power of all file systems at one moment: what was not flushed is gone, the journal is not written out.
///
/// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH. Through perl, which every Debian has: calling an ioctl is unsafe
/// code, which this workspace forbids. All descriptors are open before the first is cut.
pub async fn cut_power(mounts: &[&Path]) -> Result<()> {
    const SCRIPT: &str = r"my @f; my $flags = pack('L', 2); for (@ARGV) { open(my $f, '<', $_) or die qq($_: $!\n); push @f, $f }
        for my $f (@f) { ioctl($f, 0x8004587D, $flags) // die qq(shutdown: $!\n) }";
    let mut args: Vec<&OsStr> = vec![OsStr::new("-e"), OsStr::new(SCRIPT)];
    args.extend(mounts.iter().map(|m| m.as_os_str()));
    tool("perl", args).await.map(drop)
}

/// `strace` attached to a process, tampering with its system calls until it is detached.
#[derive(Debug)]
pub struct Tamper {
    child: Child,
    trace: PathBuf,
}

impl Tamper {
    /// `inject` as strace has it, such as `fdatasync:error=EIO:when=1`. Returns once attached.
    pub async fn attach(pid: u32, calls: &str, inject: &str, trace: PathBuf) -> Result<Tamper> {
        let _ = std::fs::remove_file(&trace);
        let mut command = Command::new("strace");
        command.args(["-f", "-ttt", "-e", &format!("trace={calls}"), "-e", &format!("inject={inject}"), "-o"]);
        command.arg(&trace).args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start strace: is it installed?")?;
        let mut stderr = child.stderr.take().context("strace has a stderr")?;
        let mut said = String::new();
        let mut buffer = [0; 256];
        let attached = async {
            while !said.contains("attached") {
                let count = stderr.read(&mut buffer).await?;
                ensure!(count > 0, "strace could not attach: {said}");
                said += &String::from_utf8_lossy(&buffer[..count]);
            }
            Ok(())
        };
        tokio::time::timeout(TOOL_LIMIT, attached).await.context("strace does not attach")??;
        // Read on, so that strace never blocks on its own words.
        tokio::spawn(async move { while stderr.read(&mut buffer).await.is_ok_and(|n| n > 0) {} });
        Ok(Tamper { child, trace })
    }

    pub fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(&self.trace).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Lets the process go on undisturbed; returns the trace.
    pub async fn detach(mut self) -> Result<Vec<String>> {
        if let Some(pid) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)) {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        tokio::time::timeout(TOOL_LIMIT, self.child.wait()).await.context("strace does not detach")??;
        Ok(self.lines())
    }
}

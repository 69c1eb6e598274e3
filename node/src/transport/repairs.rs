//! One member asks another for entries that its own disk has lost. Read-only: whoever is of the cluster may ask.

use anyhow::{Context, Result, bail};
use quorate_log::Wanted;
use quorate_raft::types::Entry;
use tokio::sync::oneshot;

use super::Local;
use super::frame::{Frame, Hello};
use super::link::{connect, read_frame, write_frame};
use crate::driver::DriverInput;
use crate::tls::{Plane, Stream};

/// Entries of one answer, in bytes; an entry alone may be larger.
pub(crate) const ANSWER_BYTES_MAX: usize = 8 << 20;
/// An answer comes within this, or not at all.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// What the member at `url` holds within the range, in order, without gaps from its first to its last.
pub(crate) async fn ask_entries(url: &str, plane: &Plane, hello: &Hello, range: Wanted) -> Result<Vec<Entry>> {
    let mut stream = connect(&[url.to_owned()], plane, hello).await?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut first = range.first;
    while first <= range.last {
        write_frame(&mut stream, &Frame::EntriesAsked { first, last: range.last }).await?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, read_frame(&mut stream)).await.context("no answer")??;
        let Frame::Entries(given) = answer else { bail!("it answered something else") };
        let Some(last) = given.last() else { break };
        if last.index < first || given.iter().any(|entry| entry.index < range.first || entry.index > range.last) {
            bail!("it answered with entries nobody asked for");
        }
        first = last.index + 1;
        entries.extend(given);
    }
    Ok(entries)
}

/// Answers until the other side has all it wants.
pub(super) async fn answer(stream: &mut Stream, local: &Local) -> Result<()> {
    loop {
        let Frame::EntriesAsked { first, last } = read_frame(stream).await? else { bail!("it asks otherwise") };
        let (sender, entries) = oneshot::channel();
        local.inbox.send(DriverInput::Entries { range: Wanted { first, last }, sender })?;
        let entries = tokio::time::timeout(ANSWER_TIMEOUT, entries).await.context("the driver does not answer")??;
        write_frame(stream, &Frame::Entries(entries)).await?;
    }
}

//! What a run proves: nothing acknowledged is lost, the history is strictly serializable, all members hold the same.
//!
//! Three looks that share little: the acknowledgements against a listing; the whole history by revisions; samples of it by
//! exhaustive search, which knows nothing of revisions. Then every member's own word and hash.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_audit::acks::check_written_once;
use quorate_audit::history::{Call, Change, History, Kv, Line, Operation, Outcome, Start};
use quorate_audit::search::{self, Verdict as Searched};
use quorate_audit::strict;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use tokio_stream::StreamExt;

use crate::chaos::load::{ONCE_PREFIX, Recorder, kept};
use crate::chaos::members::{Members, channel};
use crate::poll;
use crate::writer::{plain, read_all};

/// Everything is read back over loopback.
const READ_LIMIT: Duration = Duration::from_secs(60);
const AGREE_LIMIT: Duration = Duration::from_secs(30);
/// Samples of the history that are searched, and calls in each: more calls take exponentially longer.
const WINDOWS_MAX: usize = 200;
const WINDOW_CALLS: usize = 24;
/// A window with more open outcomes is left to the strict check: each may stand anywhere, so the search explodes.
const WINDOW_OPEN_MAX: usize = 2;
/// The client's limit on one message of the full history.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// What was covered. Little proves little.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    pub acks: usize,
    pub covered: strict::Covered,
    pub windows: usize,
    pub revision: i64,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} acknowledged, 0 lost; history to revision {}: {} writes, {} reads, {} unknown of which {} executed: \
             strictly serializable; {} windows searched; every member holds the same",
            self.acks,
            self.revision,
            self.covered.writes,
            self.covered.reads,
            self.covered.settled_executed + self.covered.settled_absent,
            self.covered.settled_executed,
            self.windows
        )
    }
}

/// Judges a run whose clients have stopped and whose members all run. The recording is left in `dir`.
pub async fn judge(recorder: &Arc<Recorder>, members: &Members, dir: &Path) -> Result<Verdict> {
    let mut lines = recorder.lines();
    let written = write_lines(dir, &lines);
    members.settled(AGREE_LIMIT).await?;
    let leader = members.list[members.led().await?].client_url();
    let revision = current_revision(&leader).await?;
    let changes = full_history(&leader, revision).await.context("cannot read the full history back")?;
    lines.extend(changes.iter().cloned().map(Line::Change));
    lines.push(Line::Final { revision });
    written.and(write_lines(dir, &lines))?;
    let history = History::gather(lines)?;
    let covered = strict::check(&history).context("the history is not strictly serializable")?;
    let windows = search_windows(&history)?;
    let last = replay(&history);
    let acks = check_acks(recorder, &leader).await?;
    for member in &members.list {
        same_as(&member.client_url(), &last, revision).await.with_context(|| member.name.clone())?;
    }
    same_hashes(members, revision).await?;
    Ok(Verdict { acks, covered, windows, revision })
}

fn write_lines(dir: &Path, lines: &[Line]) -> Result<()> {
    let text: String = lines.iter().map(Line::to_json).collect();
    let path = dir.join("history.jsonl");
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Every acknowledged write of a key written once stands as acknowledged.
pub async fn check_acks(recorder: &Recorder, endpoint: &str) -> Result<usize> {
    // Before the listing: what is acknowledged from here on may not be in it.
    let acks = recorder.acks();
    let (_, stored) = read_all(endpoint, ONCE_PREFIX, None).await.context("cannot list the acknowledged writes")?;
    let stored: Vec<Kv> = stored.into_iter().map(kept_kv).collect();
    let mut count = 0;
    for one_client in acks {
        match check_written_once(&one_client, &stored) {
            Ok(keys) => count += keys,
            Err(problems) => bail!("{} broken promises, first: {}", problems.len(), problems[0]),
        }
    }
    Ok(count)
}

fn kept_kv(kv: Kv) -> Kv {
    Kv { value: kept(kv.value.clone()), ..kv }
}

async fn current_revision(endpoint: &str) -> Result<i64> {
    let mut kv = KvClient::new(channel(endpoint, Duration::from_secs(5)).await?);
    let request = pb::RangeRequest { key: "r/0".into(), count_only: true, ..pb::RangeRequest::default() };
    Ok(kv.range(request).await?.into_inner().header.context("a range has a header")?.revision)
}

/// Every change up to `revision`, by a watch of everything from the first.
async fn full_history(endpoint: &str, revision: i64) -> Result<Vec<Change>> {
    let mut client =
        WatchClient::new(channel(endpoint, READ_LIMIT).await?).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let create = pb::WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: 1,
        ..pb::WatchCreateRequest::default()
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut answers = client.watch(requests).await?.into_inner();
    let mut changes: Vec<Change> = Vec::new();
    while changes.last().map_or(1, |c| c.revision) < revision {
        let answer = tokio::time::timeout(READ_LIMIT, answers.message())
            .await
            .context("the watch went silent")??
            .context("the watch ended")?;
        ensure!(!answer.canceled, "the watch was cancelled: {}", answer.cancel_reason);
        changes.extend(answer.events.iter().filter_map(change));
    }
    Ok(changes)
}

fn change(event: &quorate_proto::mvccpb::Event) -> Option<Change> {
    let pair = event.kv.as_ref()?;
    let kv = kept_kv(plain(pair));
    let is_delete = event.r#type == i32::from(quorate_proto::mvccpb::event::EventType::Delete);
    Some(Change { revision: kv.mod_revision, key: kv.key.clone(), kv: (!is_delete).then_some(kv) })
}

/// The keys at the end of the full history.
fn replay(history: &History) -> BTreeMap<String, Kv> {
    let mut kvs = BTreeMap::new();
    for change in &history.changes {
        commit(&mut kvs, change);
    }
    kvs
}

fn commit(kvs: &mut BTreeMap<String, Kv>, change: &Change) {
    match &change.kv {
        Some(kv) => drop(kvs.insert(change.key.clone(), kv.clone())),
        None => drop(kvs.remove(&change.key)),
    }
}

/// A member's own word, once it has applied everything.
pub async fn same_as(endpoint: &str, wanted: &BTreeMap<String, Kv>, revision: i64) -> Result<()> {
    poll::until("the member to have applied everything", AGREE_LIMIT, Duration::from_millis(100), async || {
        for prefix in [ONCE_PREFIX, "r/"] {
            let (own, stored) = read_all(endpoint, prefix, Some(0)).await?;
            ensure!(own == revision, "at revision {own}, not {revision}");
            let stored: Vec<Kv> = stored.into_iter().map(kept_kv).collect();
            let right: Vec<&Kv> = wanted.values().filter(|kv| kv.key.starts_with(prefix)).collect();
            if let Some((got, want)) = stored.iter().zip(&right).find(|(got, want)| got != *want) {
                bail!("wrong bytes: holds {got:?}, right is {want:?}");
            }
            ensure!(stored.len() == right.len(), "holds {} keys under {prefix}, not {}", stored.len(), right.len());
        }
        Ok(())
    })
    .await
}

/// One hash for all members at one revision.
pub async fn same_hashes(members: &Members, revision: i64) -> Result<()> {
    let mut hashes = Vec::new();
    for member in &members.list {
        let mut client = MaintenanceClient::new(channel(&member.client_url(), READ_LIMIT).await?);
        hashes.push(client.hash_kv(pb::HashKvRequest { revision }).await?.into_inner().hash);
    }
    ensure!(hashes.windows(2).all(|two| two[0] == two[1]), "members differ at revision {revision}: hashes {hashes:?}");
    Ok(())
}

/// Searches samples spread over the history; returns how many were judged.
fn search_windows(history: &History) -> Result<usize> {
    let mut all = windows(history);
    let open = |w: &History| w.operations.iter().filter(|o| o.outcome == Outcome::Unknown).count();
    all.retain(|w| open(w) <= WINDOW_OPEN_MAX);
    let step = all.len().div_ceil(WINDOWS_MAX).max(1);
    let mut judged = 0;
    for window in all.iter().step_by(step) {
        match search::check(window) {
            Searched::Linearizable => judged += 1,
            // Too much at once: the strict check has judged it.
            Searched::TooLarge { .. } | Searched::GaveUp => {}
            verdict @ Searched::Impossible { .. } => {
                let first = window.operations.first().map_or(0, |o| o.id);
                bail!("exhaustive search, window from call {first}: {verdict}");
            }
        }
    }
    Ok(judged)
}

/// Cuts the history where no call was under way. A call from before a cut whose outcome is open may still be executed
/// behind it, so it is a candidate in later windows as long as a change that nobody else claims could be its doing.
fn windows(history: &History) -> Vec<History> {
    let mut found = Vec::new();
    let mut cursor = Cursor { kvs: BTreeMap::new(), revision: history.start.revision, changes: &history.changes };
    let unclaimed = unclaimed(history);
    let mut open: Vec<&Operation> = Vec::new();
    let mut current: Vec<&Operation> = Vec::new();
    let (mut latest_end, mut seen_revision) = (0, history.start.revision);
    // The full history shows every change: an open call that made none of those nobody claims was never executed.
    let left_no_trace =
        |o: &Operation| o.outcome == Outcome::Unknown && !unclaimed.iter().any(|c| might_make(&o.call, c));
    for operation in history.operations.iter().filter(|o| !left_no_trace(o)) {
        let is_quiet = operation.invoked > latest_end;
        if is_quiet && current.len() >= WINDOW_CALLS {
            found.push(cursor.window(&open, &current));
            cursor.advance(seen_revision);
            open.extend(current.drain(..).filter(|o| o.outcome == Outcome::Unknown));
            open.retain(|o| unclaimed.iter().any(|c| c.revision > cursor.revision && might_make(&o.call, c)));
        }
        if let Outcome::Returned { returned, answer } = &operation.outcome {
            latest_end = latest_end.max(*returned);
            seen_revision = seen_revision.max(answer.revision());
        }
        current.push(operation);
    }
    found
}

/// Changes that are no answered write's.
fn unclaimed(history: &History) -> Vec<&Change> {
    let claimed: BTreeSet<i64> = history
        .operations
        .iter()
        .filter_map(|o| match &o.outcome {
            Outcome::Returned { answer, .. } if answer.wrote() => Some(answer.revision()),
            Outcome::Returned { .. } | Outcome::Refused | Outcome::Unknown => None,
        })
        .collect();
    history.changes.iter().filter(|c| !claimed.contains(&c.revision)).collect()
}

fn might_make(call: &Call, change: &Change) -> bool {
    match (call, &change.kv) {
        (Call::Put { key, value }, Some(kv)) => *key == kv.key && *value == kv.value,
        (Call::DeleteRange { key, .. }, None) => *key == change.key,
        (Call::Txn { success, failure, .. }, _) => success.iter().chain(failure).any(|c| might_make(c, change)),
        (Call::Put { .. } | Call::DeleteRange { .. } | Call::Range { .. }, _) => false,
    }
}

/// The store at a cut.
struct Cursor<'a> {
    kvs: BTreeMap<String, Kv>,
    revision: i64,
    changes: &'a [Change],
}

impl Cursor<'_> {
    fn advance(&mut self, revision: i64) {
        let end = self.changes.iter().take_while(|c| c.revision <= revision).count();
        let (passed, rest) = self.changes.split_at(end);
        passed.iter().for_each(|c| commit(&mut self.kvs, c));
        (self.changes, self.revision) = (rest, revision);
    }

    fn window(&self, open: &[&Operation], calls: &[&Operation]) -> History {
        let operations: Vec<Operation> = open.iter().chain(calls).map(|o| (*o).clone()).collect();
        let is_touched = |kv: &&Kv| operations.iter().any(|o| touches(&o.call, &kv.key));
        let kvs = self.kvs.values().filter(is_touched).cloned().collect();
        History { start: Start { revision: self.revision, kvs }, operations, ..History::default() }
    }
}

fn touches(call: &Call, key: &str) -> bool {
    match call {
        Call::Put { key: own, .. } => own == key,
        Call::DeleteRange { key: from, range_end } | Call::Range { key: from, range_end, .. } => {
            quorate_audit::history::in_range(from, range_end, key)
        }
        Call::Txn { compares, success, failure } => {
            compares.iter().any(|c| c.key == key) || success.iter().chain(failure).any(|c| touches(c, key))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_audit::history::Answer;

    fn put(id: u64, revision: Option<i64>) -> [Line; 2] {
        let call = Call::Put { key: "k".into(), value: format!("v{id}") };
        let end = match revision {
            Some(revision) => Line::Return { id, order: id + 1, answer: Answer::Put { revision } },
            None => Line::Unknown { id },
        };
        [Line::Invoke { id, client: 1, order: id, call }, end]
    }

    fn changes(ids: &[u64]) -> Vec<Line> {
        let one = |(at, id): (usize, &u64)| {
            let revision = i64::try_from(at).expect("few") + 2;
            let version = revision - 1;
            let kv =
                Kv { key: "k".into(), value: format!("v{id}"), create_revision: 2, mod_revision: revision, version };
            Line::Change(Change { revision, key: "k".into(), kv: Some(kv) })
        };
        ids.iter().enumerate().map(one).collect()
    }

    /// 60 puts one after the other; one in the middle has an unknown outcome.
    fn history(is_executed: bool, second_answer: i64) -> History {
        let (mut lines, mut ids, mut revision) = (Vec::new(), Vec::new(), 1);
        for n in 0..60u64 {
            let id = n * 2 + 1;
            if n == 30 {
                lines.extend(put(id, None));
                if is_executed {
                    ids.push(id);
                    revision += 1;
                }
                continue;
            }
            revision += 1;
            ids.push(id);
            lines.extend(put(id, Some(if n == 1 { second_answer } else { revision })));
        }
        lines.extend(changes(&ids));
        History::gather(lines).expect("well formed")
    }

    #[test]
    fn windows_of_a_right_history_are_explained_whether_or_not_an_unknown_write_took_effect() {
        for is_executed in [true, false] {
            let judged = search_windows(&history(is_executed, 3)).expect("right");
            assert_eq!(judged, 2, "60 calls make two windows of 24");
        }
    }

    #[test]
    fn a_window_with_a_wrong_answer_is_refused() {
        assert!(search_windows(&history(true, 4)).is_err());
    }
}

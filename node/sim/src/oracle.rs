//! What must never happen, checked while a run goes on. One function for each promise.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_raft::types::{Config, Entry, HardState, Index, MemberId, Payload, Record, Recovered, SnapMeta, Term};

/// A broken promise. The text names the promise, the members and the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

macro_rules! hold {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Violation(format!($($text)*)));
        }
    };
}

/// What one member's disk surely holds: every record whose flush was reported, and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    pub hard: HardState,
    pub snapshot: SnapMeta,
    pub entries: Vec<Entry>,
}

impl Durable {
    pub fn last_index(&self) -> Index {
        self.snapshot.index + self.entries.len() as u64
    }

    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.snapshot.index {
            return Some(self.snapshot.term);
        }
        let at = index.checked_sub(self.snapshot.index + 1)?;
        self.entries.get(usize::try_from(at).ok()?).map(|e| e.term)
    }

    /// Follows one durable record. Terms never regress, a vote is never changed within a term (I5).
    pub fn follow(&mut self, who: MemberId, record: &Record) -> Result<(), Violation> {
        match record {
            Record::HardState(hard) => {
                hold!(
                    hard.term >= self.hard.term,
                    "I5 term of {who} regressed from {} to {}",
                    self.hard.term,
                    hard.term
                );
                let same = hard.term == self.hard.term;
                let kept = !same || self.hard.vote.is_none() || hard.vote == self.hard.vote;
                hold!(
                    kept,
                    "I5 {who} changed its vote in term {} from {:?} to {:?}",
                    hard.term,
                    self.hard.vote,
                    hard.vote
                );
                self.hard = *hard;
            }
            Record::Append(entries) => {
                for entry in entries {
                    hold!(
                        entry.index == self.last_index() + 1,
                        "I5 {who} appended index {} behind {}",
                        entry.index,
                        self.last_index()
                    );
                    self.entries.push(entry.clone());
                }
            }
            Record::TruncateTo(index) => {
                hold!(
                    *index >= self.snapshot.index,
                    "I1 {who} truncated to {index}, below its snapshot {}",
                    self.snapshot.index
                );
                let keep = usize::try_from(index - self.snapshot.index).expect("a simulated log is short");
                self.entries.truncate(keep);
            }
            Record::SnapshotMark(meta) => {
                if self.term_at(meta.index) == Some(meta.term) {
                    let drop = usize::try_from(meta.index - self.snapshot.index).expect("a simulated log is short");
                    self.entries.drain(..drop);
                } else {
                    self.entries.clear();
                }
                self.snapshot = meta.clone();
            }
        }
        Ok(())
    }

    /// After a restart everything reported durable is there (I1, I5, I14).
    pub fn check_recovered(&self, who: MemberId, found: &Recovered) -> Result<(), Violation> {
        hold!(found.hard.term >= self.hard.term, "I5 {who} forgot term {}: found {}", self.hard.term, found.hard.term);
        let vote_kept =
            found.hard.term > self.hard.term || self.hard.vote.is_none() || found.hard.vote == self.hard.vote;
        hold!(
            vote_kept,
            "I5 {who} forgot its vote in term {}: {:?}, found {:?}",
            self.hard.term,
            self.hard.vote,
            found.hard.vote
        );
        let found_log = Durable { hard: found.hard, snapshot: found.snapshot.clone(), entries: found.entries.clone() };
        // Records behind the last reported flush may have reached the disk too: a truncation with other entries, or a
        // later mark. Only a log that is shorter without having been replaced by a newer term is a loss.
        for entry in &self.entries {
            if entry.index <= found_log.snapshot.index {
                continue;
            }
            match found_log.term_at(entry.index) {
                Some(term) if term == entry.term => {}
                Some(term) => {
                    hold!(term > entry.term, "I1 {who} holds term {term} at {} instead of {}", entry.index, entry.term)
                }
                None => {
                    let last_term = found_log.term_at(found_log.last_index()).unwrap_or_default();
                    hold!(
                        last_term > entry.term,
                        "I1 {who} lost durable entry {} of term {}: its log ends at {}",
                        entry.index,
                        entry.term,
                        found_log.last_index()
                    );
                }
            }
        }
        Ok(())
    }
}

/// One client operation, as the client saw it. Instants are simulated microseconds.
#[derive(Clone, Debug)]
pub enum Operation {
    Put { key: Bytes, value: Bytes, revision: Option<i64>, certain_failure: bool },
    Get { key: Bytes, found: Option<(Bytes, i64)>, store_revision: i64 },
}

#[derive(Clone, Debug)]
pub struct Done {
    pub started: u64,
    pub ended: u64,
    pub operation: Operation,
}

/// Facts about the whole cluster, gathered from every member as they happen.
#[derive(Debug, Default)]
pub struct Oracle {
    leaders: BTreeMap<Term, MemberId>,
    /// Every entry that any member ever reported committed, from index 1.
    pub committed: Vec<Entry>,
    hashes: BTreeMap<Index, u64>,
    /// The last committed configuration.
    pub config: Config,
    history: Vec<Done>,
}

impl Oracle {
    pub fn new(bootstrap: Config) -> Oracle {
        Oracle { config: bootstrap, ..Oracle::default() }
    }

    /// I5, election safety. Source: Raft thesis, figure 3.2.
    pub fn leader(&mut self, term: Term, who: MemberId) -> Result<(), Violation> {
        let first = *self.leaders.entry(term).or_insert(who);
        hold!(first == who, "I5 two leaders in term {term}: {first} and {who}");
        Ok(())
    }

    /// I5, state machine safety, and I6: what is committed is committed everywhere alike. True when the entry is news.
    pub fn commit(&mut self, who: MemberId, entry: &Entry) -> Result<bool, Violation> {
        let at = usize::try_from(entry.index - 1).expect("a simulated log is short");
        if let Some(known) = self.committed.get(at) {
            hold!(
                known == entry,
                "I5 {who} committed another entry at {}: term {} instead of {}",
                entry.index,
                entry.term,
                known.term
            );
            return Ok(false);
        }
        hold!(at == self.committed.len(), "I5 {who} committed {} before {} was", entry.index, self.committed.len() + 1);
        if let Some(last) = self.committed.last() {
            hold!(
                entry.term >= last.term,
                "I5 committed terms fall at {}: {} after {}",
                entry.index,
                entry.term,
                last.term
            );
        }
        if let Payload::Config(next) = &entry.payload {
            successive(&self.config, next)?;
            self.config = next.clone();
        }
        self.committed.push(entry.clone());
        Ok(true)
    }

    /// I5: what is committed lies durably on a quorum of the configuration it was committed under: the newest in the
    /// leader's log.
    pub fn on_a_quorum(entry: &Entry, config: &Config, holders: &BTreeSet<MemberId>) -> Result<(), Violation> {
        let half =
            |voters: &BTreeSet<MemberId>| voters.is_empty() || voters.intersection(holders).count() > voters.len() / 2;
        hold!(
            half(&config.voters) && half(&config.voters_outgoing),
            "I1 entry {} of term {} committed, but durable only on {holders:?} of {:?} / {:?}",
            entry.index,
            entry.term,
            config.voters,
            config.voters_outgoing
        );
        Ok(())
    }

    /// I3: equal applied index, equal state.
    pub fn applied(&mut self, who: MemberId, index: Index, hash: u64) -> Result<(), Violation> {
        let first = *self.hashes.entry(index).or_insert(hash);
        hold!(first == hash, "I3 the state of {who} at {index} hashes to {hash:x}, elsewhere to {first:x}");
        Ok(())
    }

    pub fn done(&mut self, done: Done) {
        self.history.push(done);
    }

    pub fn operations(&self) -> usize {
        self.history.len()
    }

    /// I1 and I2: every acknowledged write is in the final history at its revision, a write that certainly failed is not,
    /// every read saw the state at some instant within its duration. `truth`: (revision, key, value) of every committed put.
    pub fn check_history(&self, truth: &[(i64, Bytes, Bytes)]) -> Result<(), Violation> {
        let by_revision: BTreeMap<i64, (&Bytes, &Bytes)> = truth.iter().map(|(r, k, v)| (*r, (k, v))).collect();
        let mut by_key: BTreeMap<&Bytes, Vec<(i64, &Bytes)>> = BTreeMap::new();
        for (revision, key, value) in truth {
            by_key.entry(key).or_default().push((*revision, value));
        }
        let values: BTreeSet<&Bytes> = truth.iter().map(|(_, _, v)| v).collect();
        for done in &self.history {
            match &done.operation {
                Operation::Put { key, value, revision: Some(revision), .. } => {
                    let held = by_revision.get(revision).is_some_and(|(k, v)| *k == key && *v == value);
                    hold!(held, "I1 put acknowledged at revision {revision} is not in the final history");
                }
                Operation::Put { value, certain_failure: true, .. } => {
                    hold!(!values.contains(value), "I2 a put that was refused was executed all the same");
                }
                Operation::Put { .. } => {}
                Operation::Get { key, found, store_revision } => {
                    let versions = by_key.get(key).map(Vec::as_slice).unwrap_or_default();
                    let seen = versions.iter().rev().find(|(r, _)| r <= store_revision);
                    let same = match (seen, found) {
                        (None, None) => true,
                        (Some((r, v)), Some((value, mod_revision))) => *r == *mod_revision && *v == value,
                        (None, Some(_)) | (Some(_), None) => false,
                    };
                    hold!(same, "I2 a read at revision {store_revision} saw {found:?}, the history says {seen:?}");
                }
            }
        }
        self.check_real_time()
    }

    /// I2, real time: an operation that starts after another has ended takes effect at the same or a later revision, a
    /// write at a later one.
    fn check_real_time(&self) -> Result<(), Violation> {
        let effect = |done: &Done| match &done.operation {
            Operation::Put { revision, .. } => revision.map(|r| (r, true)),
            Operation::Get { store_revision, .. } => Some((*store_revision, false)),
        };
        let mut starts: Vec<(u64, i64, bool)> =
            self.history.iter().filter_map(|d| effect(d).map(|(r, write)| (d.started, r, write))).collect();
        let mut ends: Vec<(u64, i64)> =
            self.history.iter().filter_map(|d| effect(d).map(|(r, _)| (d.ended, r))).collect();
        starts.sort_unstable();
        ends.sort_unstable();
        let (mut next, mut newest) = (0, 0);
        for (started, revision, write) in starts {
            while next < ends.len() && ends[next].0 < started {
                newest = newest.max(ends[next].1);
                next += 1;
            }
            let in_order = if write { revision > newest } else { revision >= newest };
            hold!(
                in_order,
                "I2 an operation started at {started} µs took effect at revision {revision}, yet {newest} had been seen before"
            );
        }
        Ok(())
    }
}

/// I6: one change at a time, quorums of successive configurations intersect, a removed id never returns.
fn successive(old: &Config, new: &Config) -> Result<(), Violation> {
    hold!(!new.voters.is_empty(), "I6 a configuration without voters: {new:?}");
    let back: Vec<_> = new.members.keys().filter(|id| old.removed.contains(id)).collect();
    hold!(back.is_empty(), "I6 removed members came back: {back:?}");
    hold!(
        old.removed.is_subset(&new.removed),
        "I6 removed ids were forgotten: {:?} then {:?}",
        old.removed,
        new.removed
    );
    match (old.is_joint(), new.is_joint()) {
        (false, false) => {
            let moved = old.voters.symmetric_difference(&new.voters).count();
            hold!(moved <= 1, "I6 {moved} voters changed at once: {:?} to {:?}", old.voters, new.voters);
        }
        (false, true) => hold!(new.voters_outgoing == old.voters, "I6 joint from another old half: {old:?} to {new:?}"),
        (true, false) => hold!(new.voters == old.voters, "I6 joint left to another new half: {old:?} to {new:?}"),
        (true, true) => {
            hold!(old.voters == new.voters && old.voters_outgoing == new.voters_outgoing, "I6 a change while joint")
        }
    }
    let promoted =
        new.voters.difference(&old.voters).find(|id| !old.learners.contains(id) && !old.voters_outgoing.contains(id));
    hold!(promoted.is_none(), "I6 {promoted:?} became a voter without having been a learner");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(started: u64, ended: u64, revision: i64) -> Done {
        let bytes = Bytes::from(format!("v{revision}"));
        let operation = Operation::Put {
            key: Bytes::from_static(b"k"),
            value: bytes,
            revision: Some(revision),
            certain_failure: false,
        };
        Done { started, ended, operation }
    }
    fn get(started: u64, ended: u64, seen: Option<i64>, store_revision: i64) -> Done {
        let found = seen.map(|r| (Bytes::from(format!("v{r}")), r));
        Done { started, ended, operation: Operation::Get { key: Bytes::from_static(b"k"), found, store_revision } }
    }
    fn truth(revisions: &[i64]) -> Vec<(i64, Bytes, Bytes)> {
        revisions.iter().map(|r| (*r, Bytes::from_static(b"k"), Bytes::from(format!("v{r}")))).collect()
    }
    fn check(history: Vec<Done>, revisions: &[i64]) -> String {
        let oracle = Oracle { history, ..Oracle::default() };
        oracle.check_history(&truth(revisions)).err().map(|v| v.0).unwrap_or_default()
    }

    #[test]
    fn a_history_in_order_is_accepted() {
        assert_eq!(check(vec![put(0, 1, 2), get(2, 3, Some(2), 2), put(4, 5, 3)], &[2, 3]), "");
    }

    #[test]
    fn a_lost_write_a_stale_read_and_a_wrong_value_are_refused() {
        assert!(check(vec![put(0, 1, 2)], &[]).starts_with("I1"));
        assert!(check(vec![put(0, 1, 2), put(2, 3, 3), get(4, 5, Some(2), 2)], &[2, 3]).starts_with("I2"));
        assert!(check(vec![get(4, 5, None, 2)], &[2]).starts_with("I2"));
    }

    #[test]
    fn a_second_leader_of_a_term_is_refused() {
        let mut oracle = Oracle::default();
        assert!(oracle.leader(3, MemberId(1)).is_ok());
        assert!(oracle.leader(3, MemberId(2)).is_err());
    }

    #[test]
    fn a_vote_changed_within_a_term_is_refused() {
        let mut durable = Durable::default();
        let vote = |n| Record::HardState(HardState { term: 2, vote: Some(MemberId(n)) });
        assert!(durable.follow(MemberId(9), &vote(1)).is_ok());
        assert!(durable.follow(MemberId(9), &vote(2)).is_err());
    }
}

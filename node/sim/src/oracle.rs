//! What must never happen, checked while a run goes on. One function for each promise.

use std::collections::{BTreeMap, BTreeSet};

use quorate_raft::Node;
use quorate_raft::types::{
    Config, Entry, HardState, Index, MemberId, Payload, Record, Recovered, SnapMeta, Term, WriteSeq,
};

/// A broken promise. The text names the promise, the members and the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// Fails the run with this text unless the condition holds.
macro_rules! hold {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Violation(format!($($text)*)));
        }
    };
}

pub(crate) use hold;

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

    /// Follows a whole batch.
    pub fn follow_all(&mut self, who: MemberId, batch: &[(WriteSeq, Record)]) -> Result<(), Violation> {
        batch.iter().try_for_each(|(_, record)| self.follow(who, record))
    }

    fn equals(&self, found: &Recovered) -> bool {
        self.hard == found.hard && self.snapshot == found.snapshot && self.entries == found.entries
    }

    /// After a restart everything reported durable is there and nothing else, but for the one batch that was under way:
    /// all of it or nothing (I1, I5, I14). Takes over which of the two it was.
    pub fn check_recovered(
        &mut self,
        who: MemberId,
        found: &Recovered,
        under_way: &[(WriteSeq, Record)],
    ) -> Result<(), Violation> {
        if self.equals(found) {
            return Ok(());
        }
        let before = self.clone();
        self.follow_all(who, under_way)?;
        hold!(
            self.equals(found),
            "I1 the disk of {who} gave back {}, {} was promised, {} with what was under way",
            summary(found.hard, &found.snapshot, &found.entries),
            summary(before.hard, &before.snapshot, &before.entries),
            summary(self.hard, &self.snapshot, &self.entries)
        );
        Ok(())
    }

    /// What memory holds above the cut is what the disk holds, once nothing is under way.
    pub fn check_memory(&self, who: MemberId, node: &Node) -> Result<(), Violation> {
        let same = node.entries().eq(self.entries.iter());
        let status = node.status();
        hold!(
            same && (status.term, status.vote) == (self.hard.term, self.hard.vote),
            "I5 memory of {who} is not its disk: term {} vote {:?} entries {} to {}, disk {}",
            status.term,
            status.vote,
            status.compacted + 1,
            status.last_index,
            summary(self.hard, &self.snapshot, &self.entries)
        );
        Ok(())
    }
}

fn summary(hard: HardState, snapshot: &SnapMeta, entries: &[Entry]) -> String {
    let last = entries.last().map_or((snapshot.term, snapshot.index), |entry| (entry.term, entry.index));
    format!(
        "(term {}, vote {:?}, mark {} of term {}, last {} of term {})",
        hard.term, hard.vote, snapshot.index, snapshot.term, last.1, last.0
    )
}

/// Facts about the whole cluster, gathered from every member as they happen.
#[derive(Debug, Default)]
pub struct Oracle {
    leaders: BTreeMap<Term, MemberId>,
    /// Every entry that any member ever reported committed, from index 1.
    pub committed: Vec<Entry>,
    /// The term in which each of them was first seen committed.
    committed_in: Vec<Term>,
    hashes: BTreeMap<Index, u64>,
    /// Every entry any disk ever held, by its place: fingerprint and the term of the entry before (log matching).
    stored: BTreeMap<(Index, Term), (u64, Term)>,
    /// Every configuration any disk ever held, by its place.
    configs: BTreeMap<(Index, Term), Config>,
    bootstrap: Config,
    /// Votes that are on disk: by term, who voted for whom.
    votes: BTreeMap<Term, BTreeMap<MemberId, MemberId>>,
    /// The last committed configuration.
    pub config: Config,
}

impl Oracle {
    pub fn new(bootstrap: Config) -> Oracle {
        Oracle { config: bootstrap.clone(), bootstrap, ..Oracle::default() }
    }

    /// I5, election safety. Source: Raft thesis, figure 3.2.
    pub fn leader(&mut self, term: Term, who: MemberId) -> Result<(), Violation> {
        let first = *self.leaders.entry(term).or_insert(who);
        hold!(first == who, "I5 two leaders in term {term}: {first} and {who}");
        Ok(())
    }

    /// I5, leader completeness, and a majority of the newest configuration voted. Source: Raft thesis §3.6.3, figure 3.2.
    pub fn elected(&self, node: &Node) -> Result<(), Violation> {
        let (id, term) = (node.id(), node.term());
        // What counts is when it was committed: a late leader may lack an older entry that a later term committed.
        let before = self.committed_in.partition_point(|committed_in| *committed_in < term);
        if let Some(last) = self.committed[..before].last() {
            let held = node.term_at(last.index);
            let is_there = held == Some(last.term) || (held.is_none() && node.status().compacted > last.index);
            hold!(is_there, "I5 {id} leads term {term} without committed entry {} of term {}", last.index, last.term);
        }
        let none = BTreeMap::new();
        let votes = self.votes.get(&term).unwrap_or(&none);
        let mine: BTreeSet<MemberId> = votes.iter().filter(|(_, to)| **to == id).map(|(from, _)| *from).collect();
        let config = self.newest_config(node);
        for voters in [&config.voters, &config.voters_outgoing] {
            let count = voters.intersection(&mine).count();
            hold!(
                voters.is_empty() || count > voters.len() / 2,
                "I5 {id} leads term {term} with the durable votes of {mine:?} only, voters are {voters:?}"
            );
        }
        Ok(())
    }

    /// The newest configuration in a member's log, found without asking its own bookkeeping.
    pub fn newest_config(&self, node: &Node) -> &Config {
        let compacted = node.status().compacted;
        let in_log = |at: &(Index, Term)| at.0 <= compacted || node.term_at(at.0) == Some(at.1);
        let is_there = |at: &(Index, Term)| {
            // Below the cut only committed configurations count.
            at.0 > compacted || self.committed.get(at.0 as usize - 1).is_some_and(|entry| entry.term == at.1)
        };
        self.configs.iter().rev().find(|(at, _)| in_log(at) && is_there(at)).map_or(&self.bootstrap, |(_, c)| c)
    }

    /// I5, log matching: equal place, equal entry, and equal entry before. Source: Raft thesis, figure 3.2.
    pub fn stored(&mut self, who: MemberId, entry: &Entry, term_before: Option<Term>) -> Result<(), Violation> {
        let print = fingerprint(entry);
        let Some(term_before) = term_before else { return Ok(()) };
        let first = *self.stored.entry((entry.index, entry.term)).or_insert((print, term_before));
        hold!(
            first == (print, term_before),
            "I5 {who} holds another entry at {} of term {}: after term {term_before} instead of {}",
            entry.index,
            entry.term,
            first.1
        );
        Ok(())
    }

    /// A leader appended a configuration; it counts from here on, on disk or not.
    pub fn config_placed(&mut self, at: (Index, Term), config: &Config) {
        self.configs.entry(at).or_insert_with(|| config.clone());
    }

    /// A vote reached a disk.
    pub fn voted(&mut self, who: MemberId, hard: &HardState) {
        if let Some(to) = hard.vote {
            self.votes.entry(hard.term).or_default().insert(who, to);
        }
    }

    /// Whether an entry of this term is committed.
    pub fn has_committed_in(&self, term: Term) -> bool {
        self.committed.last().is_some_and(|entry| entry.term >= term)
    }

    /// I5, state machine safety, and I6: what is committed is committed everywhere alike. True when the entry is news.
    pub fn commit(&mut self, who: MemberId, term: Term, entry: &Entry) -> Result<bool, Violation> {
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
        let not_before = self.committed_in.last().copied().unwrap_or_default();
        self.committed_in.push(term.max(not_before));
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
}

fn fingerprint(entry: &Entry) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    match &entry.payload {
        Payload::Noop => 1,
        Payload::Data(data) => data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| fold(hash, *byte)),
        Payload::Config(config) => format!("{config:?}").bytes().fold(7, fold),
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

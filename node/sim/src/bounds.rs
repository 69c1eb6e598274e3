//! What must stay bounded: memory, disk, terms (I17), and the time without service when nothing is wrong (I18).

use quorate_raft::types::{Entry, MemberId, Record};

use crate::oracle::{Violation, hold};
use crate::world::{Event, World};

/// How often the bounds are looked at.
const LOOK_US: u64 = 250_000;
/// Without any fault a write is acknowledged at least this often: ten election timeouts, and a client that waits in vain.
const OUTAGE_US: u64 = 10 * 300_000 + 1_500_000;
const OUTAGE_MIXED_US: u64 = 10 * 600_000 + 1_500_000;
/// Terms are compared over this time. With pre-vote a term begins only when a majority would vote for somebody.
const TERM_WINDOW_US: u64 = 10_000_000;
/// Nobody begins one while its vote in the last is not on disk.
const TERMS_PER_WINDOW: u64 = 60;
/// So often the engine may persist before the log is cut.
const CUTS_MISSED_MAX: u64 = 3;
/// Segments a log may hold besides those with entries it needs: the active one, a spare, those waiting for removal.
const SEGMENTS_BESIDES: u64 = 8;
/// A batch takes a block at least.
const BLOCK_BYTES: u64 = 4096;
/// Batches without entries (terms, votes, marks) between two cuts of the log.
const OTHER_BATCHES: u64 = 400;

impl World {
    pub(crate) fn look(&mut self) -> Result<(), Violation> {
        self.at(self.now + LOOK_US, Event::Look);
        for id in self.ids() {
            self.memory_is_bounded(id)?;
            self.disk_is_bounded(id)?;
        }
        self.look_at_rooms();
        self.forgetful_are_told()?;
        self.terms_are_bounded()?;
        self.outage_is_bounded()
    }

    fn memory_is_bounded(&mut self, id: MemberId) -> Result<(), Violation> {
        let shape = &self.shape;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        let status = process.node.status();
        // What the engine does not hold yet must stay; behind it only what slow followers are kept for.
        let kept = member.storage.engine.0.index.min(status.durable).saturating_sub(status.compacted);
        let limit = shape.keep_entries + shape.keep_entries / 8 + shape.persist_every + 2;
        // A snapshot may begin and end between two looks, and the log is kept for it meanwhile.
        let has_sent = std::mem::take(&mut process.has_sent_snapshot);
        let is_sending =
            has_sent || status.progress.iter().any(|peer| peer.is_snapshotting) || process.installing.is_some();
        let persisted = member.storage.engine.0.index;
        let is_over = kept > limit && !is_sending;
        // It is cut when the engine persists the next time, and no earlier.
        process.over_since = is_over.then(|| process.over_since.unwrap_or(persisted));
        let due = process.over_since.map(|since| since + CUTS_MISSED_MAX * shape.persist_every);
        hold!(
            due.is_none_or(|due| persisted < due),
            "I17 {id} keeps {kept} entries that its engine holds, the limit is {limit}"
        );
        // What it appended as a leader is bounded by what may be uncommitted.
        let followed = process.to_write.iter().filter(|(seq, _)| *seq > process.led_upto);
        let waiting: usize = followed.map(|(_, record)| record_bytes(record)).sum();
        let largest = process.node.entries().map(Entry::size_bytes).max().unwrap_or_default();
        let limit = (2 * (shape.inflight_bytes_max + shape.max_append_bytes)).max(largest);
        hold!(waiting <= limit, "I17 {waiting} bytes from leaders wait for the disk of {id}, the limit is {limit}");
        Ok(())
    }

    fn disk_is_bounded(&self, id: MemberId) -> Result<(), Violation> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let Some(process) = member.process.as_ref() else { return Ok(()) };
        let entries = process.node.status().last_index - process.node.status().compacted;
        let needed = (entries + OTHER_BATCHES) * BLOCK_BYTES * 2;
        let limit = SEGMENTS_BESIDES * self.shape.segment_bytes + needed;
        let used = member.storage.disk.used_bytes();
        hold!(used <= limit, "I17 the log of {id} takes {used} bytes for {entries} entries, the limit is {limit}");
        Ok(())
    }

    fn terms_are_bounded(&mut self) -> Result<(), Violation> {
        let terms = self.members.values().filter_map(|m| Some(m.process.as_ref()?.node.term()));
        let highest = terms.max().unwrap_or_default();
        let now = self.now;
        self.terms.retain(|(at, _)| at + TERM_WINDOW_US >= now);
        self.terms.push((now, highest));
        let grown = highest.saturating_sub(self.terms[0].1);
        self.most_terms = self.most_terms.max(grown);
        hold!(grown <= TERMS_PER_WINDOW, "I17 {grown} terms began within {TERM_WINDOW_US} µs; {}", self.describe());
        Ok(())
    }

    /// Everything that would be there in ordinary times is there.
    fn is_calm(&self) -> bool {
        let is_fine = |id: &MemberId| {
            let Some(member) = self.members.get(id) else { return false };
            let is_up = member.process.as_ref().is_some_and(|process| process.installing.is_none());
            is_up
                && !member.paused
                && !member.is_rotten
                && member.clock.is_true()
                && member.disk_slowness <= 2
                && !member.storage.disk.is_limited()
        };
        let config = self.config();
        self.net.is_calm(self.now)
            && !config.is_joint()
            && self.is_config_settled()
            && config.members.keys().all(is_fine)
            && !self.clients_stopped
    }

    /// Something happened that may cost an election.
    pub(crate) fn disturb(&mut self) {
        self.calm_since = None;
    }

    fn outage_is_bounded(&mut self) -> Result<(), Violation> {
        if !self.is_calm() {
            self.calm_since = None;
            return Ok(());
        }
        let since = *self.calm_since.get_or_insert(self.now);
        let quiet = self.now - since.max(self.last_ack);
        let limit = if self.shape.mixed_timeouts { OUTAGE_MIXED_US } else { OUTAGE_US };
        self.count("calm looks");
        hold!(
            quiet <= limit,
            "I18 nothing is wrong for {} µs, and no write was acknowledged for {quiet} µs; {}",
            self.now - since,
            self.describe()
        );
        Ok(())
    }
}

fn record_bytes(record: &Record) -> usize {
    match record {
        Record::Append(entries) => entries.iter().map(Entry::size_bytes).sum(),
        Record::HardState(_) | Record::TruncateTo(_) | Record::SnapshotMark(_) => 0,
    }
}

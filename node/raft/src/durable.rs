//! Which writes are on disk, and how much of the log that makes durable.
//!
//! Writes form one FIFO with strictly rising numbers; a completion is a watermark over those numbers, so one from before
//! a truncation says nothing about entries appended after it.

use std::collections::VecDeque;

use crate::types::{Index, WriteSeq};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Durable {
    issued: WriteSeq,
    written: WriteSeq,
    /// Number of the last write of term and vote.
    hard: WriteSeq,
    index: Index,
    /// Appends not durable yet. Numbers and indexes never decrease.
    pending: VecDeque<Pending>,
    /// Bytes of the entries in all of them, truncated or not: what waits in memory for the disk.
    pending_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Pending {
    seq: WriteSeq,
    /// Last index it makes durable.
    last: Index,
    bytes: usize,
}

impl Durable {
    /// After a restart everything recovered is durable.
    pub(crate) fn recovered(last_index: Index) -> Durable {
        Durable {
            issued: WriteSeq(0),
            written: WriteSeq(0),
            hard: WriteSeq(0),
            index: last_index,
            pending: VecDeque::new(),
            pending_bytes: 0,
        }
    }

    /// The log is durable up to here.
    pub(crate) fn index(&self) -> Index {
        self.index
    }

    pub(crate) fn next(&mut self) -> WriteSeq {
        self.issued = WriteSeq(self.issued.0 + 1);
        self.issued
    }

    pub(crate) fn hard_state(&mut self) -> WriteSeq {
        self.hard = self.next();
        self.hard
    }

    /// The newest term and vote are on disk.
    pub(crate) fn is_hard_state_written(&self) -> bool {
        self.hard <= self.written
    }

    /// Bytes of entries that wait for the disk.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    pub(crate) fn append(&mut self, last: Index, bytes: usize) -> WriteSeq {
        let seq = self.next();
        self.pending.push_back(Pending { seq, last, bytes });
        self.pending_bytes += bytes;
        seq
    }

    pub(crate) fn truncate(&mut self, to: Index) -> WriteSeq {
        self.cap(to);
        self.next()
    }

    /// Nothing written so far makes more than this durable.
    fn cap(&mut self, to: Index) {
        self.index = self.index.min(to);
        for pending in &mut self.pending {
            pending.last = pending.last.min(to);
        }
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn truncate_forgetting_nothing(&mut self) -> WriteSeq {
        self.next()
    }

    /// As if a completion named an index: one from before the truncation counts for what came after it.
    #[cfg(feature = "mutants")]
    pub(crate) fn truncate_keeping_completions(&mut self, to: Index) -> WriteSeq {
        self.index = self.index.min(to);
        self.next()
    }

    /// The log begins anew behind a snapshot at `index`.
    pub(crate) fn replace(&mut self, index: Index) -> WriteSeq {
        self.cap(0);
        self.append(index, 0)
    }

    /// All writes up to `upto` are on disk. Returns whether that was news.
    pub(crate) fn written(&mut self, upto: WriteSeq) -> bool {
        assert!(upto <= self.issued, "only what was issued can be written");
        if upto <= self.written {
            return false;
        }
        self.written = upto;
        while let Some(pending) = self.pending.front().copied().filter(|pending| pending.seq <= upto) {
            self.index = pending.last;
            self.pending_bytes -= pending.bytes;
            self.pending.pop_front();
        }
        true
    }

    /// For exhaustive search: counts writes from the last one on disk. Returns by how much numbers went down.
    pub(crate) fn rebase(&mut self) -> u64 {
        let base = self.written.0;
        self.issued.0 -= base;
        self.written.0 = 0;
        self.hard.0 = self.hard.0.saturating_sub(base);
        for pending in &mut self.pending {
            pending.seq.0 -= base;
        }
        base
    }

    /// Nothing is waiting for the disk.
    pub(crate) fn is_quiet(&self) -> bool {
        self.written == self.issued
    }

    /// What a message that promises the log up to `index` must wait for: that part of the log, and the term.
    pub(crate) fn promise(&self, index: Index) -> Option<WriteSeq> {
        let log = if index <= self.index {
            WriteSeq(0)
        } else {
            let at = self.pending.partition_point(|pending| pending.last < index);
            self.pending.get(at).expect("every entry not durable yet has a write").seq
        };
        Some(log.max(self.hard)).filter(|seq| *seq > self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_from_before_a_truncation_does_not_count_for_what_came_after() {
        let mut durable = Durable::recovered(3);
        let old = durable.append(6, 30);
        durable.truncate(4);
        let new = durable.append(6, 30);
        assert!(durable.written(old));
        assert_eq!(durable.index(), 4);
        assert_eq!(durable.promise(5), Some(new));
        assert_eq!(durable.promise(4), None);
        assert!(durable.written(new));
        assert_eq!(durable.index(), 6);
        assert!(!durable.written(old));
        assert_eq!(durable.index(), 6);
    }

    #[test]
    fn what_was_truncated_still_waits_for_the_disk() {
        let mut durable = Durable::recovered(3);
        let old = durable.append(6, 30);
        durable.truncate(4);
        let new = durable.append(5, 10);
        let mark = durable.replace(9);
        assert_eq!(durable.pending_bytes(), 40);
        assert!(durable.written(old));
        assert_eq!((durable.pending_bytes(), durable.index()), (10, 0));
        assert_eq!(durable.promise(9), Some(mark));
        assert!(durable.written(new));
        assert_eq!((durable.pending_bytes(), durable.index()), (0, 0));
    }

    #[test]
    fn a_promise_waits_for_the_term_too() {
        let mut durable = Durable::recovered(9);
        let hard = durable.hard_state();
        assert_eq!(durable.promise(9), Some(hard));
        assert!(durable.written(hard));
        assert_eq!(durable.promise(9), None);
    }
}

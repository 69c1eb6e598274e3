//! The log as the core holds it: entries behind the last cut, in memory.
//!
//! Says nothing about durability; [`crate::durable`] does. Must not decide what is committed.

use std::collections::VecDeque;

use crate::types::{Entry, Index, Term};

/// # Invariants
/// - entries are contiguous from `base_index + 1`
/// - terms never decrease
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Log {
    base_index: Index,
    base_term: Term,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Log {
    /// A log that begins behind (index, term).
    pub(crate) fn behind(index: Index, term: Term) -> Log {
        Log { base_index: index, base_term: term, entries: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn base_index(&self) -> Index {
        self.base_index
    }

    pub(crate) fn last_index(&self) -> Index {
        self.base_index + self.entries.len() as u64
    }

    pub(crate) fn last_term(&self) -> Term {
        self.entries.back().map_or(self.base_term, |entry| entry.term)
    }

    /// Bytes of all entries held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The term at an index that is held or is the cut itself.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base_index {
            return Some(self.base_term);
        }
        self.get(index).map(|entry| entry.term)
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        let offset = index.checked_sub(self.base_index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Whether (index, term) is in this log.
    pub(crate) fn holds(&self, index: Index, term: Term) -> bool {
        self.term_at(index) == Some(term)
    }

    /// The largest index at or below `index` whose term is at most `term`; `None` when that lies before the cut.
    pub(crate) fn find_conflict(&self, index: Index, term: Term) -> Option<Index> {
        let index = index.min(self.last_index());
        let not_above = self.entries.partition_point(|entry| entry.term <= term) as u64;
        let found = index.min(self.base_index + not_above);
        (found > self.base_index || (index >= self.base_index && self.base_term <= term)).then_some(found)
    }

    /// # Panics
    /// When the entry does not continue the log.
    pub(crate) fn push(&mut self, entry: Entry) {
        assert_eq!(entry.index, self.last_index() + 1, "entries are contiguous");
        assert!(entry.term >= self.last_term(), "terms never decrease along a log");
        self.bytes += entry.size_bytes();
        self.entries.push_back(entry);
    }

    /// Drops every entry above `index`.
    pub(crate) fn truncate_to(&mut self, index: Index) {
        assert!(index >= self.base_index, "nothing before the cut can be truncated");
        while self.last_index() > index {
            let entry = self.entries.pop_back().expect("an index above the base belongs to an entry");
            self.bytes -= entry.size_bytes();
        }
    }

    /// Drops every entry at or below `index`.
    pub(crate) fn cut_to(&mut self, index: Index) {
        assert!(index <= self.last_index(), "a cut does not pass the end of the log");
        while self.base_index < index {
            let entry = self.entries.pop_front().expect("an index below the last belongs to an entry");
            self.bytes -= entry.size_bytes();
            self.base_index = entry.index;
            self.base_term = entry.term;
        }
    }

    /// Copies entries from `from` on, up to `upto`, until `bytes_max` is passed; at least one if there is one.
    pub(crate) fn slice(&self, from: Index, upto: Index, bytes_max: usize) -> Vec<Entry> {
        assert!(from > self.base_index, "entries before the cut are gone");
        let upto = upto.min(self.last_index());
        let mut entries = Vec::new();
        let mut bytes = 0;
        let start = usize::try_from(from - self.base_index - 1).expect("an index of an entry in memory");
        let count = usize::try_from((upto + 1).saturating_sub(from)).expect("a count of entries in memory");
        for entry in self.entries.iter().skip(start).take(count) {
            bytes += entry.size_bytes();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
            if entries.len() == crate::codec::APPEND_ENTRIES_MAX {
                break;
            }
        }
        entries
    }

    /// Entries from `from` to `upto`, borrowed.
    pub(crate) fn range(&self, from: Index, upto: Index) -> impl Iterator<Item = &Entry> {
        let start = usize::try_from((from.max(self.base_index + 1)) - self.base_index - 1).expect("an index in memory");
        let count =
            usize::try_from((upto + 1).saturating_sub(from.max(self.base_index + 1))).expect("a count in memory");
        self.entries.iter().skip(start).take(count)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Payload;

    fn log(base: (Index, Term), terms: &[Term]) -> Log {
        let mut log = Log::behind(base.0, base.1);
        for term in terms {
            log.push(Entry { term: *term, index: log.last_index() + 1, payload: Payload::Noop });
        }
        log
    }

    #[test]
    fn a_conflict_is_searched_term_by_term() {
        let log = log((10, 2), &[2, 3, 3, 5]); // 11..=14
        assert_eq!(log.find_conflict(14, 4), Some(13));
        assert_eq!(log.find_conflict(99, 9), Some(14));
        assert_eq!(log.find_conflict(12, 5), Some(12));
        assert_eq!(log.find_conflict(14, 2), Some(11));
        assert_eq!(log.find_conflict(10, 2), Some(10));
        assert_eq!(log.find_conflict(10, 1), None);
        assert_eq!(log.find_conflict(9, 2), None);
    }

    #[test]
    fn cuts_and_truncations_keep_the_count_of_bytes() {
        let mut log = log((0, 0), &[1, 1, 2, 3]);
        log.cut_to(2);
        log.truncate_to(3);
        assert_eq!((log.base_index(), log.last_index(), log.last_term()), (2, 3, 2));
        assert_eq!(log.bytes(), 32);
        assert_eq!(log.term_at(2), Some(1));
        assert_eq!(log.term_at(1), None);
        log.truncate_to(2);
        assert_eq!((log.bytes(), log.last_term()), (0, 1));
    }

    #[test]
    fn a_slice_holds_at_least_one_entry_and_keeps_the_budget() {
        let log = log((5, 1), &[1, 1, 1]);
        assert_eq!(log.slice(6, 8, 1).len(), 1);
        assert_eq!(log.slice(6, 8, 64).len(), 2);
        assert_eq!(log.slice(6, 7, 1000).len(), 2);
        assert_eq!(log.slice(9, 8, 1000).len(), 0);
    }
}

//! What the store must do. One version per key, no history, no cleverness: the thing other code is compared with.

use std::collections::BTreeMap;

use crate::history::{Answer, Call, Change, Compare, Kv, Relation, Start, Target, in_range};

/// The store at one revision.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Model {
    revision: i64,
    kvs: BTreeMap<String, Kv>,
}

/// What a call would do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evaluated {
    pub answer: Answer,
    /// In order; all of the next revision.
    pub changes: Vec<Change>,
}

impl Model {
    pub fn new(start: &Start) -> Model {
        Model { revision: start.revision, kvs: start.kvs.iter().map(|kv| (kv.key.clone(), kv.clone())).collect() }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Evaluates a call without taking it. A revision inside a range is ignored: the caller keeps older models.
    pub fn evaluate(&self, call: &Call) -> Evaluated {
        let mut draft = Draft { model: self, kvs: BTreeMap::new(), changes: Vec::new() };
        let answer = draft.run(call);
        Evaluated { answer, changes: draft.changes }
    }

    /// Takes the changes of one call.
    pub fn commit(&mut self, changes: &[Change]) {
        for change in changes {
            self.revision = change.revision;
            match &change.kv {
                Some(kv) => drop(self.kvs.insert(change.key.clone(), kv.clone())),
                None => drop(self.kvs.remove(&change.key)),
            }
        }
    }
}

/// A call in the making: the model and what the call changed so far.
struct Draft<'a> {
    model: &'a Model,
    kvs: BTreeMap<String, Option<Kv>>,
    changes: Vec<Change>,
}

impl Draft<'_> {
    fn current(&self) -> i64 {
        self.model.revision + i64::from(!self.changes.is_empty())
    }

    fn get(&self, key: &str) -> Option<&Kv> {
        match self.kvs.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.model.kvs.get(key),
        }
    }

    fn scan(&self, key: &str, range_end: &str) -> Vec<Kv> {
        if range_end.is_empty() {
            return self.get(key).cloned().into_iter().collect();
        }
        let mut found: BTreeMap<&String, Option<&Kv>> =
            self.model.kvs.range(key.to_owned()..).map(|(k, kv)| (k, Some(kv))).collect();
        found.extend(self.kvs.iter().map(|(k, kv)| (k, kv.as_ref())));
        found.retain(|k, _| in_range(key, range_end, k));
        found.into_values().flatten().cloned().collect()
    }

    fn run(&mut self, call: &Call) -> Answer {
        match call {
            Call::Put { key, value } => self.put(key, value),
            Call::DeleteRange { key, range_end } => {
                let doomed = self.scan(key, range_end);
                for kv in &doomed {
                    self.change(&kv.key, None);
                }
                Answer::DeleteRange { revision: self.current(), deleted: as_i64(doomed.len()) }
            }
            Call::Range { key, range_end, limit, .. } => {
                let mut kvs = self.scan(key, range_end);
                let count = as_i64(kvs.len());
                if *limit > 0 {
                    kvs.truncate(*limit);
                }
                Answer::Range { revision: self.current(), kvs, count }
            }
            Call::Txn { compares, success, failure } => {
                let succeeded = compares.iter().all(|compare| self.holds(compare));
                let branch = if succeeded { success } else { failure };
                let responses = branch.iter().map(|op| self.run(op)).collect();
                Answer::Txn { revision: self.current(), succeeded, responses }
            }
        }
    }

    fn put(&mut self, key: &str, value: &str) -> Answer {
        let revision = self.model.revision + 1;
        let before = self.get(key);
        let kv = Kv {
            key: key.to_owned(),
            value: value.to_owned(),
            create_revision: before.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: before.map_or(0, |kv| kv.version) + 1,
        };
        self.change(key, Some(kv));
        Answer::Put { revision }
    }

    fn change(&mut self, key: &str, kv: Option<Kv>) {
        let revision = self.model.revision + 1;
        self.changes.push(Change { revision, key: key.to_owned(), kv: kv.clone() });
        self.kvs.insert(key.to_owned(), kv);
    }

    /// Against the state before the call, also inside a nested transaction.
    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.model.kvs.get(&compare.key);
        let ordering = match &compare.target {
            Target::Version(given) => kv.map_or(0, |kv| kv.version).cmp(given),
            Target::Create(given) => kv.map_or(0, |kv| kv.create_revision).cmp(given),
            Target::Mod(given) => kv.map_or(0, |kv| kv.mod_revision).cmp(given),
            Target::Value(given) => match kv {
                Some(kv) => kv.value.cmp(given),
                None => return false,
            },
        };
        match compare.relation {
            Relation::Equal => ordering.is_eq(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
            Relation::NotEqual => ordering.is_ne(),
        }
    }
}

fn as_i64(count: usize) -> i64 {
    i64::try_from(count).expect("a count of things in memory fits an i64")
}

//! What a person asks for once, beside the spec: annotations of the ConsistentCluster, as `kubectl quorate` writes them.
//!
//! Each names what it is about so exactly that it is moot once it is fulfilled: a restart the pod, a replacement the member's id, a
//! transfer the leader's term. Nobody has to take it away again, and nothing happens twice. Only a fence stands until it is lifted.

use std::collections::{BTreeMap, BTreeSet};

/// `MEMBER@TERM`: leadership moves to that member, unless the term is another one by then.
pub const ANNOTATION_TRANSFER: &str = "quorate.dev/transfer-leader-to";
/// `MEMBER,…`: these members are stopped and stay stopped.
pub const ANNOTATION_FENCE: &str = "quorate.dev/fence";
/// `MEMBER@POD-UID,…`: these pods are made anew, one at a time.
pub const ANNOTATION_RESTART: &str = "quorate.dev/restart";
/// `MEMBER@MEMBER-ID,…`: these members are replaced by new ones.
pub const ANNOTATION_REPLACE: &str = "quorate.dev/replace";

/// The requests of one ConsistentCluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requests {
    pub transfer: Option<Transfer>,
    pub fenced: BTreeSet<String>,
    /// UID of the pod that is to go, by member.
    pub restarts: BTreeMap<String, String>,
    /// Hexadecimal id of the member that is to go, by name.
    pub replaced: BTreeMap<String, String>,
    /// What cannot be read, one sentence each.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    pub to: String,
    /// The term in which it was asked for.
    pub term: u64,
}

impl Requests {
    /// Reads the annotations. What makes no sense is named in `problems` and has no effect.
    pub fn of(annotations: Option<&BTreeMap<String, String>>) -> Requests {
        let text = |key: &str| annotations.and_then(|a| a.get(key)).map_or("", String::as_str);
        let mut problems = Vec::new();
        let transfer = transfer(text(ANNOTATION_TRANSFER), &mut problems);
        Requests {
            transfer,
            fenced: entries(text(ANNOTATION_FENCE)).map(str::to_owned).collect(),
            restarts: pairs(ANNOTATION_RESTART, text(ANNOTATION_RESTART), "POD-UID", &mut problems),
            replaced: pairs(ANNOTATION_REPLACE, text(ANNOTATION_REPLACE), "MEMBER-ID", &mut problems),
            problems,
        }
    }

    /// The annotations that say this; nothing for one that is to go.
    pub fn annotations(&self) -> [(&'static str, Option<String>); 4] {
        let filled = |text: String| (!text.is_empty()).then_some(text);
        let joined = |map: &BTreeMap<String, String>| {
            filled(map.iter().map(|(name, what)| format!("{name}@{what}")).collect::<Vec<_>>().join(","))
        };
        [
            (ANNOTATION_TRANSFER, self.transfer.as_ref().map(|t| format!("{}@{}", t.to, t.term))),
            (ANNOTATION_FENCE, filled(self.fenced.iter().cloned().collect::<Vec<_>>().join(","))),
            (ANNOTATION_RESTART, joined(&self.restarts)),
            (ANNOTATION_REPLACE, joined(&self.replaced)),
        ]
    }
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

fn transfer(text: &str, problems: &mut Vec<String>) -> Option<Transfer> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let read =
        text.split_once('@').and_then(|(to, term)| Some(Transfer { to: to.to_owned(), term: term.parse().ok()? }));
    if read.as_ref().is_none_or(|t| t.to.is_empty()) {
        problems.push(format!(
            "annotation {ANNOTATION_TRANSFER} is {text:?}; write MEMBER@TERM with the term of status.leader, or remove it"
        ));
        return None;
    }
    read
}

fn pairs(key: &str, text: &str, what: &str, problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in entries(text) {
        match entry.split_once('@') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                found.insert(name.to_owned(), value.to_owned());
            }
            _ => problems.push(format!("annotation {key} has {entry:?}; write MEMBER@{what}, or remove it")),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Requests {
        let map = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Requests::of(Some(&map))
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let asked = Requests {
            transfer: Some(Transfer { to: "b".into(), term: 7 }),
            fenced: ["c".to_owned(), "d".to_owned()].into(),
            restarts: [("b".to_owned(), "u-1".to_owned())].into(),
            replaced: [("d".to_owned(), "8a".to_owned())].into(),
            problems: Vec::new(),
        };
        let written: BTreeMap<String, String> =
            asked.annotations().into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect();
        assert_eq!(written.len(), 4);
        assert_eq!(Requests::of(Some(&written)), asked);
        assert!(Requests::default().annotations().iter().all(|(_, text)| text.is_none()));
    }

    #[test]
    fn what_makes_no_sense_is_named_and_has_no_effect() {
        let asked = of(&[
            (ANNOTATION_TRANSFER, "b"),
            (ANNOTATION_RESTART, "b, c@u-2 ,"),
            (ANNOTATION_REPLACE, "@9"),
            (ANNOTATION_FENCE, " , "),
        ]);
        assert_eq!((asked.transfer, asked.fenced.len()), (None, 0));
        assert_eq!(asked.restarts, BTreeMap::from([("c".to_owned(), "u-2".to_owned())]));
        assert_eq!(asked.problems.len(), 3, "{:?}", asked.problems);
        assert!(asked.problems[0].contains("MEMBER@TERM"), "{}", asked.problems[0]);
    }
}

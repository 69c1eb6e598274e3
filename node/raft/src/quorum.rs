//! Quorum arithmetic, plain: copy, sort, take one.
//!
//! A joint configuration decides only what both of its halves decide.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Config, MemberId};

/// Votes a set of this size needs.
pub fn majority(count: usize) -> usize {
    count / 2 + 1
}

/// The largest value that a majority of both halves has reached. 0 (the default) for a configuration without voters.
pub fn reached<V: Ord + Default + Copy>(config: &Config, value_of: impl Fn(MemberId) -> V) -> V {
    let incoming = reached_by_majority(&config.voters, &value_of).unwrap_or_default();
    match reached_by_majority(&config.voters_outgoing, &value_of) {
        Some(outgoing) => incoming.min(outgoing),
        None => incoming,
    }
}

fn reached_by_majority<V: Ord + Copy>(voters: &BTreeSet<MemberId>, value_of: impl Fn(MemberId) -> V) -> Option<V> {
    if voters.is_empty() {
        return None;
    }
    let mut values: Vec<V> = voters.iter().map(|id| value_of(*id)).collect();
    values.sort_unstable();
    Some(values[values.len() - majority(values.len())])
}

#[cfg(feature = "mutants")]
pub(crate) fn reached_unsorted<V: Ord + Default + Copy>(config: &Config, value_of: impl Fn(MemberId) -> V) -> V {
    let values: Vec<V> = config.voters.iter().map(|id| value_of(*id)).collect();
    if values.is_empty() { V::default() } else { values[values.len() - majority(values.len())] }
}

/// How a vote stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tally {
    Won,
    Lost,
    Pending,
}

/// Counts the answers so far. A configuration without voters is never won.
pub fn tally(config: &Config, votes: &BTreeMap<MemberId, bool>) -> Tally {
    let half = |voters: &BTreeSet<MemberId>| {
        let yes = voters.iter().filter(|id| votes.get(id) == Some(&true)).count();
        let no = voters.iter().filter(|id| votes.get(id) == Some(&false)).count();
        if yes >= majority(voters.len()) {
            Tally::Won
        } else if voters.len() - no < majority(voters.len()) {
            Tally::Lost
        } else {
            Tally::Pending
        }
    };
    let incoming = half(&config.voters);
    let outgoing = if config.is_joint() { half(&config.voters_outgoing) } else { incoming };
    match (incoming, outgoing) {
        (Tally::Won, Tally::Won) => Tally::Won,
        (Tally::Lost, _) | (_, Tally::Lost) => Tally::Lost,
        _ => Tally::Pending,
    }
}

/// The half that is worse off: (members for which `is_live` holds, votes it needs).
pub fn worst_half(config: &Config, is_live: impl Fn(MemberId) -> bool) -> (usize, usize) {
    let half = |voters: &BTreeSet<MemberId>| (voters.iter().filter(|id| is_live(**id)).count(), majority(voters.len()));
    let incoming = half(&config.voters);
    if !config.is_joint() {
        return incoming;
    }
    let outgoing = half(&config.voters_outgoing);
    let slack = |(live, needed): (usize, usize)| live as isize - needed as isize;
    if slack(outgoing) < slack(incoming) { outgoing } else { incoming }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(voters: &BTreeSet<MemberId>, outgoing: &BTreeSet<MemberId>) -> Config {
        Config { voters: voters.clone(), voters_outgoing: outgoing.clone(), ..Config::default() }
    }

    fn set(bits: u32, base: u64) -> BTreeSet<MemberId> {
        (0..5).filter(|bit| bits & (1 << bit) != 0).map(|bit| MemberId(base + bit)).collect()
    }

    /// Halves that are disjoint, equal or overlapping, of every size up to 5.
    fn halves() -> Vec<(BTreeSet<MemberId>, BTreeSet<MemberId>)> {
        let mut all = Vec::new();
        for incoming in 1..=5_u32 {
            for outgoing in 0..=5_u32 {
                for base in [1, 3, 6] {
                    all.push((set((1 << incoming) - 1, 1), set((1 << outgoing) - 1, base)));
                }
            }
        }
        all
    }

    /// Says the same by counting supporters of each candidate value.
    fn reached_by_definition(config: &Config, value_of: &dyn Fn(MemberId) -> u64) -> u64 {
        let enough = |voters: &BTreeSet<MemberId>, value: u64| {
            voters.is_empty() || 2 * voters.iter().filter(|id| value_of(**id) >= value).count() > voters.len()
        };
        (0..=3).rev().find(|v| enough(&config.voters, *v) && enough(&config.voters_outgoing, *v)).unwrap_or(0)
    }

    #[test]
    fn reached_equals_its_definition_for_every_assignment_of_five_plus_five() {
        for (incoming, outgoing) in halves() {
            let config = config(&incoming, &outgoing);
            let ids: Vec<MemberId> = incoming.union(&outgoing).copied().collect();
            let base = if ids.len() > 7 { 2_u64 } else { 3 };
            for code in 0..base.pow(u32::try_from(ids.len()).unwrap()) {
                let value_of = |id: MemberId| {
                    let at = ids.iter().position(|other| *other == id).unwrap();
                    code / base.pow(u32::try_from(at).unwrap()) % base
                };
                assert_eq!(reached(&config, value_of), reached_by_definition(&config, &value_of), "{config:?} {code}");
            }
        }
    }

    #[test]
    fn a_tally_is_won_or_lost_exactly_when_no_missing_answer_could_change_it() {
        for (incoming, outgoing) in halves() {
            let config = config(&incoming, &outgoing);
            let ids: Vec<MemberId> = incoming.union(&outgoing).copied().collect();
            if ids.len() > 8 {
                continue;
            }
            for code in 0..3_u32.pow(u32::try_from(ids.len()).unwrap()) {
                let answer = |at: usize| code / 3_u32.pow(u32::try_from(at).unwrap()) % 3;
                let votes: BTreeMap<MemberId, bool> =
                    (0..ids.len()).filter(|at| answer(*at) < 2).map(|at| (ids[at], answer(at) == 1)).collect();
                let with_rest = |rest: bool| {
                    let wins = |voters: &BTreeSet<MemberId>| {
                        voters.is_empty()
                            || 2 * voters.iter().filter(|id| *votes.get(id).unwrap_or(&rest)).count() > voters.len()
                    };
                    wins(&config.voters) && wins(&config.voters_outgoing)
                };
                let expected = match (with_rest(true), with_rest(false)) {
                    (true, true) => Tally::Won,
                    (false, _) => Tally::Lost,
                    (true, false) => Tally::Pending,
                };
                assert_eq!(tally(&config, &votes), expected, "{config:?} {votes:?}");
            }
        }
    }

    #[test]
    fn two_winning_sets_of_one_configuration_always_meet() {
        for (incoming, outgoing) in halves() {
            let config = config(&incoming, &outgoing);
            let ids: Vec<MemberId> = incoming.union(&outgoing).copied().collect();
            if ids.len() > 7 {
                continue;
            }
            let winning: Vec<u32> = (0..1_u32 << ids.len())
                .filter(|bits| {
                    let votes = ids.iter().enumerate().map(|(at, id)| (*id, bits & (1 << at) != 0)).collect();
                    tally(&config, &votes) == Tally::Won
                })
                .collect();
            for one in &winning {
                assert!(winning.iter().all(|other| one & other != 0), "{config:?}");
            }
        }
    }

    #[test]
    fn nobody_wins_without_voters() {
        assert_eq!(tally(&Config::default(), &BTreeMap::new()), Tally::Lost);
        assert_eq!(reached(&Config::default(), |_| 7_u64), 0);
    }

    #[test]
    fn the_worst_half_is_the_one_nearest_to_losing() {
        let config = config(&set(0b111, 1), &set(0b11111, 1));
        assert_eq!(worst_half(&config, |id| id.0 <= 3), (3, 3));
        assert_eq!(worst_half(&config, |id| id.0 >= 3), (1, 2));
    }
}

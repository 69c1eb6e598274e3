//! Which whole domains may fail. Pure arithmetic over places; who is caught up is told by the leader.

use std::collections::BTreeSet;

use crate::view::quorum;

/// One voter: where it runs, as far as that is known, and whether it holds what is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub domain: Option<&'a str>,
    pub is_caught_up: bool,
}

/// Whether service goes on after any one domain is lost; nothing where places are not known well enough to say.
pub fn survives(places: &[Place<'_>]) -> Option<bool> {
    let domains: BTreeSet<&str> = places.iter().filter_map(|p| p.domain).collect();
    let needed = quorum(places.len());
    let caught_up = || places.iter().filter(|p| p.is_caught_up);
    // A voter without a place may be in the domain that is lost, or not.
    let surely = |lost: &str| caught_up().filter(|p| p.domain.is_some_and(|d| d != lost)).count();
    let at_best = |lost: &str| caught_up().filter(|p| p.domain != Some(lost)).count();
    if domains.is_empty() {
        return None;
    }
    if domains.iter().any(|lost| at_best(lost) < needed) {
        return Some(false);
    }
    let everywhere = places.iter().all(|p| p.domain.is_some());
    (everywhere || domains.iter().all(|lost| surely(lost) >= needed)).then_some(true)
}

/// The domain whose loss would take a majority of the voters, caught up or not.
pub fn majority_domain<'a>(places: &[Place<'a>]) -> Option<(&'a str, usize)> {
    majorities(places).max_by_key(|(_, count)| *count)
}

/// Every such domain: of an even number two may hold half, which is as bad as more.
fn majorities<'a>(places: &[Place<'a>]) -> impl Iterator<Item = (&'a str, usize)> {
    let domains: BTreeSet<&str> = places.iter().filter_map(|p| p.domain).collect();
    let counted = domains.into_iter().map(|domain| (domain, within(places, domain)));
    counted.filter(|(_, count)| places.len() - count < quorum(places.len()))
}

fn within(places: &[Place<'_>], domain: &str) -> usize {
    places.iter().filter(|p| p.domain == Some(domain)).count()
}

/// The domain that gets a majority of the voters by a replacement: one that had as many before is no worse off.
pub fn builds_majority<'a>(before: &[Place<'a>], after: &[Place<'a>]) -> Option<(&'a str, usize)> {
    // Of one or two voters every domain takes the quorum along.
    if after.len() <= 2 {
        return None;
    }
    let built = majorities(after).filter(|(domain, inside)| *inside > within(before, domain));
    built.max_by_key(|(_, inside)| *inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every placement of up to five voters in three zones, caught up or not, beside losing each zone in turn.
    #[test]
    fn the_answer_is_what_losing_each_domain_shows() {
        const ZONES: [&str; 3] = ["a", "b", "c"];
        let mut seen = [0, 0];
        for voters in 1..=5u32 {
            for code in 0..6u32.pow(voters) {
                let place = |nth: u32| {
                    let digit = code / 6u32.pow(nth) % 6;
                    Place { domain: Some(ZONES[(digit % 3) as usize]), is_caught_up: digit >= 3 }
                };
                let places: Vec<_> = (0..voters).map(place).collect();
                let outlives = |zone: &&str| {
                    let left: Vec<_> = places.iter().filter(|p| p.domain != Some(zone)).collect();
                    left.iter().filter(|p| p.is_caught_up).count() * 2 > places.len()
                };
                let inhabited = |zone: &&&str| places.iter().any(|p| p.domain == Some(**zone));
                let told = ZONES.iter().filter(inhabited).all(outlives);
                assert_eq!(survives(&places), Some(told), "{places:?}");
                seen[usize::from(told)] += 1;
            }
        }
        assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
    }

    #[test]
    fn a_majority_is_found_beside_one_that_was_there_before() {
        let at = |domain| Place { domain: Some(domain), is_caught_up: true };
        for worse in ["a", "z"] {
            let before = [at("m"), at("m"), at("n"), at(worse)];
            let after = [at("m"), at("m"), at(worse), at(worse)];
            assert_eq!(builds_majority(&before, &after), Some((worse, 2)));
        }
        let before = [at("m"), at("m"), at("n"), at("o")];
        assert_eq!(builds_majority(&before, &[at("m"), at("m"), at("o"), at("p")]), None, "no worse than it was");
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let at = |domain| Place { domain, is_caught_up: true };
        assert_eq!(survives(&[at(None), at(None), at(None)]), None);
        assert_eq!(survives(&[at(Some("a")), at(Some("b")), at(None)]), None);
        assert_eq!(survives(&[at(Some("a")), at(Some("a")), at(None)]), Some(false));
        assert_eq!(majority_domain(&[at(Some("a")), at(Some("a")), at(None)]), Some(("a", 2)));
        assert_eq!(majority_domain(&[at(Some("a")), at(Some("b")), at(Some("c"))]), None);
    }
}

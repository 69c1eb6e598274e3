//! Certificates that the operator issues: what is to be made, exchanged or dropped next. Knows times and digests, never a key.
//!
//! An authority is exchanged in three phases, so that at no time anybody meets a certificate it does not trust: the new one is
//! trusted beside the old one; certificates by the new one are issued; the old one is dropped. A phase ends when every member
//! that runs has said that it uses what the phase gave it, and when clients have had time to.

use std::collections::{BTreeMap, BTreeSet};

use quorate_api::TlsMode;

/// What is known of one certificate. Times in seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub sha256: String,
    pub not_before: i64,
    pub not_after: i64,
}

impl Certificate {
    /// Past two thirds of its life.
    fn is_due(&self, now: i64) -> bool {
        now.saturating_sub(self.not_before) >= (self.not_after - self.not_before) / 3 * 2
    }
}

/// The authorities of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities {
    /// Issues.
    pub issuer: Certificate,
    /// Trusted already, issues next.
    pub next: Option<Certificate>,
    /// Trusted still, issues no more.
    pub previous: Option<Certificate>,
    /// Of the file that holds all of them.
    pub trust_sha256: String,
}

/// Who holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Member(String),
    /// The operator itself.
    Admin,
    Client,
}

/// What a holder was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Of the one that ends first, where it has several.
    pub leaf: Certificate,
    pub leaf_sha256s: BTreeSet<String>,
    pub issuer_sha256: String,
    pub trust_sha256: String,
}

/// What a member says it uses, on the ports that use our certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    pub leaf_sha256s: BTreeSet<String>,
    pub trust_sha256s: BTreeSet<String>,
}

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wallet {
    pub authorities: Option<Authorities>,
    pub held: BTreeMap<Holder, Held>,
    /// Of each member that runs: what it uses, if it could be asked.
    pub running: BTreeMap<String, Option<InUse>>,
}

/// One thing to do. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    CreateAuthority,
    /// First phase: another authority is trusted.
    TrustNext,
    /// Second phase: it issues from now on.
    IssueByNext,
    /// Third phase: the old one is trusted no more.
    DropPrevious,
    /// A new certificate, and what is trusted now.
    Issue(Holder),
    /// What is trusted now; the certificate stays.
    Trust(Holder),
}

impl Change {
    /// Whom it is for; nobody when it is about the authority.
    pub fn holder(&self) -> Option<&Holder> {
        match self {
            Change::Issue(holder) | Change::Trust(holder) => Some(holder),
            Change::CreateAuthority | Change::TrustNext | Change::IssueByNext | Change::DropPrevious => None,
        }
    }

    /// Part of an exchange of authorities, which waits for everybody.
    pub fn is_phase(&self) -> bool {
        matches!(self, Change::TrustNext | Change::IssueByNext | Change::DropPrevious)
    }
}

/// What is to be done now, all of it, in order. `wanted` is everybody who needs a certificate; `grace_seconds` is what
/// clients get to take what changed; `rotate` is the authority that a person wants exchanged before its time.
pub fn changes(wallet: &Wallet, wanted: &[Holder], now: i64, grace_seconds: i64, rotate: Option<&str>) -> Vec<Change> {
    let Some(authorities) = &wallet.authorities else { return vec![Change::CreateAuthority] };
    let mut changes: Vec<Change> = wanted.iter().filter_map(|holder| due(wallet, authorities, holder, now)).collect();
    if changes.is_empty() {
        changes.extend(next_phase(wallet, authorities, wanted, now, grace_seconds, rotate));
    }
    changes
}

fn due(wallet: &Wallet, authorities: &Authorities, holder: &Holder, now: i64) -> Option<Change> {
    match wallet.held.get(holder) {
        None => Some(Change::Issue(holder.clone())),
        Some(held) if held.issuer_sha256 != authorities.issuer.sha256 => Some(Change::Issue(holder.clone())),
        // None ends later than who issued it.
        Some(held) if held.leaf.is_due(now) && held.leaf.not_after < authorities.issuer.not_after => {
            Some(Change::Issue(holder.clone()))
        }
        Some(held) if held.trust_sha256 != authorities.trust_sha256 => Some(Change::Trust(holder.clone())),
        Some(_) => None,
    }
}

/// Everybody holds what they should; whether they use it decides about the next phase.
fn next_phase(
    wallet: &Wallet,
    authorities: &Authorities,
    wanted: &[Holder],
    now: i64,
    grace_seconds: i64,
    rotate: Option<&str>,
) -> Option<Change> {
    let Authorities { issuer, next, previous, trust_sha256 } = authorities;
    let trusts = |used: &InUse| used.trust_sha256s.iter().all(|trust| trust == trust_sha256);
    if previous.is_some() {
        let shown = |name: &String, used: &InUse| {
            let held = wallet.held.get(&Holder::Member(name.clone()));
            held.is_some_and(|held| used.leaf_sha256s.is_subset(&held.leaf_sha256s))
        };
        let all = wallet.running.iter().all(|(name, used)| used.as_ref().is_some_and(|used| shown(name, used)));
        let newest = wanted.iter().filter_map(|holder| wallet.held.get(holder)).map(|held| held.leaf.not_before).max();
        let is_time = newest.is_some_and(|newest| now >= newest.saturating_add(grace_seconds));
        return (all && is_time).then_some(Change::DropPrevious);
    }
    if let Some(next) = next {
        let all = wallet.running.values().all(|used| used.as_ref().is_some_and(trusts));
        let is_time = now >= next.not_before.saturating_add(grace_seconds);
        // Nobody believes an authority that has ended, nor can members be asked with its certificates: there is nothing to wait for.
        let is_over = issuer.not_after <= now;
        return ((all && is_time) || is_over).then_some(Change::IssueByNext);
    }
    // Moot once another one issues: who asks need not take it back.
    let is_asked = rotate == Some(issuer.sha256.as_str());
    (is_asked || issuer.is_due(now)).then_some(Change::TrustNext)
}

/// The mode to give members now, so that those who run one mode and those who run another still understand each other: between
/// plain text only and TLS only there is both.
pub fn mode_now(wanted: TlsMode, running: impl IntoIterator<Item = TlsMode>) -> TlsMode {
    let opposite = match wanted {
        TlsMode::Disabled => TlsMode::Required,
        TlsMode::Required => TlsMode::Disabled,
        TlsMode::Preferred => return wanted,
    };
    if running.into_iter().any(|mode| mode == opposite) { TlsMode::Preferred } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: i64 = 10;

    fn certificate(name: &str, not_before: i64) -> Certificate {
        Certificate { sha256: name.to_owned(), not_before, not_after: not_before + 3_000 }
    }

    /// Carries changes out, as the shell does.
    fn carry_out(wallet: &mut Wallet, change: &Change, now: i64) {
        let fresh = certificate(&format!("ca{now}"), now);
        let trust = |a: &Authorities| {
            let all = [Some(&a.issuer), a.next.as_ref(), a.previous.as_ref()];
            all.into_iter().flatten().map(|c| c.sha256.clone()).collect::<Vec<_>>().join("+")
        };
        match (change, &mut wallet.authorities) {
            (Change::CreateAuthority, slot @ None) => {
                *slot = Some(Authorities { issuer: fresh, next: None, previous: None, trust_sha256: String::new() });
            }
            (Change::TrustNext, Some(a)) => a.next = Some(fresh),
            (Change::IssueByNext, Some(a)) => {
                let next = a.next.take().expect("there is a next one");
                a.previous = Some(std::mem::replace(&mut a.issuer, next));
            }
            (Change::DropPrevious, Some(a)) => a.previous = None,
            (Change::Issue(holder), Some(a)) => {
                let not_after = (now + 2_000).min(a.issuer.not_after);
                let leaf = Certificate { not_after, ..certificate(&format!("{holder:?}{now}"), now) };
                let held = Held {
                    leaf_sha256s: BTreeSet::from([leaf.sha256.clone()]),
                    leaf,
                    issuer_sha256: a.issuer.sha256.clone(),
                    trust_sha256: a.trust_sha256.clone(),
                };
                wallet.held.insert(holder.clone(), held);
            }
            (Change::Trust(holder), Some(a)) => {
                wallet.held.get_mut(holder).expect("it holds one").trust_sha256 = a.trust_sha256.clone();
            }
            (change, _) => panic!("{change:?} makes no sense now"),
        }
        if let Some(a) = &mut wallet.authorities {
            a.trust_sha256 = trust(a);
        }
    }

    /// A member takes what it holds.
    fn take(wallet: &mut Wallet, name: &str) {
        let held = wallet.held[&Holder::Member(name.to_owned())].clone();
        let used = InUse { leaf_sha256s: held.leaf_sha256s, trust_sha256s: BTreeSet::from([held.trust_sha256]) };
        wallet.running.insert(name.to_owned(), Some(used));
    }

    /// Every certificate in use is trusted by everybody else, at every step, whoever is slow.
    fn assert_understood(wallet: &Wallet) {
        let issuer_of = |leaf: &String| {
            wallet.held.values().find(|h| h.leaf_sha256s.contains(leaf)).map(|h| h.issuer_sha256.clone())
        };
        for (name, used) in &wallet.running {
            for (other, theirs) in &wallet.running {
                let (Some(used), Some(theirs)) = (used, theirs) else { continue };
                for issuer in theirs.leaf_sha256s.iter().filter_map(issuer_of) {
                    let trusted = used.trust_sha256s.iter().all(|trust| trust.contains(&issuer));
                    assert!(trusted, "{name} does not trust {other}: {issuer} of {used:?}");
                }
            }
        }
    }

    #[test]
    fn an_authority_is_exchanged_in_three_phases_and_nobody_meets_a_stranger() {
        let wanted = [Holder::Member("a".to_owned()), Holder::Member("b".to_owned()), Holder::Admin, Holder::Client];
        let mut wallet = Wallet::default();
        let mut seen = Vec::new();
        for now in (0..2_600).step_by(5) {
            for change in changes(&wallet, &wanted, now, GRACE, None) {
                if !matches!(change, Change::Issue(_) | Change::Trust(_)) {
                    seen.push(change.clone());
                }
                carry_out(&mut wallet, &change, now);
            }
            // One takes at once what it is given, the other late.
            if wallet.held.len() == 4 {
                take(&mut wallet, "a");
                if now % 300 == 0 || !wallet.running.contains_key("b") {
                    take(&mut wallet, "b");
                }
            }
            assert_understood(&wallet);
        }
        let phases = [Change::CreateAuthority, Change::TrustNext, Change::IssueByNext, Change::DropPrevious];
        assert_eq!(seen, phases);
    }

    #[test]
    fn a_member_that_cannot_be_asked_holds_up_the_exchange_and_not_the_renewal() {
        let wanted = [Holder::Member("a".to_owned()), Holder::Admin];
        let mut wallet = Wallet::default();
        for now in [0, 1, 2] {
            for change in changes(&wallet, &wanted, now, GRACE, None) {
                carry_out(&mut wallet, &change, now);
            }
        }
        wallet.running.insert("a".to_owned(), None);
        let mut issued = 0;
        for now in (2_000..2_900).step_by(50) {
            for change in changes(&wallet, &wanted, now, GRACE, None) {
                assert!(!matches!(change, Change::IssueByNext | Change::DropPrevious), "{change:?}");
                issued += usize::from(matches!(change, Change::Issue(_)));
                carry_out(&mut wallet, &change, now);
            }
        }
        assert_eq!(issued, 2, "each is renewed once");
    }

    #[test]
    fn an_authority_that_has_ended_is_replaced_though_nobody_can_be_asked() {
        let wanted = [Holder::Member("a".to_owned()), Holder::Admin];
        let mut wallet = Wallet::default();
        for now in [0, 1, 2] {
            changes(&wallet, &wanted, now, GRACE, None).iter().for_each(|c| carry_out(&mut wallet, c, now));
        }
        let ends = wallet.authorities.as_ref().map(|a| a.issuer.not_after).unwrap();
        // Leaves by it end with it, and nothing better can be made of it.
        wallet.held.values_mut().for_each(|held| held.leaf.not_after = ends);
        wallet.running.insert("a".to_owned(), None);
        let mut seen = Vec::new();
        for now in (ends + 1)..(ends + 10) {
            for change in changes(&wallet, &wanted, now, GRACE, None) {
                carry_out(&mut wallet, &change, now);
                seen.push(change);
            }
        }
        let issued = seen.iter().filter(|c| matches!(c, Change::Issue(_))).count();
        let phases: Vec<_> = seen.iter().filter(|c| c.is_phase()).collect();
        assert_eq!(phases, [&Change::TrustNext, &Change::IssueByNext], "the old one is dropped when members say so");
        assert_eq!(issued, 2, "each once: {seen:?}");
    }

    #[test]
    fn an_authority_is_exchanged_before_its_time_when_a_person_names_it() {
        let wanted = [Holder::Admin];
        let mut wallet = Wallet::default();
        for now in [0, 1] {
            changes(&wallet, &wanted, now, GRACE, None).iter().for_each(|c| carry_out(&mut wallet, c, now));
        }
        let asked = wallet.authorities.as_ref().map(|a| a.issuer.sha256.clone());
        assert_eq!(changes(&wallet, &wanted, 2, GRACE, Some("another")), []);
        let mut seen = Vec::new();
        for now in 2..100 {
            for change in changes(&wallet, &wanted, now, GRACE, asked.as_deref()) {
                carry_out(&mut wallet, &change, now);
                seen.push(change);
            }
        }
        let phases: Vec<_> = seen.iter().filter(|c| !matches!(c, Change::Issue(_) | Change::Trust(_))).collect();
        assert_eq!(phases, [&Change::TrustNext, &Change::IssueByNext, &Change::DropPrevious], "once, and no more");
    }

    #[test]
    fn between_plain_text_and_tls_there_is_both() {
        use TlsMode::{Disabled, Preferred, Required};
        assert_eq!(mode_now(Required, []), Required);
        assert_eq!(mode_now(Required, [Preferred, Required]), Required);
        assert_eq!(mode_now(Required, [Preferred, Disabled]), Preferred);
        assert_eq!(mode_now(Disabled, [Required]), Preferred);
        assert_eq!(mode_now(Disabled, [Preferred]), Disabled);
        assert_eq!(mode_now(Preferred, [Disabled]), Preferred);
    }
}

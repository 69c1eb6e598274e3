//! Scripts: a cluster in a few words, what happens to it, and what the planner and the status say. Golden: `UPDATE=1` rewrites.
//!
//! Members have one-letter names. `cluster b c d leader=b` makes three caught-up voters on the wanted template; each further
//! line changes one thing; `plan` shows the decision and what would follow, `status` the conditions.

#![allow(clippy::unwrap_used, reason = "a broken model or script is a failed test")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fmt::Write as _;
use std::path::Path;

use quorate_api::{ConsistentCluster, ConsistentClusterSpec, names};
use quorate_plan::{
    Blocked, ClusterId, ConfigAt, ConfigMember, Decision, Defaults, Deletion, Intent, MemberId, MemberRecord,
    MemberWord, Observation, Pod, PodPhase, Presence, Probe, Progress, Readiness, RetireReason, Retirement, Role,
    Running, Spoken, StartAs, StatusInput, Step, Termination, Volume, Waiting, budget_floor, plan, status,
};

const NOW_MS: u64 = 1_760_000_000_000;
const COMMIT: u64 = 50_000;

#[derive(Debug)]
pub struct Script {
    pub name: String,
    pub text: String,
}

pub fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

pub fn all() -> Vec<Script> {
    let mut paths: Vec<_> = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let named = |p: &std::path::PathBuf| p.file_stem().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|p| Script { name: named(p), text: std::fs::read_to_string(p).unwrap() }).collect()
}

/// Runs a script: the same text with the answers of today.
pub fn run(text: &str) -> String {
    let mut stage = Stage::new();
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            [] => continue,
            [first, ..] if first.starts_with('#') => continue,
            ["plan"] => stage.plan(),
            ["status"] => stage.status(),
            _ => {
                stage.change(&words).unwrap_or_else(|| panic!("no such line: {line}"));
                continue;
            }
        };
        write!(out, "---\n{answer}").unwrap();
        // The old answer goes: from the rule to the next empty line.
        while lines.peek().is_some_and(|l| !l.is_empty()) {
            lines.next();
        }
    }
    out
}

struct Stage {
    spec: ConsistentClusterSpec,
    observed: Observation,
    leader: Option<String>,
    config_index: u64,
    deletion: bool,
    /// Requests of a person, as annotations.
    asked: std::collections::BTreeMap<String, String>,
}

fn full(letter: &str) -> String {
    if letter.len() == 1 { format!("orders-{}", letter.repeat(5)) } else { letter.to_owned() }
}

fn short(text: &str) -> String {
    let mut text = text.to_owned();
    for letter in "bcdfghjkmnpqrstvwxz".chars() {
        text = text.replace(&full(&letter.to_string()), &letter.to_string());
    }
    text
}

fn id_of(name: &str) -> MemberId {
    MemberId(u64::from(*name.as_bytes().last().unwrap()))
}

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
}

impl Stage {
    fn new() -> Stage {
        let mut stage = Stage {
            spec: ConsistentClusterSpec::default(),
            observed: Observation::default(),
            leader: None,
            config_index: 40_000,
            deletion: false,
            asked: std::collections::BTreeMap::new(),
        };
        stage.observed.objects.finalizer = Presence::Present;
        stage.observed.objects.defaults = Some(Defaults::Open);
        stage
    }

    fn intent(&self) -> Intent {
        let mut cluster = ConsistentCluster::new("orders", self.spec.clone());
        cluster.metadata.uid = Some("c1".to_owned());
        cluster.metadata.generation = Some(7);
        cluster.metadata.annotations = Some(self.asked.clone());
        match Intent::of(&cluster) {
            Intent::Run(run) if self.deletion => Intent::Delete(quorate_plan::DeletionPolicy {
                identity: run.identity.clone(),
                volumes: run.storage.on_cluster_delete,
                since_ms: NOW_MS - 5_000,
            }),
            other => other,
        }
    }

    /// One line of the script; nothing when it is not understood.
    fn change(&mut self, words: &[&str]) -> Option<()> {
        match *words {
            ["cluster", ref rest @ ..] => self.cluster(rest),
            ["new", "cluster"] => self.observed.objects.applied_hash = self.objects_hash(),
            ["bare", "cluster"] => self.observed.objects.finalizer = Presence::Absent,
            ["want", ref rest @ ..] => self.want(rest)?,
            ["learner", name, ref rest @ ..] => self.learner(&full(name), rest),
            ["record", name] => self.record(&full(name)),
            ["volume", name] => self.volume(&full(name)),
            ["foreign", id, kind] => self.foreign(id, kind),
            ["no-record", name] => self.observed.records.retain(|r| r.name != full(name)),
            ["no-marker"] => self.observed.objects.bootstrapped = None,
            ["no-leader"] => self.unlead(),
            ["unconfirmed", ms] => self.word(None)?.quorum_confirmed_age_ms = ms.parse().ok()?,
            ["not-applied"] => self.word(None)?.own_term_applied = false,
            ["not-activated"] => self.word(None)?.activated = false,
            ["in-flight"] => self.word(None)?.change_in_flight = true,
            ["unread", what] => self.observed.unread.push(what.to_owned()),
            ["budget", count] => self.observed.objects.budget_min_available = Some(count.parse().ok()?),
            ["probe-fails"] => self.observed.probe = Some(Probe { age_ms: 0, outcome: Err("timed out".to_owned()) }),
            ["delete"] => self.deletion = true,
            ["removed-from-configuration", name] => {
                self.word(None)?.members.retain(|m| m.name != full(name));
            }
            ["silent-for", name, seconds] => {
                self.silent(&full(name));
                self.progress(&full(name))?.last_ack_age_ms = seconds.parse::<u64>().ok()? * 1_000;
            }
            ["unheard-by-leader", name, seconds] => {
                let progress = self.progress(&full(name))?;
                progress.active = false;
                progress.last_ack_age_ms = seconds.parse::<u64>().ok()? * 1_000;
            }
            ["pod-age", name, seconds] => {
                self.get(&full(name))?.pod.as_mut()?.created_ms = NOW_MS - seconds.parse::<u64>().ok()? * 1_000;
            }
            ["never-heard", name] => {
                self.silent(&full(name));
                self.progress(&full(name))?.last_ack_age_ms = u64::MAX;
            }
            ["led", seconds] => self.word(None)?.led_ms = seconds.parse::<u64>().ok()? * 1_000,
            ["silent", ref names @ ..] => names.iter().for_each(|n| self.silent(&full(n))),
            ["down", ref rest @ ..] => {
                let reason = value(rest, "reason").unwrap_or("CrashLoopBackOff");
                rest.iter().filter(|w| !w.contains('=')).for_each(|n| self.down(&full(n), reason));
            }
            ["lag", name, entries] => self.progress(&full(name))?.matched = COMMIT - entries.parse::<u64>().ok()?,
            ["volume-lost", name] => self.observed.volumes.retain(|v| v.record != full(name)),
            ["volume-deleting", name] => {
                self.observed.volumes.iter_mut().find(|v| v.record == full(name))?.deletion = Deletion::Requested;
            }
            ["fault", name, what] => self.word(Some(&full(name)))?.fault = what.to_owned(),
            ["disk-low", name] => self.word(Some(&full(name)))?.disk_low = true,
            ["rot", name, parts] => self.word(Some(&full(name)))?.rot_open = parts.parse().ok()?,
            ["node", name, node] => self.get(&full(name))?.pod.as_mut()?.node = Some(node.to_owned()),
            ["ending", name] => self.get(&full(name))?.pod.as_mut()?.termination = Termination::Terminating,
            ["no-pod", name] => self.get(&full(name))?.pod = None,
            ["stopped", name] => self.get(&full(name))?.running = Running::Stopped,
            ["seed", name] => self.get(&full(name))?.start = Some(StartAs::Seed),
            ["no-id", name] => self.get(&full(name))?.member_id = None,
            ["deleted", name] => self.get(&full(name))?.deletion = Deletion::Requested,
            ["template", name, which] => self.template(&full(name), which)?,
            ["zone", name, zone] => self.get(&full(name))?.pod.as_mut()?.zone = Some(zone.to_owned()),
            ["age", name, seconds] => {
                self.get(&full(name))?.created_ms = NOW_MS - seconds.parse::<u64>().ok()? * 1_000;
            }
            ["ask", what, value] => {
                let value = value
                    .split(',')
                    .map(|v| full(v.split('@').next().unwrap_or(v)) + &v[v.find('@').unwrap_or(v.len())..]);
                self.asked.insert(format!("quorate.dev/{what}"), value.collect::<Vec<_>>().join(","));
            }
            ["retire", name, reason] => self.retire(&full(name), RetireReason::parse(reason)?)?,
            _ => return None,
        }
        Some(())
    }

    fn objects_hash(&self) -> Option<String> {
        match self.intent() {
            Intent::Run(run) => Some(run.objects_hash()),
            Intent::Delete(_) | Intent::Refused(_) => None,
        }
    }

    fn template_hash(&self) -> String {
        match self.intent() {
            Intent::Run(run) => run.template_hash(),
            Intent::Delete(_) | Intent::Refused(_) => "none".to_owned(),
        }
    }

    fn cluster(&mut self, words: &[&str]) {
        let members: Vec<String> = words.iter().filter(|w| !w.contains('=')).map(|w| full(w)).collect();
        let leader = full(value(words, "leader").unwrap_or(words[0]));
        self.spec.replicas = i32::try_from(members.len()).unwrap();
        self.observed.objects.applied_hash = self.objects_hash();
        self.observed.objects.bootstrapped = Some(ClusterId(0xc1));
        self.observed.objects.budget_min_available = Some(budget_floor(members.len()));
        self.observed.probe = Some(Probe { age_ms: 0, outcome: Ok(COMMIT) });
        self.leader = Some(leader.clone());
        for name in &members {
            self.started(name);
        }
        let config: Vec<_> = members
            .iter()
            .map(|name| ConfigMember { id: id_of(name), name: name.clone(), is_learner: false, is_outgoing: false })
            .collect();
        for name in &members {
            let word = self.make_word(name, &leader, config.clone());
            self.observed.words.push(word);
        }
    }

    fn started(&mut self, name: &str) {
        self.record(name);
        self.volume(name);
        let template_hash = self.template_hash();
        let image = self.spec.image.clone();
        let record = self.get(name).unwrap();
        record.member_id = Some(id_of(name));
        record.start = Some(StartAs::Member);
        record.running = Running::Started;
        record.pod = Some(Pod {
            uid: format!("pod-{name}"),
            phase: PodPhase::Running,
            readiness: Readiness::Ready,
            termination: Termination::No,
            waiting_reason: None,
            template_hash,
            image,
            node: None,
            zone: None,
            created_ms: NOW_MS - 60_000,
            speaks: Spoken::default(),
        });
    }

    fn record(&mut self, name: &str) {
        let older = self.observed.records.len() as u64;
        self.observed.records.push(MemberRecord {
            name: name.to_owned(),
            uid: format!("r-{name}"),
            resource_version: "1".to_owned(),
            member_id: None,
            start: None,
            template_hash: self.template_hash(),
            running: Running::Stopped,
            retirement: None,
            deletion: Deletion::No,
            created_ms: NOW_MS - 100_000 + older * 1_000,
            speaks: Spoken::default(),
            pod: None,
        });
    }

    fn volume(&mut self, name: &str) {
        self.observed.volumes.push(Volume {
            record: name.to_owned(),
            name: names::volume(name),
            uid: format!("v-{name}"),
            resource_version: "1".to_owned(),
            record_uid: format!("r-{name}"),
            size_bytes: 1 << 30,
            class: None,
            deletion: Deletion::No,
        });
    }

    fn make_word(&self, name: &str, leader: &str, members: Vec<ConfigMember>) -> MemberWord {
        let leads = name == leader;
        let progress = members.iter().filter(|m| m.name != name).map(|m| Progress {
            member_id: m.id,
            matched: COMMIT,
            last_ack_age_ms: 20,
            active: true,
            snapshotting: false,
        });
        let is_learner = members.iter().any(|m| m.name == name && m.is_learner);
        MemberWord {
            record: name.to_owned(),
            pod_uid: format!("pod-{name}"),
            age_ms: 10,
            cluster_id: ClusterId(0xc1),
            member_id: id_of(name),
            incarnation: 1,
            version: "0.1.0".to_owned(),
            role: if leads {
                Role::Leader
            } else if is_learner {
                Role::Learner
            } else {
                Role::Follower
            },
            term: 4,
            leader_id: Some(id_of(leader)),
            commit_index: COMMIT,
            applied_index: COMMIT,
            last_index: COMMIT,
            pending_entries: 0,
            leader_contact_age_ms: 15,
            elections: 2,
            own_term_index: if leads { 41_000 } else { 0 },
            own_term_committed: leads,
            own_term_applied: leads,
            led_ms: if leads { 3_600_000 } else { 0 },
            quorum_confirmed_age_ms: if leads { 20 } else { u64::MAX },
            config_at: ConfigAt { incarnation: 1, term: 4, index: self.config_index },
            change_in_flight: false,
            joint: false,
            progress: if leads { progress.collect() } else { Vec::new() },
            members,
            failover_count: 0,
            last_failover_ms: 0,
            activated: true,
            ready: !is_learner,
            not_ready_reason: String::new(),
            fault: String::new(),
            disk_low: false,
            rot_open: 0,
        }
    }

    fn want(&mut self, words: &[&str]) -> Option<()> {
        for word in words {
            match word.split_once('=') {
                Some(("replicas", count)) => self.spec.replicas = count.parse().ok()?,
                Some(("image", image)) => self.spec.image = image.to_owned(),
                Some(("changePolicy", "Replace")) => {
                    self.spec.storage.change_policy = quorate_api::ChangePolicy::Replace;
                }
                Some(("replaceAfter", after)) => self.spec.repair.replace_unhealthy_after = after.to_owned(),
                Some(("domains", "zone")) => {
                    self.spec.topology.failure_domain_keys = vec![quorate_api::FailureDomainKey::Zone];
                }
                Some(("approval", "Disruptive")) => self.spec.approval = quorate_api::Approval::Disruptive,
                Some(("approval", "Manual")) => self.spec.approval = quorate_api::Approval::Manual,
                Some(("size", size)) => self.spec.storage.size = size.to_owned(),
                Some(("onClusterDelete", "Delete")) => self.spec.storage.on_cluster_delete = quorate_api::Keep::Delete,
                Some(("removedMember", "Retain")) => self.spec.storage.removed_member = quorate_api::Keep::Retain,
                None if *word == "paused" => self.spec.paused = true,
                _ => return None,
            }
        }
        // The budget is a step of its own; scripts about it say so.
        let voters = self.word(None).map_or(0, |w| w.members.iter().filter(|m| !m.is_learner).count());
        let wanted = usize::try_from(self.spec.replicas).unwrap_or(0);
        self.observed.objects.budget_min_available = Some(budget_floor(voters.max(wanted)));
        Some(())
    }

    fn learner(&mut self, name: &str, words: &[&str]) {
        self.started(name);
        let member = ConfigMember { id: id_of(name), name: name.to_owned(), is_learner: true, is_outgoing: false };
        let lag: u64 = value(words, "lag").map_or(0, |text| text.parse().unwrap());
        self.observed.words.iter_mut().for_each(|w| w.members.push(member.clone()));
        let leader = self.leader.clone().unwrap();
        let members = self.word(None).unwrap().members.clone();
        let word = self.make_word(name, &leader, members);
        self.word(None).unwrap().progress.push(Progress {
            member_id: id_of(name),
            matched: COMMIT - lag,
            last_ack_age_ms: 20,
            active: true,
            snapshotting: false,
        });
        self.observed.words.push(word);
    }

    fn foreign(&mut self, id: &str, kind: &str) {
        let id = MemberId(u64::from_str_radix(id, 16).unwrap());
        let member =
            ConfigMember { id, name: "stranger".to_owned(), is_learner: kind == "learner", is_outgoing: false };
        self.observed.words.iter_mut().for_each(|w| w.members.push(member.clone()));
    }

    /// The leader's word, or a member's.
    fn word(&mut self, name: Option<&str>) -> Option<&mut MemberWord> {
        let name = name.map(str::to_owned).or_else(|| self.leader.clone())?;
        self.observed.words.iter_mut().find(|w| w.record == name)
    }

    fn get(&mut self, name: &str) -> Option<&mut MemberRecord> {
        self.observed.records.iter_mut().find(|r| r.name == name)
    }

    fn progress(&mut self, name: &str) -> Option<&mut Progress> {
        let id = id_of(name);
        self.word(None)?.progress.iter_mut().find(|p| p.member_id == id)
    }

    /// It answers nobody, and nothing else is known.
    fn silent(&mut self, name: &str) {
        self.observed.words.retain(|w| w.record != name);
        if let Some(progress) = self.progress(name) {
            progress.active = false;
            progress.last_ack_age_ms = 60_000;
        }
    }

    /// Its pod proves that nothing runs.
    fn down(&mut self, name: &str, reason: &str) {
        self.silent(name);
        if let Some(pod) = self.get(name).and_then(|r| r.pod.as_mut()) {
            pod.readiness = Readiness::NotReady;
            pod.waiting_reason = Some(reason.to_owned());
        }
    }

    fn unlead(&mut self) {
        let leader = self.leader.take();
        for word in &mut self.observed.words {
            if Some(&word.record) == leader.as_ref() {
                word.role = Role::Candidate;
            }
            word.ready = false;
            word.leader_id = None;
        }
        self.observed.probe = Some(Probe { age_ms: 0, outcome: Err("no leader".to_owned()) });
    }

    /// `old`: record and pod; `applied`: the record has the wanted template, the pod the old one.
    fn template(&mut self, name: &str, which: &str) -> Option<()> {
        let wanted = self.template_hash();
        let record = self.get(name)?;
        let (of_record, of_pod) = match which {
            "old" => ("old".to_owned(), "old".to_owned()),
            "applied" => (wanted, "old".to_owned()),
            "current" => (wanted.clone(), wanted),
            _ => return None,
        };
        record.template_hash = of_record;
        if let Some(pod) = &mut record.pod {
            pod.template_hash = of_pod;
        }
        Some(())
    }

    fn retire(&mut self, name: &str, reason: RetireReason) -> Option<()> {
        let config_at = ConfigAt { incarnation: 1, term: 4, index: self.config_index };
        let record = self.get(name)?;
        record.retirement = Some(Retirement { member_id: record.member_id, config_at, reason });
        Some(())
    }

    fn plan(&self) -> String {
        let plan = plan(&self.intent(), &self.observed, NOW_MS, names::seed("c1"));
        let mut out = format!("{}\n", decision(&plan.next));
        // The first line of the outline is the decision itself.
        let rest = plan
            .upcoming
            .iter()
            .skip(usize::from(matches!(plan.next, Decision::Act(_) | Decision::Wait(_)) && !self.deletion));
        let rest: Vec<_> = rest
            .map(|p| p.member.as_ref().map_or(p.step.to_owned(), |member| format!("{} {member}", p.step)))
            .collect();
        if !rest.is_empty() {
            writeln!(out, "then {}", rest.join(", ")).unwrap();
        }
        if !plan.report.foreign.is_empty() {
            let ids: Vec<_> = plan.report.foreign.iter().map(ToString::to_string).collect();
            writeln!(out, "foreign {}", ids.join(" ")).unwrap();
        }
        short(&out)
    }

    fn status(&self) -> String {
        let intent = self.intent();
        let plan = plan(&intent, &self.observed, NOW_MS, names::seed("c1"));
        let input = StatusInput {
            intent: &intent,
            observed: &self.observed,
            plan: &plan,
            previous: None,
            now_ms: NOW_MS,
            failure: None,
        };
        let status = status(input);
        let mut out = format!("voters={} ready={}", status.replicas, status.ready_replicas);
        if let Some(quorum) = &status.quorum {
            write!(
                out,
                " required={} reachable={} caughtUp={} tolerates={}",
                quorum.required, quorum.reachable, quorum.caught_up, quorum.tolerates
            )
            .unwrap();
            if let Some(survives) = &quorum.survives {
                write!(out, " survives node={:?} zone={:?}", survives.node, survives.zone).unwrap();
            }
        }
        writeln!(out, " leader={}", status.leader.map_or("none".to_owned(), |l| l.name)).unwrap();
        for condition in &status.conditions {
            writeln!(out, "{}={:?} {}: {}", condition.kind, condition.status, condition.reason, condition.message)
                .unwrap();
        }
        short(&out)
    }
}

fn decision(decision: &Decision) -> String {
    match decision {
        Decision::Steady => "steady".to_owned(),
        Decision::Act(step) => format!("act {}", step_text(step)),
        Decision::Wait(waiting) => format!("wait {}{}\n  {waiting}", waiting.reason(), numbers(waiting)),
        Decision::Blocked(blocked) => format!("blocked {}\n  {blocked}", reason(blocked)),
    }
}

fn reason(blocked: &Blocked) -> &'static str {
    blocked.reason()
}

fn numbers(waiting: &Waiting) -> String {
    waiting.have_need().map_or(String::new(), |(have, need)| format!(" have={have} need={need}"))
}

fn step_text(step: &Step) -> String {
    let about = step.member().map_or(String::new(), |m| format!(" {m}"));
    let letter = |id: &MemberId| full(&char::from(u8::try_from(id.0).unwrap()).to_string());
    let more = match step {
        Step::CreateMember { purpose, .. } => format!(" for={purpose:?}"),
        Step::StartMember { start, .. } => format!(" as={start:?}"),
        Step::MarkRetiring { reason, .. } => format!(" reason={}", reason.as_str()),
        Step::AddLearner { leader, expect, .. } => format!(" at={} expect={expect}", letter(leader)),
        Step::Promote { leader, expect, lag_max, .. } => {
            format!(" at={} expect={expect} lag_max={lag_max}", letter(leader))
        }
        Step::RemoveMember { leader, expect, .. } => format!(" at={} expect={expect}", letter(leader)),
        Step::SwapVoter { old, leader, expect, .. } => {
            format!(" old={} at={} expect={expect}", letter(old), letter(leader))
        }
        Step::TransferLeader { leader, to, expect_term } => {
            format!(" from={} to={} term={expect_term}", letter(leader), letter(to))
        }
        Step::RestartMember { evict, .. } => format!(" by={evict:?}"),
        Step::SetBudget { min_available } => format!(" min_available={min_available:?}"),
        Step::GrowVolume { size, .. } => format!(" size={size}"),
        Step::RecordMemberId { member_id, .. } | Step::SealSeed { member_id, .. } => format!(" id={member_id}"),
        Step::AddFinalizer
        | Step::ApplyObjects { .. }
        | Step::CreateVolume { .. }
        | Step::AdoptVolume { .. }
        | Step::RecordBootstrap { .. }
        | Step::Activate { .. }
        | Step::StopMember { .. }
        | Step::DeletePod { .. }
        | Step::DeleteVolume { .. }
        | Step::ReleaseVolume { .. }
        | Step::DropRecord { .. }
        | Step::ApplyTemplate { .. }
        | Step::Finish => String::new(),
    };
    format!("{}{about}{more}", step.name())
}

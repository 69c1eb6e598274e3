//! The planner's and the status's decisions, one small cluster at a time. `UPDATE=1 cargo test -p quorate-plan` rewrites them.

mod script;

#[test]
fn every_script_says_what_it_said() {
    let mut differing = Vec::new();
    for script in script::all() {
        let now = script::run(&script.text);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(script::directory().join(format!("{}.txt", script.name)), &now).unwrap();
        } else if now != script.text {
            differing.push(format!("== {}\n{now}", script.name));
        }
    }
    assert!(differing.is_empty(), "these differ from what is stored:\n{}", differing.join("\n"));
}

/// Every reason to wait or to stop is shown by a script.
#[test]
fn every_reason_appears_in_a_script() {
    const REASONS: [&str; 23] = [
        "ObservationIncomplete",
        "NoLeader",
        "ChangeInFlight",
        "MemberStarting",
        "LearnerBehind",
        "NoMargin",
        "QuorumAtRisk",
        "NoSuccessor",
        "PodStopping",
        "VolumeDeleting",
        "RecordDeleting",
        "InvalidSpec",
        "Paused",
        "BootstrapRefused",
        "QuorumLost",
        "AmbiguousMember",
        "ForeignLearner",
        "CanaryFailed",
        "OneAtATime",
        "MemberFenced",
        "RequestRefused",
        "MemberSilent",
        "DomainMajority",
    ];
    let text: String = script::all().into_iter().map(|s| s.text).collect();
    for reason in REASONS {
        let shown = text.contains(&format!("wait {reason}")) || text.contains(&format!("blocked {reason}"));
        assert!(shown, "no script shows {reason}");
    }
}

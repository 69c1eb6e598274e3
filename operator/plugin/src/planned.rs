//! The planner's answer as text, in the words of `status.plan`, and what an edit changes. Pure.

use std::fmt::Write as _;

use quorate_api::{ConsistentCluster, PlannedStepStatus};
use quorate_plan::{Decision, Plan, Waiting};
use serde::Serialize;
use serde_json::{Value, json};

use crate::screen::plan_lines;

/// A plan that machines read, too.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// Steady, Act, Wait or Blocked.
    pub decision: &'static str,
    /// A stable word: the step, or the reason.
    pub reason: String,
    pub message: String,
    /// What the edit changes, `path: old -> new`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    pub plan: Vec<PlannedStepStatus>,
    /// What nobody told, so that the plan may be another one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
}

impl Planned {
    pub fn of(plan: &Plan, changes: Vec<String>, doubts: Vec<String>) -> Planned {
        let (decision, reason, message) = match &plan.next {
            Decision::Steady => ("Steady", "Steady".to_owned(), "nothing is to be done".to_owned()),
            Decision::Act(step) => (
                "Act",
                step.name().to_owned(),
                match step.member() {
                    Some(member) => format!("{} {member}", step.name()),
                    None => step.name().to_owned(),
                },
            ),
            Decision::Wait(waiting) => ("Wait", waiting.reason().to_owned(), waiting.to_string()),
            Decision::Blocked(blocked) => ("Blocked", blocked.reason().to_owned(), blocked.to_string()),
        };
        Planned { decision, reason, message, changes, plan: quorate_plan::shown(&plan.upcoming), doubts }
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        for change in &self.changes {
            let _ = writeln!(out, "{:<8} {change}", "change");
        }
        let what = match self.decision {
            "Act" => "next",
            "Wait" => "waits",
            "Blocked" => "blocked",
            _ => "steady",
        };
        let _ = writeln!(out, "{what:<8} {}", self.message);
        for doubt in &self.doubts {
            let _ = writeln!(out, "{:<8} {doubt}", "note");
        }
        if !self.plan.is_empty() {
            let _ = write!(out, "\nPLAN\n{}", plan_lines(&self.plan));
        }
        out
    }
}

/// Leaves that differ between two specs, as `spec.path: old -> new`.
pub fn changes(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differ("spec", old, new, &mut found);
    found
}

fn differ(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    if old == new {
        return;
    }
    if let (Some(before), Some(after)) = (old.as_object(), new.as_object()) {
        let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter().for_each(|key| differ(&format!("{path}.{key}"), &old[key], &new[key], found));
        return;
    }
    let shown = |value: &Value| match value {
        Value::Null => "(absent)".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    found.push(format!("{path}: {} -> {}", shown(old), shown(new)));
}

/// The merge patch that `kubectl apply` would make of a file: what it has, and null for what the last file had and it has not.
pub fn as_applied(file: &Value, last: Option<&Value>) -> Value {
    let mut patch = file.clone();
    let parts = [&["spec"][..], &["metadata", "labels"], &["metadata", "annotations"]];
    for part in parts {
        let Some(old) = last.and_then(|last| last.pointer(&format!("/{}", part.join("/")))) else { continue };
        if old.as_object().is_none_or(serde_json::Map::is_empty) {
            continue;
        }
        let mut new = &mut patch;
        for key in part {
            new = &mut new[*key];
        }
        if new.is_null() {
            *new = json!({});
        }
        forget(new, old);
    }
    patch
}

fn forget(patch: &mut Value, last: &Value) {
    let (Value::Object(patch), Value::Object(last)) = (patch, last) else { return };
    for (key, old) in last {
        match patch.get_mut(key) {
            Some(new) => forget(new, old),
            None => drop(patch.insert(key.clone(), Value::Null)),
        }
    }
}

/// What `kubectl apply` wrote of the file it applied last.
pub fn last_applied(cluster: &ConsistentCluster) -> Option<Value> {
    let annotations = cluster.metadata.annotations.as_ref()?;
    serde_json::from_str(annotations.get("kubectl.kubernetes.io/last-applied-configuration")?).ok()
}

/// Says what a plan could not take into account.
pub fn doubts(plan: &Plan, silent: &[String], refusal: Option<String>) -> Vec<String> {
    let told = |member: &String| format!("{member} gave no word through a port-forward, so it counts as silent here");
    let mut doubts: Vec<String> = silent.iter().map(told).chain(refusal).collect();
    if let Decision::Wait(Waiting::ObservationIncomplete { what }) = &plan.next {
        doubts.push(format!("you may not read everything the operator reads ({what}); ask for the right to list it"));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_no_longer_has_is_removed_and_what_it_never_had_stays() {
        let last = json!({
            "metadata": {"name": "orders", "namespace": "shop", "annotations": {}, "labels": {"team": "a", "old": "yes"}},
            "spec": {"replicas": 3, "options": {"quotaBackendBytes": "4Gi"}, "keys": ["zone", "host"]},
        });
        let file = json!({"metadata": {"name": "orders"}, "spec": {"replicas": 5, "keys": ["host"]}});
        let removed = json!({
            "metadata": {"name": "orders", "labels": {"team": null, "old": null}},
            "spec": {"replicas": 5, "options": null, "keys": ["host"]},
        });
        assert_eq!(as_applied(&file, Some(&last)), removed);
        assert_eq!(as_applied(&file, None), file);
    }

    #[test]
    fn an_edit_is_told_leaf_by_leaf() {
        let old = json!({"replicas": 3, "storage": {"size": "1Gi"}, "image": "a"});
        let new = json!({"replicas": 5, "storage": {"size": "1Gi", "storageClassName": "fast"}, "image": "a"});
        assert_eq!(changes(&old, &new), ["spec.replicas: 3 -> 5", "spec.storage.storageClassName: (absent) -> fast"]);
        assert!(changes(&old, &old).is_empty());
    }
}

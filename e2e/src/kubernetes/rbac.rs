//! What the operator may do, beside what it was seen to do. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::audit::Request;

/// (API group, resource or resource/subresource, verb).
pub type Right = (String, String, String);

/// Rights that a suite cannot make the operator use, each with the reason.
pub const EXCUSED: [((&str, &str, &str), &str); 0] = [];

/// The rights in the rules of a Role or ClusterRole.
pub fn granted(roles: &[Value]) -> BTreeSet<Right> {
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in roles.iter().filter_map(|role| role["rules"].as_array()).flatten() {
        let (groups, resources, verbs) = (words(&rule["apiGroups"]), words(&rule["resources"]), words(&rule["verbs"]));
        for group in &groups {
            for resource in &resources {
                rights.extend(verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
        // Paths that are no resources, such as /metrics.
        for path in words(&rule["nonResourceURLs"]) {
            rights.extend(verbs.iter().map(|verb| (String::new(), path.clone(), verb.clone())));
        }
    }
    rights
}

/// The rights that requests made use of, and how often; and those that were asked for and refused.
pub fn used(requests: &[Request]) -> (BTreeMap<Right, usize>, BTreeSet<Right>) {
    let (mut used, mut refused) = (BTreeMap::new(), BTreeSet::new());
    for request in requests {
        let Request { group, resource, subresource, verb, .. } = request;
        let target = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
        let right = (group.clone(), target, verb.clone());
        // Admission refuses with 403 too, but only what RBAC let through.
        if request.code == 403 {
            refused.insert(right.clone());
        }
        // An apply that makes the object is allowed by two rights, and shown under one name.
        if verb == "patch" && request.code == 201 {
            *used.entry((right.0.clone(), right.1.clone(), "create".to_owned())).or_default() += 1;
        }
        *used.entry(right).or_default() += 1;
    }
    (used, refused)
}

/// Everything that is wrong about the rights; nothing is the goal.
pub fn faults(
    granted: &BTreeSet<Right>,
    used: &BTreeMap<Right, usize>,
    excused: &[((&str, &str, &str), &str)],
) -> Vec<String> {
    let shown = |(group, resource, verb): &Right| {
        let group = if group.is_empty() { "core" } else { group };
        format!("{verb} {resource} ({group})")
    };
    let is_excused =
        |(group, resource, verb): &Right| excused.iter().any(|((g, r, v), _)| g == group && r == resource && v == verb);
    let is_wild = |(group, resource, verb): &Right| group == "*" || resource.contains('*') || verb == "*";
    let wild = granted.iter().filter(|r| is_wild(r)).map(|r| format!("granted with a wildcard: {}", shown(r)));
    let idle = granted
        .iter()
        .filter(|r| !is_wild(r) && !used.contains_key(*r) && !is_excused(r))
        .map(|r| format!("granted and never used: {}", shown(r)));
    let missing = used.keys().filter(|r| !granted.contains(*r)).map(|r| format!("used but not granted: {}", shown(r)));
    let needless = excused
        .iter()
        .filter(|((g, r, v), _)| !granted.contains(&((*g).to_owned(), (*r).to_owned(), (*v).to_owned())))
        .map(|((g, r, v), _)| format!("excused but not granted: {v} {r} ({g})"));
    wild.chain(idle).chain(missing).chain(needless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn right(group: &str, resource: &str, verb: &str) -> Right {
        (group.to_owned(), resource.to_owned(), verb.to_owned())
    }

    #[test]
    fn rules_are_spread_out() {
        let role = json!({"rules": [{"apiGroups": ["", "apps"], "resources": ["pods"], "verbs": ["get", "list"]}]});
        assert_eq!(granted(&[role]).len(), 4);
    }

    #[test]
    fn idle_missing_and_wild_rights_are_named_and_excuses_count() {
        let granted = [("", "pods", "get"), ("", "pods", "delete"), ("", "pods", "*"), ("", "nodes", "get")];
        let granted = granted.map(|(g, r, v)| right(g, r, v)).into_iter().collect();
        let used = BTreeMap::from([(right("", "pods", "get"), 3), (right("apps", "deployments", "get"), 1)]);
        let found = faults(&granted, &used, &[(("", "nodes", "get"), "zones are off")]);
        assert_eq!(
            found,
            [
                "granted with a wildcard: * pods (core)",
                "granted and never used: delete pods (core)",
                "used but not granted: get deployments (apps)"
            ]
        );
        let needless = faults(&BTreeSet::new(), &BTreeMap::new(), &[(("", "nodes", "get"), "zones are off")]);
        assert_eq!(needless, ["excused but not granted: get nodes ()"]);
    }
}

//! The chart is in step with the code: its CRD is the generated one, and nobody is granted a wildcard.

use std::path::{Path, PathBuf};

fn chart(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/quorate").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(chart(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The generated definition as a template: kept on uninstall, left out on request.
fn crd_template() -> String {
    let crd = quorate_api::crd_yaml();
    assert!(!crd.contains("{{"), "the definition would be taken for a template");
    let (head, rest) = crd.split_once("metadata:\n").expect("a definition has metadata");
    format!(
        "{{{{- if .Values.installCRDs }}}}\n{head}metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n{rest}{{{{- end }}}}\n"
    )
}

#[test]
fn the_charts_crd_is_the_generated_one() {
    let wanted = crd_template();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(chart("templates/crd.yaml"), &wanted).unwrap();
    }
    assert!(read("templates/crd.yaml") == wanted, "charts/quorate/templates/crd.yaml is old; run `cargo xtask crds`");
}

#[test]
fn no_wildcard_is_granted_and_secrets_are_never_listed() {
    for file in ["templates/_helpers.tpl", "templates/rbac.yaml"] {
        let text = read(file);
        let granted = |line: &&str| {
            let line = line.trim_start_matches([' ', '-']);
            ["apiGroups:", "resources:", "verbs:"].iter().any(|key| line.starts_with(key))
        };
        let lines: Vec<&str> = text.lines().filter(granted).collect();
        assert!(!lines.is_empty(), "{file} grants nothing, so this test looks at the wrong place");
        for line in lines {
            assert!(!line.contains('*'), "{file}: {line}");
        }
    }
    // By name only: who may list Secrets has read them all.
    let helpers = read("templates/_helpers.tpl");
    let rules: Vec<&str> = helpers.split("resources: [secrets]").skip(1).collect();
    let [rule] = rules.as_slice() else {
        panic!("the rights to Secrets are written in {} places, not in one", rules.len())
    };
    assert!(rule.starts_with("\n  verbs: [get, create, update]\n"), "{rule}");
    assert!(!read("templates/rbac.yaml").contains("resources: [secrets]"), "they come from the helper");
}

#[test]
fn every_value_has_a_schema() {
    let values: serde_json::Value = serde_yaml_ng::from_str(&read("values.yaml")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    for key in values.as_object().unwrap().keys() {
        assert!(schema["properties"].get(key).is_some(), "values.yaml has {key}, its schema has not");
    }
    assert_eq!(schema["additionalProperties"], false);
}

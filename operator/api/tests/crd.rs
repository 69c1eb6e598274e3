//! The CRD in the repository is the one these types generate, and it says what it should.
//!
//! `UPDATE=1 cargo test -p quorate-api` writes it anew.

use std::path::{Path, PathBuf};

use kube::CustomResourceExt;
use quorate_api::{ConsistentCluster, crd_yaml};
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_crd_in_the_repository_is_the_generated_one() {
    let path = repository().join("crds/quorate.dev_consistentclusters.yaml");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, crd_yaml()).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == crd_yaml(), "{} is out of step; run `cargo xtask crds`", path.display());
}

#[test]
fn the_examples_are_read_without_a_field_left_over() {
    for entry in std::fs::read_dir(repository().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let cluster: ConsistentCluster =
            serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(cluster.metadata.name.as_deref(), path.file_stem().and_then(|s| s.to_str()));
    }
}

fn version() -> Value {
    serde_json::to_value(ConsistentCluster::crd()).expect("a definition is plain data")["spec"]["versions"][0].clone()
}

/// Every schema below this one, with its path.
fn schemas<'a>(path: &str, schema: &'a Value, found: &mut Vec<(String, &'a Value)>) {
    found.push((path.to_owned(), schema));
    if let Some(properties) = schema["properties"].as_object() {
        properties.iter().for_each(|(name, property)| schemas(&format!("{path}.{name}"), property, found));
    }
    for (key, shown) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            schemas(&format!("{path}{shown}"), &schema[key], found);
        }
    }
}

#[test]
fn every_field_of_the_spec_is_typed_bounded_and_no_field_is_open() {
    let version = version();
    let mut found = Vec::new();
    schemas("spec", &version["schema"]["openAPIV3Schema"]["properties"]["spec"], &mut found);
    assert!(found.len() > 10, "the walk finds the fields: {}", found.len());
    for (path, schema) in found {
        assert_ne!(schema["x-kubernetes-preserve-unknown-fields"], true, "{path} takes anything");
        match schema["type"].as_str() {
            Some("string") => {
                assert!(
                    schema["maxLength"].is_u64() || schema["enum"].is_array(),
                    "{path} is a string without a limit"
                );
            }
            Some("integer") => assert!(schema["maximum"].is_number(), "{path} is a number without a limit"),
            Some("array") => assert!(schema["maxItems"].is_u64(), "{path} is a list without a limit"),
            Some("object") => {
                let keyed = schema["additionalProperties"].is_object();
                assert!(!keyed || schema["maxProperties"].is_u64(), "{path} is a map without a limit");
            }
            Some("boolean") => {}
            other => panic!("{path} has type {other:?}"),
        }
    }
}

#[test]
fn formats_are_ones_that_the_api_server_knows() {
    let version = version();
    let mut found = Vec::new();
    schemas("", &version["schema"]["openAPIV3Schema"], &mut found);
    for (path, schema) in found {
        if let Some(format) = schema["format"].as_str() {
            assert!(["int32", "int64", "date-time"].contains(&format), "{path} has format {format}");
        }
    }
}

#[test]
fn scale_and_columns_read_fields_that_exist() {
    let version = version();
    let scale = &version["subresources"]["scale"];
    let root = &version["schema"]["openAPIV3Schema"];
    let mut paths: Vec<String> = ["specReplicasPath", "statusReplicasPath", "labelSelectorPath"]
        .iter()
        .map(|key| scale[key].as_str().unwrap_or_else(|| panic!("scale has no {key}")).to_owned())
        .collect();
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    paths.extend(columns.iter().map(|c| c["jsonPath"].as_str().unwrap().to_owned()));
    for path in paths.iter().filter(|p| !p.starts_with(".metadata")) {
        let mut schema = root;
        for part in path.trim_start_matches('.').split('.') {
            let name = part.split('[').next().unwrap();
            schema = &schema["properties"][name];
            assert!(schema.is_object(), "{path}: no field {name}");
            if part.contains('[') {
                break;
            }
        }
    }
}

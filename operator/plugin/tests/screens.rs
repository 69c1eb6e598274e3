//! What a person sees in each situation. Golden: `UPDATE=1 cargo test -p quorate-kubectl --test screens` rewrites the texts.

#![allow(clippy::unwrap_used, reason = "a file or an answer that is not there is a failed test")]

use std::path::PathBuf;

use quorate_api::ConsistentCluster;
use quorate_kubectl::args::Color;
use quorate_kubectl::paint::Paint;
use quorate_kubectl::screen::{list, screen};

/// Ten seconds after every situation's last observation.
const NOW_MS: i64 = 1_760_000_010_000;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/situations")
}

fn situations() -> Vec<(String, ConsistentCluster)> {
    let entries = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let cluster = serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.file_stem().unwrap().to_string_lossy().into_owned(), cluster)
    };
    paths.into_iter().map(read).collect()
}

fn named(name: &str) -> ConsistentCluster {
    situations().into_iter().find(|(n, _)| n == name).unwrap().1
}

#[test]
fn every_situation_looks_as_it_did() {
    let mut differing = Vec::new();
    for (name, cluster) in situations() {
        let now = screen(&cluster, NOW_MS, Paint::NONE);
        let path = directory().join(format!("{name}.txt"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &now).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != now {
            differing.push(format!("== {name}\n{now}"));
        }
    }
    assert!(differing.is_empty(), "these differ from what is stored:\n{}", differing.join("\n"));
}

#[test]
fn colours_change_nothing_but_colours() {
    for (name, cluster) in situations() {
        let plain = screen(&cluster, NOW_MS, Paint::NONE);
        let painted = screen(&cluster, NOW_MS, Paint::of(Color::Always));
        let mut stripped = String::new();
        let mut rest = painted.as_str();
        while let Some((before, after)) = rest.split_once('\x1b') {
            stripped.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        stripped.push_str(rest);
        assert_eq!(stripped, plain, "{name}");
        assert!(name == "no_operator" || painted != plain, "{name} has no colour at all");
    }
}

#[test]
fn an_old_status_is_told_to_be_old() {
    let cluster = named("healthy");
    assert!(!screen(&cluster, NOW_MS, Paint::NONE).contains("NOTE"));
    let later = screen(&cluster, NOW_MS + 600_000, Paint::NONE);
    assert!(later.contains("no member was heard for 10 min"), "{later}");
}

#[test]
fn a_screen_fits_a_screen() {
    for (name, cluster) in situations() {
        let text = screen(&cluster, NOW_MS, Paint::NONE);
        assert!(text.lines().count() <= 40, "{name} has {} lines", text.lines().count());
    }
}

#[test]
fn clusters_are_listed_a_line_each() {
    let text = list(&[named("healthy"), named("no_operator")]);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("orders-b7xk2") && text.contains("no operator has looked"), "{text}");
}

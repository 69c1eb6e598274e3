//! Rules about the house itself, checked by reading it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e lies in the workspace").to_path_buf()
}

/// Crates that decide and never act, with their directories.
const PURE: [(&str, &str); 7] = [
    ("quorate-api", "operator/api"),
    ("quorate-plan", "operator/plan"),
    ("quorate-raft", "node/raft"),
    ("quorate-log", "node/log"),
    ("quorate-state", "node/state"),
    ("quorate-audit", "node/audit"),
    ("quorate-sim", "node/sim"),
];

/// Crates that bring a runtime, a socket, a server or a random source of the operating system.
const ACTING: [&str; 12] = [
    "tokio",
    "mio",
    "tonic",
    "hyper",
    "axum",
    "tower",
    "kube-client",
    "kube-runtime",
    "reqwest",
    "socket2",
    "rand",
    "futures-util",
];

/// The only files of those crates that may touch the file system: the real disk, programs' own `main`.
const MAY_TOUCH_FILES: [&str; 4] = ["node/log/src/real.rs", "/main.rs", "/bin/", "/build.rs"];

#[test]
fn pure_crates_depend_on_no_runtime_client_or_server() {
    for (name, _) in PURE {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "-p", name, "-e", "normal", "--prefix", "none", "--format", "{p}"])
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "cargo tree -p {name}: {}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(tree.lines().next().is_some_and(|l| l.starts_with(name)), "cargo tree shows {name} first: {tree}");
        for line in tree.lines() {
            let dependency = line.split(' ').next().unwrap_or_default();
            assert!(!ACTING.contains(&dependency), "{name} must stay pure, but depends on {dependency}");
        }
    }
}

#[test]
fn pure_crates_hold_no_clock_no_randomness_no_async_and_no_hash_order() {
    const BANNED: [(&str, &str); 10] = [
        ("async fn", "decide in plain functions; the shell awaits"),
        ("Instant::now", "take the time as an argument"),
        ("SystemTime", "take the time as an argument"),
        ("thread_rng", "take a seed as an argument"),
        ("from_os_rng", "take a seed as an argument"),
        ("std::net", "sockets belong to the shells"),
        ("std::thread::sleep", "nothing here waits"),
        ("HashMap", "its order is random; use BTreeMap"),
        ("HashSet", "its order is random; use BTreeSet"),
        ("std::fs", "files belong to the shells and to the real disk"),
    ];
    for (_, dir) in PURE {
        for file in rust_files(&root().join(dir).join("src")) {
            let shown = file.strip_prefix(root()).expect("under the root").display().to_string();
            let text = std::fs::read_to_string(&file).expect("source files are text");
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for (word, remedy) in BANNED {
                    let program = MAY_TOUCH_FILES.iter().any(|allowed| shown.contains(allowed));
                    assert!(program || !code.contains(word), "{shown}:{} uses `{word}`: {remedy}", number + 1);
                }
            }
        }
    }
}

#[test]
fn every_script_lies_where_a_test_reads_it() {
    for (_, dir) in PURE {
        let scripts = root().join(dir).join("tests/scripts");
        if !scripts.exists() {
            continue;
        }
        let tests: String = rust_files(&root().join(dir).join("tests"))
            .iter()
            .map(|f| std::fs::read_to_string(f).expect("source files are text"))
            .collect();
        assert!(tests.contains("scripts"), "{dir}/tests/scripts has no test that reads the folder");
    }
}

#[test]
fn the_top_level_holds_what_the_map_names() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md exists");
    for entry in std::fs::read_dir(root()).expect("the root is readable") {
        let name = entry.expect("readable").file_name().to_string_lossy().into_owned();
        let hidden = name.starts_with('.') || name == "target";
        assert!(hidden || map.contains(&name), "{name} lies at the top level but ARCHITECTURE.md does not name it");
    }
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

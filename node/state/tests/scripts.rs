//! Golden scripts in `tests/scripts`: commands, then what the machine says. `UPDATE=1 cargo test -p quorate-state`
//! writes what it says now; read the difference before you commit it.
//!
//! A block is comment lines (`#`), command lines, `---`, output lines, an empty line. Words of a command:
//! `put KEY VALUE [lease=N] [prev] [ignore-value] [ignore-lease]`, `del RANGE [prev]`, `get RANGE [option]`,
//! `compact REV`, `version MAJOR MINOR`, `alarm raise|lower MEMBER`, `nothing N` (N entries without a command), `events RANGE from=REV [limit=N]`, `status`, `agreed`, `hash REV`,
//! and `txn` with indented lines `if COMPARE`, `then OP`, `else OP`; a nested `txn` is indented deeper.
//! A RANGE is `key`, `[from,end)`, `[from,)` or `prefix*`.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;
use quorate_state::{
    ClusterVersion, Command, Compare, CompareResult, CompareTarget, DeleteRange, EventKind, KeyRange, KeyValue, Limits,
    Machine, Put, Range, RangeResult, Response, SortOrder, SortTarget, StateError, Txn, TxnOp,
};

#[test]
fn every_script_says_what_it_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let script = std::fs::read_to_string(&path).unwrap();
        let said = run(&script);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &said).unwrap();
            continue;
        }
        assert_eq!(said, script, "{} (UPDATE=1 rewrites it)", path.display());
    }
}

/// The script with its output lines replaced by what is said now.
fn run(script: &str) -> String {
    let mut machine = Machine::new();
    let mut blocks = Vec::new();
    for block in script.trim_end().split("\n\n") {
        let input: Vec<&str> = block.lines().take_while(|line| *line != "---").collect();
        let mut said = input.join("\n");
        let commands: Vec<&str> = input.into_iter().filter(|line| !line.starts_with('#')).collect();
        if !commands.is_empty() {
            said.push_str("\n---");
        }
        let mut at = 0;
        while at < commands.len() {
            let inside = commands[at + 1..].iter().take_while(|line| line.starts_with(' ')).count();
            let answer = step(&mut machine, &commands[at..=at + inside]);
            said.push('\n');
            said.push_str(answer.trim_end());
            at += 1 + inside;
        }
        blocks.push(said);
    }
    blocks.join("\n\n") + "\n"
}

fn step(machine: &mut Machine, lines: &[&str]) -> String {
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    let view = machine.view();
    match words[0] {
        "status" => format!(
            "revision {} compacted {} pending {} changes {}",
            view.revision(),
            view.compact_revision(),
            view.compaction_pending(),
            view.change_count()
        ),
        "agreed" => format!("version {} alarms {:?}", view.cluster_version(), view.alarms().collect::<Vec<_>>()),
        "hash" => match view.hash_kv(number(words[1])) {
            Ok(hash) => format!("hash at {} compacted {}", hash.hash_revision, hash.compact_revision),
            Err(error) => error.message().to_owned(),
        },
        "nothing" => {
            for _ in 0..number(words[1]) {
                drop(machine.apply(machine.applied_index() + 1, 1, None));
            }
            "ok".to_owned()
        }
        "get" => match view.range(&get(&words[1..])) {
            Ok(result) => show_range(&result),
            Err(error) => error.message().to_owned(),
        },
        "events" => {
            let from = number(option(&words, "from=").unwrap());
            let limit = usize::try_from(option(&words, "limit=").map_or(0, number)).unwrap();
            match view.events(&range(words[1]), from, limit) {
                Ok(events) => {
                    let mut out = String::new();
                    for event in &events.events {
                        let kind = if event.kind == EventKind::Put { "put" } else { "delete" };
                        let prev = view.prev_kv(event).map_or(String::new(), |kv| format!(" was {}", show(&kv)));
                        writeln!(out, "{kind} {}.{}{prev}", show(&event.kv), event.kv.sub_revision).unwrap();
                    }
                    out + &format!("next {}", events.next_revision)
                }
                Err(error) => error.message().to_owned(),
            }
        }
        _ => {
            let command = command(lines);
            let checked = command.validate(Limits::default());
            let applied = machine.apply(machine.applied_index() + 1, 1, Some(&command));
            match applied.outcome {
                Ok(response) => show_response(&response, 0),
                Err(error) => {
                    format!("{}{}", error.message(), if checked.is_err() { " (before proposing)" } else { "" })
                }
            }
        }
    }
}

#[test]
fn a_nested_transaction_has_the_operations_its_parent_left() {
    let get = |times: usize| vec![TxnOp::Range(get(&["a"])); times];
    let nested = |outer: usize, inner: usize| {
        let inside = Txn { success: get(inner), ..Txn::default() };
        let success = [get(outer - 1), vec![TxnOp::Txn(inside)]].concat();
        Txn { success, ..Txn::default() }.validate(Limits::default())
    };
    assert_eq!(Txn { failure: get(128), ..Txn::default() }.validate(Limits::default()), Ok(()));
    assert_eq!(Txn { failure: get(129), ..Txn::default() }.validate(Limits::default()), Err(StateError::TooManyOps));
    assert_eq!(nested(100, 28), Ok(()));
    assert_eq!(nested(100, 29), Err(StateError::TooManyOps));
    let compares = vec![compare(&["mod", "a", "=", "0"]); 129];
    assert_eq!(Txn { compares, ..Txn::default() }.validate(Limits::default()), Err(StateError::TooManyOps));
}

// ---- output ----

fn show(kv: &KeyValue) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    if kv.is_tombstone() {
        return format!("{} @{}", text(&kv.key), kv.mod_revision);
    }
    format!("{}={} @{} create {} v{}", text(&kv.key), text(&kv.value), kv.mod_revision, kv.create_revision, kv.version)
}

fn show_range(result: &RangeResult) -> String {
    let mut out = String::new();
    for kv in &result.kvs {
        writeln!(out, "{}", show(kv)).unwrap();
    }
    let more = if result.more { " more" } else { "" };
    out + &format!("count {}{more} at {}", result.count, result.revision)
}

fn show_response(response: &Response, depth: usize) -> String {
    let text = match response {
        Response::Put(put) => {
            let prev = put.prev_kv.as_ref().map_or(String::new(), |kv| format!(" was {}", show(kv)));
            format!("put at {}{prev}", put.revision)
        }
        Response::DeleteRange(delete) => {
            let prev: String = delete.prev_kvs.iter().map(|kv| format!("\n  was {}", show(kv))).collect();
            format!("deleted {} at {}{prev}", delete.deleted, delete.revision)
        }
        Response::Range(range) => show_range(range),
        Response::Txn(txn) => {
            let branch = if txn.succeeded { "then" } else { "else" };
            let inner: String = txn.responses.iter().map(|r| format!("\n{}", show_response(r, 1))).collect();
            format!("{branch} at {}{inner}", txn.revision)
        }
        Response::Compact { revision } => format!("compacted at {revision}"),
        Response::Nothing { revision } => format!("nothing at {revision}"),
    };
    text.lines().map(|line| format!("{}{line}\n", "  ".repeat(depth))).collect::<String>().trim_end().to_owned()
}

// ---- input ----

fn number(word: &str) -> i64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is a number"))
}

fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name))
}

fn range(word: &str) -> KeyRange {
    if word == "\"\"" {
        return KeyRange::default();
    }
    if let Some(prefix) = word.strip_suffix('*') {
        return KeyRange::prefix(prefix.to_owned());
    }
    let Some((from, end)) = word.strip_prefix('[').and_then(|w| w.strip_suffix(')')).and_then(|w| w.split_once(','))
    else {
        return KeyRange::one(word.to_owned());
    };
    KeyRange::new(from.to_owned(), if end.is_empty() { "\0".to_owned() } else { end.to_owned() })
}

fn text(word: &str) -> Bytes {
    if word == "\"\"" { Bytes::new() } else { Bytes::from(word.to_owned()) }
}

fn put(words: &[&str]) -> Put {
    let has = |name| words.contains(&name);
    Put {
        key: text(words[0]),
        value: text(words[1]),
        lease: option(words, "lease=").map_or(0, number),
        prev_kv: has("prev"),
        ignore_value: has("ignore-value"),
        ignore_lease: has("ignore-lease"),
    }
}

fn delete(words: &[&str]) -> DeleteRange {
    DeleteRange { range: range(words[0]), prev_kv: words.contains(&"prev") }
}

fn get(words: &[&str]) -> Range {
    let int = |name| option(words, name).map_or(0, number);
    Range {
        range: range(words[0]),
        revision: int("rev="),
        limit: int("limit="),
        sort_order: match option(words, "order=") {
            None => SortOrder::None,
            Some("ascend") => SortOrder::Ascend,
            Some("descend") => SortOrder::Descend,
            Some(other) => panic!("no order is called {other}"),
        },
        sort_target: match option(words, "by=") {
            None | Some("key") => SortTarget::Key,
            Some("version") => SortTarget::Version,
            Some("create") => SortTarget::CreateRevision,
            Some("mod") => SortTarget::ModRevision,
            Some("value") => SortTarget::Value,
            Some(other) => panic!("no sort target is called {other}"),
        },
        keys_only: words.contains(&"keys-only"),
        count_only: words.contains(&"count-only"),
        min_mod_revision: int("min-mod="),
        max_mod_revision: int("max-mod="),
        min_create_revision: int("min-create="),
        max_create_revision: int("max-create="),
    }
}

fn command(lines: &[&str]) -> Command {
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    match words[0] {
        "put" => put(&words[1..]).into(),
        "del" => delete(&words[1..]).into(),
        "compact" => Command::Compact { revision: number(words[1]) },
        "version" => {
            let part = |at: usize| words[at].parse().unwrap();
            Command::ClusterVersion(ClusterVersion::new(part(1), part(2)))
        }
        "alarm" => Command::Alarm { member: words[2].parse().unwrap(), is_raised: words[1] == "raise" },
        "txn" => txn(&lines[1..]).into(),
        other => panic!("no command is called {other}"),
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn txn(lines: &[&str]) -> Txn {
    let mut txn = Txn::default();
    let mut at = 0;
    while at < lines.len() {
        let inside = lines[at + 1..].iter().take_while(|line| indent(line) > indent(lines[at])).count();
        let words: Vec<&str> = lines[at].split_whitespace().collect();
        let op = |words: &[&str]| match words[0] {
            "put" => TxnOp::Put(put(&words[1..])),
            "del" => TxnOp::DeleteRange(delete(&words[1..])),
            "get" => TxnOp::Range(get(&words[1..])),
            "txn" => TxnOp::Txn(self::txn(&lines[at + 1..=at + inside])),
            other => panic!("no operation is called {other}"),
        };
        match words[0] {
            "if" => txn.compares.push(compare(&words[1..])),
            "then" => txn.success.push(op(&words[1..])),
            "else" => txn.failure.push(op(&words[1..])),
            other => panic!("no part of a transaction is called {other}"),
        }
        at += 1 + inside;
    }
    txn
}

fn compare(words: &[&str]) -> Compare {
    let [target, keys, relation, given] = words[..] else { panic!("a compare is TARGET RANGE RELATION GIVEN") };
    Compare {
        range: range(keys),
        result: match relation {
            "=" => CompareResult::Equal,
            ">" => CompareResult::Greater,
            "<" => CompareResult::Less,
            "!=" => CompareResult::NotEqual,
            other => panic!("no relation is written {other}"),
        },
        target: match target {
            "version" => CompareTarget::Version(number(given)),
            "create" => CompareTarget::CreateRevision(number(given)),
            "mod" => CompareTarget::ModRevision(number(given)),
            "lease" => CompareTarget::Lease(number(given)),
            "value" => CompareTarget::Value(text(given)),
            other => panic!("no target is called {other}"),
        },
    }
}

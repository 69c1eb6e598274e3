//! Every script in `tests/scripts` happens as written. `UPDATE=1` writes what happened into the scripts instead of
//! comparing; `SCRIPT=name` runs those whose path contains the name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod net;
mod script;

#[test]
fn every_script_happens_as_written() {
    let only = std::env::var("SCRIPT").unwrap_or_default();
    let mut failed = Vec::new();
    for (path, script) in script::scripts().into_iter().filter(|(path, _)| path.contains(&only)) {
        println!("{path}");
        let result = script::run(&script, &|_| {});
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, result).unwrap();
        } else if result != script {
            let differs = result.lines().zip(script.lines()).find(|(got, wanted)| got != wanted);
            println!("differs: {differs:?}\n{result}");
            failed.push(path);
        }
    }
    assert!(failed.is_empty(), "scripts that happen otherwise (UPDATE=1 rewrites them): {failed:#?}");
}

//! Runs other programs with a time limit and with their output kept for the error message.
//!
//! Everything a rig does is running somebody else's program. What goes wrong there is a program that hangs or one
//! whose reason is lost in a log; so every run here names what it is for, ends by itself and shows its last lines when
//! it fails. Must not interpret what a program printed.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often an ended child is looked for: short beside anything that is run here.
const POLL: Duration = Duration::from_millis(20);
/// After a child's end, how long its pipes are read on: a grandchild that lives on may hold them open for ever.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Last lines of a failed program's output that an error shows.
const SHOWN_LINES: usize = 30;
/// What a program may take if nothing else is said: client calls to something on this machine.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// A program to run, what for, and how long it may take.
#[derive(Debug)]
pub struct Run {
    command: Command,
    purpose: String,
    limit: Duration,
    input: Option<Vec<u8>>,
}

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Ended {
    /// None: it was killed at its time limit.
    pub status: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

impl Run {
    pub fn new(program: impl AsRef<OsStr>, purpose: impl Into<String>) -> Run {
        Run { command: Command::new(program), purpose: purpose.into(), limit: DEFAULT_LIMIT, input: None }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Run {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Run {
        self.command.args(args);
        self
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Run {
        self.command.env(key, value);
        self
    }

    pub fn dir(mut self, dir: impl AsRef<std::path::Path>) -> Run {
        self.command.current_dir(dir);
        self
    }

    pub fn limit(mut self, seconds: u64) -> Run {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// What the program reads on its standard input; without it, nothing.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Run {
        self.input = Some(input.into());
        self
    }

    /// Runs to the end whatever it is; an error means that the program could not be started.
    pub fn end(mut self) -> Result<Ended> {
        let program = self.command.get_program().to_string_lossy().into_owned();
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start `{program}` ({}): is it installed?", self.purpose))?;
        if let (Some(input), Some(mut pipe)) = (self.input.take(), child.stdin.take()) {
            // A program that ends before it read everything closes the pipe; its exit status tells then.
            thread::spawn(move || pipe.write_all(&input));
        }
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let status = wait(&mut child, self.limit)?;
        let text = |collected: Option<Collected>| collected.map(Collected::text).unwrap_or_default();
        Ok(Ended { status, stdout: text(stdout), stderr: text(stderr) })
    }

    /// Runs to the end and returns stdout; a failure is an error that shows the last lines.
    pub fn output(self) -> Result<String> {
        let (purpose, limit) = (self.purpose.clone(), self.limit);
        let ended = self.end()?;
        match ended.status {
            Some(status) if status.success() => Ok(ended.stdout),
            Some(status) => bail!("{purpose}: {status}\n{}", last_lines(&ended.stdout, &ended.stderr)),
            None => {
                bail!("{purpose}: no end after {} s\n{}", limit.as_secs(), last_lines(&ended.stdout, &ended.stderr))
            }
        }
    }

    /// As `output`, for programs whose output nobody needs.
    pub fn run(self) -> Result<()> {
        self.output().map(drop)
    }
}

/// Waits for the child's end; at the limit it is killed and None returned.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child process")? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            child.kill().context("cannot kill a child process at its time limit")?;
            child.wait().context("cannot wait for a killed child process")?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// What a thread reads from a pipe, to be had at any time.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&bytes);
    let reader = thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count) = pipe.read(&mut buffer) {
            if count == 0 {
                return;
            }
            into.lock().expect("no holder of this lock panics").extend_from_slice(&buffer[..count]);
        }
    });
    Collected { bytes, reader }
}

impl Collected {
    fn text(self) -> String {
        let started = Instant::now();
        while !self.reader.is_finished() && started.elapsed() < DRAIN_LIMIT {
            thread::sleep(POLL);
        }
        String::from_utf8_lossy(&self.bytes.lock().expect("no holder of this lock panics")).into_owned()
    }
}

fn last_lines(stdout: &str, stderr: &str) -> String {
    let lines: Vec<&str> = stdout.lines().chain(stderr.lines()).filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    lines[from..].iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Prints what is being done, does it and prints how long it took.
pub fn step<T>(area: &str, what: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    eprint!("[{area}] {what} … ");
    let result = body();
    let end = if result.is_ok() { "" } else { "FAILED after " };
    eprintln!("{end}{:.1} s", started.elapsed().as_secs_f64());
    result
}

/// Asks again and again until the answer is Some; the error names what was waited for and the last reason it was not there.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if started.elapsed() >= limit => {
                return Err(error.context(format!("waited {} s for {what}", limit.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_ended_at_its_limit_and_the_error_names_its_purpose() {
        let run = Run::new("sh", "sleeping").args(["-c", "echo begun; exec sleep 60"]).limit(5);
        let error = run.output().unwrap_err().to_string();
        assert!(error.starts_with("sleeping: no end after 5 s"), "{error}");
        assert!(error.contains("begun"), "{error}");
    }

    #[test]
    fn a_failure_shows_the_last_lines_of_both_streams() {
        let error =
            Run::new("sh", "failing").args(["-c", "echo out; echo err >&2; exit 3"]).output().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("out") && error.contains("err"), "{error}");
    }

    #[test]
    fn input_larger_than_a_pipe_comes_through() {
        let input = vec![b'x'; 1 << 20];
        let output = Run::new("cat", "echoing").input(input.clone()).output().unwrap();
        assert_eq!(output.len(), input.len());
    }
}

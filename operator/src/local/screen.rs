//! What a person sees: a table redrawn in place on a terminal, otherwise a line whenever something changes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use quorate_api::{ConditionStatus, ConsistentClusterStatus};
use quorate_plan::{Blocked, Decision, MemberWord};

use super::world::{MemberEndpoint, role_text};
use crate::events::{Note, Severity};
use crate::reconcile::Pass;

/// News lines kept under the table.
const NEWS_MAX: usize = 6;
/// What is said besides lines of members.
const OTHER_KEYS: [&str; 4] = ["manifest", "ready", "waits", "failure"];
const UNKNOWN: &str = "-";

#[derive(Debug)]
pub(super) struct Screen {
    is_terminal: bool,
    file: PathBuf,
    /// Lines of the last drawing.
    drawn_lines: usize,
    news: Vec<String>,
    /// What was last said about each member, the cluster and the try line; for plain output.
    said: BTreeMap<String, String>,
}

impl Screen {
    pub fn new(is_terminal: bool, file: &Path) -> Screen {
        Screen { is_terminal, file: file.to_path_buf(), drawn_lines: 0, news: Vec::new(), said: BTreeMap::new() }
    }

    pub fn say(&mut self, text: &str) {
        print(&format!("{text}\n"));
        self.drawn_lines = 0;
    }

    pub fn show(&mut self, pass: &Pass, endpoints: &[MemberEndpoint], news: &[Note]) {
        let refused = self.refused(pass);
        let lines = refused.into_iter().chain(news.iter().filter(|n| n.reason != "InvalidSpec").map(note_line));
        let lines: Vec<String> = lines.collect();
        if self.is_terminal {
            self.news.extend(lines);
            let extra = self.news.len().saturating_sub(NEWS_MAX);
            self.news.drain(..extra);
            self.redraw(&table(pass, endpoints, &self.news));
        } else {
            self.plain(pass, endpoints, lines);
        }
    }

    /// One line when the manifest is refused for another reason than before, and one when it is taken again.
    fn refused(&mut self, pass: &Pass) -> Option<String> {
        let file = self.file.display();
        let text = match &pass.plan.next {
            Decision::Blocked(Blocked::InvalidSpec { problems }) => {
                format!("{file} is refused, nothing is changed: {}", problems.join("; "))
            }
            Decision::Blocked(_) | Decision::Steady | Decision::Act(_) | Decision::Wait(_) => String::new(),
        };
        let known = self.said.insert("manifest".to_owned(), text.clone()).unwrap_or_default();
        match (known.is_empty(), text.is_empty()) {
            _ if known == text => None,
            (false, true) => Some(format!("{file} is taken again")),
            _ => Some(text),
        }
    }

    fn redraw(&mut self, text: &str) {
        let up = if self.drawn_lines > 0 { format!("\x1b[{}A", self.drawn_lines) } else { String::new() };
        // Lines longer than the terminal are cut rather than wrapped, or the count of lines would be wrong.
        print(&format!("{up}\r\x1b[J\x1b[?7l{text}\x1b[?7h"));
        self.drawn_lines = text.lines().count();
    }

    fn plain(&mut self, pass: &Pass, endpoints: &[MemberEndpoint], mut lines: Vec<String>) {
        for row in rows(pass, endpoints) {
            let text = format!("{} {} {} {}", row.member, row.role, row.health, row.endpoint);
            lines.extend(self.changed(&row.member, text));
        }
        let members = &pass.status.members;
        self.said.retain(|key, _| OTHER_KEYS.contains(&key.as_str()) || members.iter().any(|m| m.name == *key));
        lines.extend(self.changed("ready", ready_line(pass, endpoints).unwrap_or_default()));
        let waits = match &pass.plan.next {
            Decision::Wait(waiting) => format!("waiting: {waiting}"),
            Decision::Blocked(Blocked::InvalidSpec { .. }) | Decision::Steady | Decision::Act(_) => String::new(),
            Decision::Blocked(blocked) => format!("blocked: {blocked}"),
        };
        lines.extend(self.changed("waits", waits));
        if let Some(failure) = pass.failure() {
            lines.extend(self.changed("failure", format!("failed: {failure}")));
        }
        if !lines.is_empty() {
            print(&(lines.join("\n") + "\n"));
        }
    }

    /// The text if it is news under this key. Numbers alone are not.
    fn changed(&mut self, key: &str, text: String) -> Option<String> {
        let plain: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        let is_news = key == "ready" || self.said.get(key).is_none_or(|known| *known != plain);
        let same = self.said.insert(key.to_owned(), if key == "ready" { text.clone() } else { plain });
        (is_news && same.as_deref() != Some(text.as_str()) && !text.is_empty()).then_some(text)
    }
}

fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more: the cluster runs on.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn note_line(note: &Note) -> String {
    let mark = match note.severity {
        Severity::Normal => "",
        Severity::Warning => "! ",
    };
    format!("{mark}{}: {}", note.reason, note.text)
}

struct Row {
    member: String,
    role: String,
    term: String,
    commit: String,
    applied: String,
    lag: String,
    health: String,
    endpoint: String,
    leads: bool,
}

fn rows(pass: &Pass, endpoints: &[MemberEndpoint]) -> Vec<Row> {
    let status = &pass.status;
    let word = |name: &str| pass.seen.observation.words.iter().find(|w| w.record == name);
    let endpoint = |name: &str| endpoints.iter().find(|e| e.record == name).map(|e| e.client.clone());
    status
        .members
        .iter()
        .map(|member| {
            let word = word(&member.name);
            let number = |of: fn(&MemberWord) -> u64| word.map_or(UNKNOWN.to_owned(), |w| of(w).to_string());
            Row {
                role: word.map_or(member.role.clone(), |w| role_text(Some(w.role)).to_owned()),
                term: number(|w| w.term),
                commit: number(|w| w.commit_index),
                applied: number(|w| w.applied_index),
                lag: member.match_lag.map_or(UNKNOWN.to_owned(), |lag| lag.to_string()),
                health: health(pass, &member.name, member.ready),
                endpoint: endpoint(&member.name).unwrap_or_else(|| UNKNOWN.to_owned()),
                leads: status.leader.as_ref().is_some_and(|l| l.name == member.name),
                member: member.name.clone(),
            }
        })
        .collect()
}

fn health(pass: &Pass, name: &str, is_ready: bool) -> String {
    if is_ready {
        return "ready".to_owned();
    }
    let observed = &pass.seen.observation;
    if let Some(word) = observed.words.iter().find(|w| w.record == name) {
        return if word.not_ready_reason.is_empty() { "not ready".to_owned() } else { word.not_ready_reason.clone() };
    }
    match observed.records.iter().find(|r| r.name == name) {
        Some(record) => quorate_plan::view::View::why_down(record),
        None => "no record".to_owned(),
    }
}

fn ready_line(pass: &Pass, endpoints: &[MemberEndpoint]) -> Option<String> {
    is_ready(&pass.status).then(|| {
        let voters: Vec<&str> = endpoints.iter().filter(|e| e.is_voter).map(|e| e.client.as_str()).collect();
        let members = if pass.status.replicas == 1 { "member" } else { "members" };
        format!("Ready: {} {members}; try: etcdctl --endpoints={} put a b", pass.status.replicas, voters.join(","))
    })
}

fn is_ready(status: &ConsistentClusterStatus) -> bool {
    status.condition("Ready").is_some_and(|c| c.status == ConditionStatus::True)
}

fn table(pass: &Pass, endpoints: &[MemberEndpoint], news: &[String]) -> String {
    let status = &pass.status;
    let identity = status.condition("Ready").map_or(String::new(), |c| format!("{:?} ({})", c.status, c.message));
    let tolerates = status.quorum.as_ref().map_or(0, |q| q.tolerates);
    let mut text = format!("{} voters, {tolerates} may fail now   Ready: {identity}\n\n", status.replicas);
    text += &format!(
        "  {:<24} {:<12} {:>6} {:>10} {:>10} {:>7}  {:<16} {}\n",
        "MEMBER", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "ENDPOINT", "HEALTH"
    );
    for row in rows(pass, endpoints) {
        let Row { member, role, term, commit, applied, lag, health, endpoint, leads } = row;
        let (on, off) = if leads { ("\x1b[1m* ", "\x1b[0m") } else { ("  ", "") };
        text += &format!(
            "{on}{member:<24} {role:<12} {term:>6} {commit:>10} {applied:>10} {lag:>7}  {endpoint:<16} {health}{off}\n"
        );
    }
    text += "\n";
    for line in news {
        text += &format!("  {line}\n");
    }
    text += &ready_line(pass, endpoints).unwrap_or_default();
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_alone_are_no_news() {
        let mut screen = Screen::new(false, Path::new("c.yaml"));
        assert!(screen.changed("a-1", "a-1 Leader lag 3".into()).is_some());
        assert!(screen.changed("a-1", "a-1 Leader lag 4".into()).is_none());
        assert!(screen.changed("a-1", "a-1 Follower lag 4".into()).is_some());
    }

    #[test]
    fn the_ready_line_counts_members() {
        let mut screen = Screen::new(false, Path::new("c.yaml"));
        assert!(screen.changed("ready", "Ready: 3 members".into()).is_some());
        assert!(screen.changed("ready", "Ready: 3 members".into()).is_none());
        assert!(screen.changed("ready", "Ready: 5 members".into()).is_some());
        assert!(screen.changed("ready", String::new()).is_none());
        assert!(screen.changed("ready", "Ready: 5 members".into()).is_some(), "ready again is news");
    }
}

//! Lines of several logs in order of their times. Pure.

use k8s_openapi::jiff::Timestamp;

/// A line as the kubelet gives it, split at its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Nothing for a line without a time: it stays behind the one before it.
    pub time: Option<Timestamp>,
    pub member: usize,
    pub text: String,
}

/// Splits `2026-01-02T03:04:05.678Z rest of the line`.
pub fn line(member: usize, raw: &str) -> Line {
    let split = raw.split_once(' ').and_then(|(time, rest)| Some((time.parse::<Timestamp>().ok()?, rest)));
    match split {
        Some((time, rest)) => Line { time: Some(time), member, text: rest.to_owned() },
        None => Line { time: None, member, text: raw.to_owned() },
    }
}

/// Sorts by time; lines of one member keep their order, and a line without a time has that of the line before it.
pub fn merged(mut lines: Vec<Line>) -> Vec<Line> {
    let mut last: Vec<Option<Timestamp>> = Vec::new();
    for line in &mut lines {
        if last.len() <= line.member {
            last.resize(line.member + 1, None);
        }
        line.time = line.time.or(last[line.member]);
        // A clock that went back must not tear a log apart.
        line.time = line.time.max(last[line.member]);
        last[line.member] = line.time;
    }
    lines.sort_by_key(|line| line.time);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|l| l.text.as_str()).collect()
    }

    #[test]
    fn lines_of_members_are_in_order_of_time() {
        let lines = vec![
            line(0, "2026-01-02T03:04:05.100Z first"),
            line(0, "2026-01-02T03:04:05.300Z third"),
            line(1, "2026-01-02T03:04:05.200Z second"),
            line(1, "2026-01-02T03:04:06Z last"),
        ];
        assert_eq!(texts(&merged(lines)), ["first", "second", "third", "last"]);
    }

    #[test]
    fn a_line_without_a_time_and_a_clock_that_goes_back_keep_a_logs_order() {
        let lines = vec![
            line(0, "2026-01-02T03:04:05Z panicked at"),
            line(0, "   somewhere"),
            line(0, "2026-01-02T03:04:01Z earlier clock"),
            line(1, "2026-01-02T03:04:04Z other"),
        ];
        assert_eq!(texts(&merged(lines)), ["other", "panicked at", "   somewhere", "earlier clock"]);
    }
}

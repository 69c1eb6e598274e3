//! Colours, or none. Text is the same either way.

use std::io::IsTerminal;

use crate::args::Color;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warning,
    Bad,
    Faint,
    Strong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    is_on: bool,
}

/// Foregrounds that read well on dark and light grounds, one for each member in turn.
const MEMBERS: [u8; 6] = [36, 35, 34, 33, 32, 31];

impl Paint {
    pub const NONE: Paint = Paint { is_on: false };

    pub fn of(color: Color) -> Paint {
        let auto = || std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Paint {
            is_on: match color {
                Color::Auto => auto(),
                Color::Always => true,
                Color::Never => false,
            },
        }
    }

    pub fn tone(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => 32,
            Tone::Warning => 33,
            Tone::Bad => 31,
            Tone::Faint => 2,
            Tone::Strong => 1,
        };
        self.code(code, text)
    }

    pub fn member(self, number: usize, text: &str) -> String {
        self.code(MEMBERS[number % MEMBERS.len()], text)
    }

    fn code(self, code: u8, text: &str) -> String {
        if self.is_on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

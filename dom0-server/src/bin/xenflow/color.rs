//! Colors: on a terminal, for whom they help; never in a file or a pipe.

use std::io::IsTerminal;

/// What a word says beside itself. Every word says it without its color, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    Good,
    Doubtful,
    Bad,
}

/// Whether a stream takes colors: a terminal, and neither `NO_COLOR` (no-color.org) nor a terminal that is none.
pub(crate) fn is_wanted(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var(name).unwrap_or_default();
    decide(stream.is_terminal(), &set("NO_COLOR"), &set("TERM"))
}

fn decide(is_terminal: bool, no_color: &str, term: &str) -> bool {
    is_terminal && no_color.is_empty() && term != "dumb"
}

/// The text in a color, if colors are wanted (ECMA-48, SGR).
pub(crate) fn paint(is_wanted: bool, color: Color, text: &str) -> String {
    let number = match color {
        Color::Good => 32,
        Color::Doubtful => 33,
        Color::Bad => 31,
    };
    if is_wanted { format!("\u{1b}[{number}m{text}\u{1b}[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_are_for_terminals_whose_owner_wants_them() {
        assert!(decide(true, "", "xterm-256color") && decide(true, "", ""));
        for (is_terminal, no_color, term) in
            [(false, "", "xterm"), (true, "1", "xterm"), (true, "0", "xterm"), (true, "", "dumb")]
        {
            assert!(!decide(is_terminal, no_color, term), "{is_terminal} {no_color} {term}");
        }
        assert_eq!(paint(true, Color::Bad, "FAIL"), "\u{1b}[31mFAIL\u{1b}[0m");
        assert_eq!(paint(false, Color::Bad, "FAIL"), "FAIL");
    }
}

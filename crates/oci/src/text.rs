//! How values from configurations and images appear in messages: on one line,
//! escaped, and never longer than a reader wants.

use std::fmt;
use std::path::Path;

/// Longest part of a quoted value that is shown, in characters.
const SHOWN: usize = 96;

/// A value in double quotes, escaped and shortened.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        let mut characters = self.0.chars();
        for c in characters.by_ref().take(SHOWN) {
            write!(f, "{}", c.escape_debug())?;
        }
        if characters.next().is_some() {
            f.write_str("…")?;
        }
        f.write_str("\"")
    }
}

/// Shows a string in double quotes, escaped and shortened.
pub(crate) fn quoted(value: &str) -> impl fmt::Display + '_ {
    Quoted(value)
}

/// Shows a path in double quotes, escaped (a path may hold line breaks).
pub(crate) fn quoted_path(value: &Path) -> impl fmt::Display + '_ {
    struct QuotedPath<'a>(&'a Path);
    impl fmt::Display for QuotedPath<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            Quoted(&self.0.to_string_lossy()).fmt(f)
        }
    }
    QuotedPath(value)
}

/// Makes text written by a library fit for a one-line message.
pub(crate) fn one_line(text: &str) -> String {
    const LONGEST: usize = 400;
    let mut line = String::with_capacity(text.len().min(LONGEST));
    for c in text.chars().take(LONGEST) {
        if c.is_control() {
            line.extend(c.escape_debug());
        } else {
            line.push(c);
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_line_break_is_escaped() {
        assert_eq!(quoted("a\nb").to_string(), r#""a\nb""#);
    }

    #[test]
    fn quoted_long_value_is_shortened() {
        let shown = quoted(&"x".repeat(5000)).to_string();
        assert!(shown.len() < 110, "{shown}");
        assert!(shown.ends_with("…\""), "{shown}");
    }

    #[test]
    fn one_line_control_characters_are_escaped() {
        assert_eq!(one_line("a\nb\u{1b}[0m"), "a\\nb\\u{1b}[0m");
    }
}

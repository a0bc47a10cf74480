//! Lines as wide as the terminal.

use std::borrow::Cow;
use std::env;
use std::os::fd::AsFd;

/// Lines are not made narrower than this.
const NARROWEST: usize = 40;

/// Columns of the terminal that this is, if it is one or the environment says so.
pub(super) fn width(of: impl AsFd) -> Option<usize> {
    let said = env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let seen = || terminal_size::terminal_size_of(of).map(|(w, _)| usize::from(w.0));
    said.or_else(seen).filter(|&columns| columns > 0)
}

/// The text with lines that are too long broken between words, below the column where what they say begins. Lines of tables
/// stay as they are.
pub(super) fn wrapped(text: &str, width: Option<usize>) -> Cow<'_, str> {
    let long = |line: &str, width: usize| textwrap::core::display_width(line) > width;
    let Some(width) = width.map(|w| w.max(NARROWEST)) else {
        return Cow::Borrowed(text);
    };
    if !text.lines().any(|line| long(line, width)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (body, end) = match line.strip_suffix('\n') {
            Some(body) => (body, "\n"),
            None => (line, ""),
        };
        // Nor is a diff.
        match long(body, width) && !body.contains('─') && !body.starts_with(['+', '-']) {
            true => out += &broken(body, width),
            false => out += body,
        }
        out += end;
    }
    Cow::Owned(out)
}

fn broken(line: &str, width: usize) -> String {
    let indent = " ".repeat(begins(line).min(width / 3));
    let options = textwrap::Options::new(width)
        .subsequent_indent(&indent)
        .break_words(false)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(line, options)
}

/// The column where what a line says begins: behind its label, which two spaces or more part from it, or two columns in.
fn begins(line: &str) -> usize {
    let margin = line.len() - line.trim_start().len();
    let said = line.trim_start();
    let gap = said.find("  ");
    match gap {
        Some(at) => margin + at + (said[at..].len() - said[at..].trim_start().len()),
        None if margin == 0 => 2,
        None => margin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_break_between_words_below_what_they_say() {
        let text =
            "  model    one\n  engine   TensorRT for RTX 1.7 for sm_89, in a file that is long\n";
        let broken = wrapped(text, Some(40));
        assert_eq!(
            broken,
            "  model    one\n  engine   TensorRT for RTX 1.7 for\n           sm_89, in a file that is long\n"
        );
        assert_eq!(wrapped(text, None), text);
        assert_eq!(wrapped(text, Some(200)), text);
        let warning = "warning: the ranges of activations come from made-up inputs";
        assert_eq!(
            wrapped(warning, Some(40)),
            "warning: the ranges of activations come\n  from made-up inputs"
        );
    }

    #[test]
    fn words_and_rules_of_tables_are_never_broken() {
        let path = format!("  bundle   /{}", "long/".repeat(20));
        assert!(wrapped(&path, Some(40)).contains(&"long/".repeat(20)));
        let rule = "─".repeat(80);
        assert_eq!(wrapped(&rule, Some(40)), rule);
        for width in 0..50 {
            wrapped("  ü   ──\n\n  päth  x\t y", Some(width));
        }
    }
}

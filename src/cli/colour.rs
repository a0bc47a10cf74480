//! Verdicts in colour, where someone looks at them.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal};
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Whether stdout shows colours: a terminal, unless NO_COLOR is set (<https://no-color.org>) or the terminal is a dumb one.
pub(super) fn wanted() -> bool {
    let set = |name: &str| env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = env::var_os("TERM").is_some_and(|t| t == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

/// The text with its verdicts in green, red and yellow.
pub(super) fn paint(text: &str) -> Cow<'_, str> {
    static VERDICT: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"(?m)(?P<good>\bok\b|\bpasses\b)|(?P<bad>\bFAILS?\b|\bfails?\b)|(?P<open>\bunclear\b|\bnot run\b|\b(?i:not proved)\b)").ok()
    });
    let Some(verdict) = VERDICT.as_ref() else {
        return Cow::Borrowed(text);
    };
    verdict.replace_all(text, |found: &Captures<'_>| {
        let colour = match (found.name("good"), found.name("bad")) {
            (Some(_), _) => 32,
            (_, Some(_)) => 31,
            _ => 33,
        };
        format!("\x1b[{colour}m{}\x1b[0m", &found[0])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_painted_and_words_are_not() {
        assert_eq!(paint("a  ok"), "a  \x1b[32mok\x1b[0m");
        assert_eq!(
            paint("FAIL passes\n"),
            "\x1b[31mFAIL\x1b[0m \x1b[32mpasses\x1b[0m\n"
        );
        assert_eq!(paint("engine not run"), "engine \x1b[33mnot run\x1b[0m");
        assert_eq!(paint("tokens passing failure"), "tokens passing failure");
    }
}

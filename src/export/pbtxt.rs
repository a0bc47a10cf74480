//! Protobuf's text format, as far as Triton's `config.pbtxt` needs it.

use std::fmt::Write;

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Message {
    out: String,
    depth: usize,
}

impl Message {
    pub(super) fn comment(&mut self, text: &str) {
        for line in text.lines() {
            self.line(&format!("# {line}"));
        }
    }

    pub(super) fn text(&mut self, field: &str, value: &str) {
        self.line(&format!("{field}: {}", quoted(value)));
    }

    /// A number, or the name of an enum's value.
    pub(super) fn plain(&mut self, field: &str, value: impl std::fmt::Display) {
        self.line(&format!("{field}: {value}"));
    }

    pub(super) fn list<T: std::fmt::Display>(&mut self, field: &str, values: &[T]) {
        let values: Vec<String> = values.iter().map(T::to_string).collect();
        self.line(&format!("{field}: [ {} ]", values.join(", ")));
    }

    pub(super) fn message(&mut self, field: &str, fill: impl FnOnce(&mut Message)) {
        self.line(&format!("{field} {{"));
        self.depth += 1;
        fill(self);
        self.depth -= 1;
        self.line("}");
    }

    pub(super) fn finish(self) -> String {
        self.out
    }

    fn line(&mut self, text: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.out, "{}{text}", "  ".repeat(self.depth));
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_and_messages_are_nested() {
        let mut m = Message::default();
        m.text("name", "a\"b\\");
        m.message("input", |m| {
            m.plain("data_type", "TYPE_INT64");
            m.list("dims", &[-1, 4]);
        });
        let expected =
            "name: \"a\\\"b\\\\\"\ninput {\n  data_type: TYPE_INT64\n  dims: [ -1, 4 ]\n}\n";
        assert_eq!(m.finish(), expected);
    }
}

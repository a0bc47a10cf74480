//! Where and why a text could not be read.

/// Text that is no ONNX text, and what was expected in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// Characters from the start of the line, counted from 1.
    pub column: usize,
    pub message: String,
}

/// A source line longer than this is cut around the column when rendered.
const LINE_WIDTH: usize = 100;

impl ParseError {
    pub(super) fn at(text: &str, offset: usize, message: impl Into<String>) -> ParseError {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        ParseError {
            line: before.bytes().filter(|&b| b == b'\n').count() + 1,
            column: before.get(line_start..).unwrap_or("").chars().count() + 1,
            message: message.into(),
        }
    }

    /// The message with the source line under it and a caret at the column. `text` is what was parsed.
    pub fn render(&self, text: &str) -> String {
        let line = text.split('\n').nth(self.line - 1).unwrap_or("");
        let skip = (self.column - 1).saturating_sub(LINE_WIDTH / 2);
        let shown: String = line
            .chars()
            .skip(skip)
            .take(LINE_WIDTH)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(self.column - 1 - skip);
        format!("{self}\n{margin} |\n{number} | {shown}\n{margin} | {indent}^")
    }
}

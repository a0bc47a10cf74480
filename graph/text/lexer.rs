//! Tokens: the grammar has few, so they are read where the parser wants them.

use super::error::ParseError;
use crate::limits::{Counts, TEXT_NESTING};
use crate::onnx::proto::{NodeProto, TensorProto};
use std::borrow::Cow;

pub(super) type Result<T> = std::result::Result<T, ParseError>;

pub(super) struct Parser<'a> {
    text: &'a str,
    pos: usize,
    depth: usize,
    counts: Counts,
    /// Start of every generated name, chosen when the first is needed.
    fresh_prefix: Option<String>,
    fresh_count: usize,
}

/// A numeric literal as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number<'a> {
    pub text: &'a str,
    pub is_float: bool,
    pub offset: usize,
}

impl<'a> Parser<'a> {
    pub fn new(text: &'a str) -> Parser<'a> {
        Parser {
            text,
            pos: 0,
            depth: 0,
            counts: Counts::default(),
            fresh_prefix: None,
            fresh_count: 0,
        }
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.text.as_bytes().get(offset).copied()
    }

    fn slice(&self, from: usize, to: usize) -> &'a str {
        self.text.get(from..to).unwrap_or("")
    }

    fn skip_space(&mut self) {
        while let Some(b) = self.byte(self.pos) {
            match b {
                b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r' => self.pos += 1,
                b'#' => {
                    let rest = self.slice(self.pos, self.text.len());
                    self.pos += rest.find('\n').unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }

    /// The next byte that is neither space nor comment.
    pub fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.byte(self.pos)
    }

    /// Goes back to an offset that [`offset`](Self::offset) gave.
    pub fn rewind(&mut self, offset: usize) {
        self.pos = offset;
    }

    pub fn at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    /// Where the next token starts.
    pub fn offset(&mut self) -> usize {
        self.skip_space();
        self.pos
    }

    pub fn eat(&mut self, symbol: &str) -> bool {
        self.skip_space();
        let found = self
            .text
            .get(self.pos..)
            .is_some_and(|rest| rest.starts_with(symbol));
        if found {
            self.pos += symbol.len();
        }
        found
    }

    /// Reads `symbol`, or fails saying that it or `or_else` was expected.
    pub fn expect(&mut self, symbol: &str, or_else: &str) -> Result<()> {
        if self.eat(symbol) {
            return Ok(());
        }
        Err(self.unexpected(&match or_else {
            "" => format!("`{symbol}`"),
            other => format!("`{symbol}` or {other}"),
        }))
    }

    /// Reads items separated by commas up to `close`; none are allowed.
    pub fn list(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Parser<'a>) -> Result<()>,
    ) -> Result<()> {
        if self.eat(close) {
            return Ok(());
        }
        loop {
            item(self)?;
            if !self.eat(",") {
                return self.expect(close, "`,`");
            }
        }
    }

    fn word_end(&self, from: usize) -> usize {
        match self.byte(from) {
            Some(b) if b.is_ascii_alphabetic() || b == b'_' => {}
            _ => return from,
        }
        let mut end = from + 1;
        while self
            .byte(end)
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            end += 1;
        }
        end
    }

    /// Peeks at the plain identifier that comes next; empty if there is none.
    pub fn peek_word(&mut self) -> &'a str {
        self.skip_space();
        self.slice(self.pos, self.word_end(self.pos))
    }

    /// Reads a plain identifier.
    pub fn word(&mut self, what: &str) -> Result<&'a str> {
        let word = self.peek_word();
        if word.is_empty() {
            return Err(self.unexpected(what));
        }
        self.pos += word.len();
        Ok(word)
    }

    /// Counts what was read as a `T`, before it is kept: a few letters become hundreds of bytes.
    pub fn made<T>(&mut self) -> Result<()> {
        self.count(0, 0, size_of::<T>())
    }

    /// Counts a node.
    pub fn made_node(&mut self) -> Result<()> {
        self.count(1, 0, size_of::<NodeProto>())
    }

    /// Counts a tensor, without its elements.
    pub fn made_tensor(&mut self) -> Result<()> {
        self.count(0, 1, size_of::<TensorProto>())
    }

    pub fn count(&mut self, nodes: usize, tensors: usize, bytes: usize) -> Result<()> {
        // A list that grows has room for twice as many.
        let crossed = self.counts.add(nodes, tensors, 2 * bytes);
        crossed.map_err(|e| self.fail_at(self.pos, e.to_string()))
    }

    /// Reads a name: a plain identifier or a quoted string.
    pub fn name(&mut self, what: &str) -> Result<Cow<'a, str>> {
        self.made::<String>()?;
        match self.peek() {
            Some(b'"') => self.string(what),
            _ => self.word(what).map(Cow::Borrowed),
        }
    }

    /// Whether a name comes next.
    pub fn next_is_name(&mut self) -> bool {
        self.peek() == Some(b'"') || !self.peek_word().is_empty()
    }

    /// Reads a quoted string. A backslash makes the next character plain; it has no other meaning.
    pub fn string(&mut self, what: &str) -> Result<Cow<'a, str>> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected(what));
        }
        let start = self.pos + 1;
        let mut end = start;
        let mut escaped = false;
        loop {
            match self.byte(end) {
                None => return Err(self.fail_at(self.pos, "this string has no closing quote")),
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    end += 2;
                }
                Some(_) => end += 1,
            }
        }
        self.pos = end + 1;
        let inner = self.slice(start, end);
        if !escaped {
            return Ok(Cow::Borrowed(inner));
        }
        let mut plain = String::with_capacity(inner.len());
        let mut chars = inner.chars();
        while let Some(c) = chars.next() {
            plain.extend(if c == '\\' { chars.next() } else { Some(c) });
        }
        Ok(Cow::Owned(plain))
    }

    /// Whether a byte string `b"…"` comes next.
    pub fn next_is_bytes(&mut self) -> bool {
        self.peek() == Some(b'b') && self.byte(self.pos + 1) == Some(b'"')
    }

    /// Reads a string or a byte string. In the latter `\xNN` is a byte.
    pub fn bytes(&mut self) -> Result<Vec<u8>> {
        if !self.next_is_bytes() {
            return Ok(self.string("a string")?.into_owned().into_bytes());
        }
        let open = self.pos;
        let mut at = open + 2;
        let mut out = Vec::new();
        loop {
            match self.byte(at) {
                None => return Err(self.fail_at(open, "this string has no closing quote")),
                Some(b'"') => break,
                Some(b'\\') if self.byte(at + 1) == Some(b'x') => {
                    let digits = self.slice(at + 2, at + 4);
                    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
                    match u8::from_str_radix(digits, 16) {
                        Ok(byte) if plain && digits.len() == 2 => out.push(byte),
                        _ => return Err(self.fail_at(at, "expected two hex digits after `\\x`")),
                    }
                    at += 4;
                }
                Some(b'\\') => {
                    out.extend(self.byte(at + 1));
                    at += 2;
                }
                Some(b) => {
                    out.push(b);
                    at += 1;
                }
            }
        }
        self.pos = at + 1;
        Ok(out)
    }

    /// Whether the next word is a float without digits: `inf`, `infinity` or `nan` in any case.
    pub fn next_is_float_word(&mut self) -> bool {
        is_float_word(self.peek_word())
    }

    /// Reads a number: `1`, `-2.5`, `1e-7`, `-inf`, `nan`, or `nan(0x7fc00001)` with all the bits of the NaN.
    pub fn number(&mut self, what: &str) -> Result<Number<'a>> {
        self.skip_space();
        let offset = self.pos;
        let digits = offset + usize::from(self.byte(offset) == Some(b'-'));
        let mut end = digits;
        let mut is_float = false;
        if is_float_word(self.slice(digits, self.word_end(digits))) {
            is_float = true;
            end = self.word_end(digits);
            if self.byte(end) == Some(b'(') {
                end = self.nan_bits_end(end + 1)?;
            }
        } else if self.byte(digits).is_some_and(|b| b.is_ascii_digit()) {
            while let Some(b) = self.byte(end) {
                match b {
                    b'0'..=b'9' => {}
                    b'.' if !is_float => is_float = true,
                    _ => break,
                }
                end += 1;
            }
            if matches!(self.byte(end), Some(b'e' | b'E')) {
                is_float = true;
                end += 1;
                end += usize::from(matches!(self.byte(end), Some(b'+' | b'-')));
                while self.byte(end).is_some_and(|b| b.is_ascii_digit()) {
                    end += 1;
                }
            }
        } else {
            return Err(self.unexpected(what));
        }
        self.pos = end;
        Ok(Number {
            text: self.slice(offset, end),
            is_float,
            offset,
        })
    }

    fn nan_bits_end(&self, from: usize) -> Result<usize> {
        let mut end = from;
        while self.byte(end).is_some_and(|b| b.is_ascii_alphanumeric()) {
            end += 1;
        }
        match self.byte(end) {
            Some(b')') => Ok(end + 1),
            _ => Err(self.fail_at(end, "expected the bits of the NaN in hex and `)`")),
        }
    }

    /// Reads a 64-bit signed integer.
    pub fn integer(&mut self, what: &str) -> Result<i64> {
        let number = self.number(what)?;
        number
            .text
            .parse()
            .map_err(|_| match number.is_float {
                true => format!("expected {what}, found the float `{}`", number.text),
                false => format!("`{}` does not fit into 64 bits", number.text),
            })
            .map_err(|message| self.fail_at(number.offset, message))
    }

    /// Runs `inner` one level deeper, or fails where the text nests too deep.
    pub fn nested<T>(&mut self, inner: impl FnOnce(&mut Parser<'a>) -> Result<T>) -> Result<T> {
        if self.depth >= TEXT_NESTING {
            let message = format!("nested deeper than {TEXT_NESTING} levels");
            return Err(self.fail_at(self.pos, message));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// A name that no other value of the text has.
    pub fn fresh_name(&mut self) -> String {
        const STEM: &str = "_lit";
        let text = self.text;
        let prefix = self
            .fresh_prefix
            .get_or_insert_with(|| format!("{STEM}{}", "_".repeat(longest_tail(text, STEM))));
        let name = format!("{prefix}{}", self.fresh_count);
        self.fresh_count += 1;
        name
    }

    /// Lets the numbers of fresh names start again, for a graph or function of its own.
    pub fn restart_fresh_names(&mut self) {
        self.fresh_count = 0;
    }

    pub fn fail_at(&self, offset: usize, message: impl Into<String>) -> ParseError {
        ParseError::at(self.text, offset, message)
    }

    /// An error at the next token: `expected …, found …`.
    pub fn unexpected(&mut self, expected: &str) -> ParseError {
        self.skip_space();
        let word = self.peek_word();
        let rest = self.slice(self.pos, self.text.len());
        let found = match rest.chars().next() {
            None => "the end of the text".to_string(),
            Some(_) if !word.is_empty() => format!("`{}`", shorten(word)),
            Some('"') => "a string".to_string(),
            Some(c) if c.is_ascii_digit() || c == '-' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c));
                format!(
                    "`{}`",
                    shorten(rest.get(..end.unwrap_or(rest.len())).unwrap_or(rest))
                )
            }
            Some(c) => format!("`{}`", c.escape_debug()),
        };
        self.fail_at(self.pos, format!("expected {expected}, found {found}"))
    }
}

fn shorten(word: &str) -> Cow<'_, str> {
    match word.char_indices().nth(40) {
        Some((at, _)) => Cow::Owned(format!("{}…", word.get(..at).unwrap_or(""))),
        None => Cow::Borrowed(word),
    }
}

pub(super) fn is_float_word(word: &str) -> bool {
    ["inf", "nan", "infinity"]
        .iter()
        .any(|known| word.eq_ignore_ascii_case(known))
}

/// A plain identifier, which needs no quotes.
pub(super) fn is_word(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// One more than the longest run of underscores that follows `stem` in the text, so that the stem with that many
/// underscores occurs nowhere; 0 if the stem itself does not. Backslashes count as nothing, as in a string.
fn longest_tail(text: &str, stem: &str) -> usize {
    let plain = match text.contains('\\') {
        true => Cow::Owned(text.replace('\\', "")),
        false => Cow::Borrowed(text),
    };
    plain
        .match_indices(stem)
        .map(|(at, _)| {
            let tail = plain.get(at + stem.len()..).unwrap_or("");
            tail.bytes().take_while(|&b| b == b'_').count() + 1
        })
        .max()
        .unwrap_or(0)
}

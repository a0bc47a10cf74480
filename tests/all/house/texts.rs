//! Texts in the sources.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::visit::{self, Visit};

use super::source;

pub struct Text {
    pub line: usize,
    pub text: String,
    /// In a macro or an attribute, which may put values into it.
    pub formatted: bool,
}

#[derive(Default)]
struct Reader(Vec<Text>);

/// The strings of a file, without documentation and what is compiled for tests alone.
pub fn of(file: &syn::File) -> Vec<Text> {
    let mut reader = Reader::default();
    reader.visit_file(file);
    reader.0
}

impl Reader {
    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Literal(literal) => {
                    if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                        self.add(&text, true);
                    }
                }
                _ => {}
            }
        }
    }

    fn add(&mut self, text: &syn::LitStr, formatted: bool) {
        self.0.push(Text {
            line: text.span().start().line,
            text: text.value(),
            formatted,
        });
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !source::for_tests(source::attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        self.add(text, false);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.tokens(mac.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if !attribute.path().is_ident("doc") {
            self.tokens(attribute.meta.to_token_stream());
        }
    }
}

/// What a text names as options of a command: two dashes and a letter, behind nothing that belongs to a word.
pub fn options(text: &str) -> Vec<&str> {
    let starts = text.match_indices("--").filter(|(at, _)| {
        let before = text[..*at].chars().next_back();
        let after = text[at + 2..].chars().next();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
            && after.is_some_and(|c| c.is_ascii_lowercase())
    });
    let end = |at: usize| {
        let name = text[at + 2..].find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        name.map_or(text.len(), |n| at + 2 + n)
    };
    starts.map(|(at, _)| &text[at..end(at)]).collect()
}

/// Whether a constant stands in braces.
pub fn names_constant(text: &str) -> bool {
    text.split('{').skip(1).any(|rest| {
        let name = rest.split(['}', ':']).next().unwrap_or("");
        let escaped = rest[name.len()..].starts_with("}}");
        let upper = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        rest.len() > name.len()
            && !escaped
            && name.len() > 1
            && name.chars().all(upper)
            && name.starts_with(|c: char| c.is_ascii_uppercase())
    })
}

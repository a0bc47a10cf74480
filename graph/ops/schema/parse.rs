//! The tables' text. Their tests say that every line is understood; one that were not would be left out.

use super::types::Types;
use super::version::{Attribute, Port, Repeats, Schema, Table};
use crate::Attr;

/// The operators of some tables by name, each one's versions in rising order.
pub(super) fn table(texts: &[&'static str]) -> Table {
    let mut table = Table::default();
    let lines = texts.iter().flat_map(|text| text.lines());
    for (name, schema) in lines.filter_map(line) {
        table.entry(name).or_default().push(schema);
    }
    table
}

pub(super) fn line(text: &'static str) -> Option<(&'static str, Schema)> {
    if text.starts_with('#') {
        return None;
    }
    let mut parts = text.split(" | ");
    let mut head = parts.next()?.split(' ');
    let (name, since) = (head.next()?, head.next()?.parse().ok()?);
    let deprecated = head.next() == Some("deprecated");
    let (inputs, outputs) = parts.next()?.split_once("->")?;
    let variables = parts.next().unwrap_or_default().split_whitespace();
    let variables: Vec<_> = variables.map(variable).collect::<Option<_>>()?;
    let ports = |text: &str| -> Option<Vec<Port>> {
        let all = text.split_whitespace();
        all.map(|word| port(word, &variables)).collect()
    };
    let attributes = parts.next().unwrap_or_default().split_whitespace();
    let schema = Schema {
        since,
        deprecated,
        inputs: ports(inputs)?,
        outputs: ports(outputs)?,
        attributes: attributes.map(attribute).collect::<Option<_>>()?,
    };
    Some((name, schema))
}

/// `T=floats,bfloat16`
fn variable(text: &str) -> Option<(&str, Types)> {
    let (name, types) = text.split_once('=')?;
    let mut all = Types::default();
    for name in types.split(',') {
        all = all.union(Types::named(name)?);
    }
    Some((name, all))
}

/// `T`, `T?`, `T*`, `T**` or `=int64`
fn port(text: &str, variables: &[(&str, Types)]) -> Option<Port> {
    let word = text.trim_end_matches(['*', '?']);
    let repeats = match &text[word.len()..] {
        "" | "?" => Repeats::Never,
        "*" => Repeats::Alike,
        "**" => Repeats::Freely,
        _ => return None,
    };
    if let Some(name) = word.strip_prefix('=') {
        return Some(Port {
            types: Types::named(name)?,
            variable: None,
            repeats,
        });
    }
    let at = variables.iter().position(|(name, _)| *name == word)?;
    Some(Port {
        types: variables[at].1,
        variable: Some(u8::try_from(at).ok()?),
        repeats,
    })
}

/// `axis:int=-1`, `to:int!`
fn attribute(text: &'static str) -> Option<Attribute> {
    let (name, rest) = text.split_once(':')?;
    let (kind, default) = match rest.split_once('=') {
        Some((kind, default)) => (kind, Some(default)),
        None => (rest, None),
    };
    let default = match (kind.trim_end_matches('!'), default) {
        (_, None) => None,
        ("int", Some(text)) => Some(Attr::Int(text.parse().ok()?)),
        ("float", Some(text)) => Some(Attr::Float(text.parse().ok()?)),
        ("string", Some(text)) => Some(Attr::from(text)),
        _ => return None,
    };
    Some(Attribute { name, default })
}

//! What ONNX says of operators, by version: types of operands and results, and attributes with their defaults.
//!
//! The tables are text, one line for one version of one operator; `tools/schema/generate.py` writes those of the default
//! domain and of com.microsoft from the wheels `onnx` and `onnxruntime`, and `tests/all/schema.rs` holds them against the
//! wheels. `internal.txt` has the operators of [`INTERNAL_DOMAIN`], by hand. A line is
//!
//! ```text
//! Name since [deprecated] | operands -> results | variable=types … | attribute:kind … |
//! ```
//!
//! - An operand or result is a type variable, or `=` and a type. Those of one variable have one type. Behind it stands `?`
//!   where it may be left out, `*` where it repeats with one type, `**` where it repeats with any types.
//! - Types are joined by commas: ONNX's names, groups of them ([`GROUPS`]), and `other` for all that is no tensor.
//! - Behind an attribute stands `!` where it is required, and `=` with the default where that is a number or a text.

mod parse;
#[cfg(test)]
mod tests;
mod types;
mod version;

use std::sync::LazyLock;

pub use types::Types;
use version::Table;
pub use version::{Port, Schema};

use crate::{Attr, INTERNAL_DOMAIN, Op};

/// All versions of an operator, oldest first; none where nothing is known of it.
pub fn versions(op: Op) -> &'static [Schema] {
    static STANDARD: LazyLock<Table> =
        LazyLock::new(|| parse::table(&[include_str!("onnx.txt"), include_str!("extra.txt")]));
    static MICROSOFT: LazyLock<Table> =
        LazyLock::new(|| parse::table(&[include_str!("microsoft.txt")]));
    static INTERNAL: LazyLock<Table> =
        LazyLock::new(|| parse::table(&[include_str!("internal.txt")]));
    let table = match op.domain() {
        "" => &STANDARD,
        "com.microsoft" => &MICROSOFT,
        INTERNAL_DOMAIN => &INTERNAL,
        _ => return &[],
    };
    table.get(op.name()).map_or(&[], Vec::as_slice)
}

/// The version of an operator that an operator set of the default domain has. Runtimes also know operators in sets that
/// are older than they: those are the operator's first version. Other domains have one version each.
pub fn schema(op: Op, opset: i64) -> Option<&'static Schema> {
    let all = versions(op);
    let newer = all.iter().position(|s| s.since > opset);
    all.get(newer.unwrap_or(all.len()).saturating_sub(1))
}

/// The default of an attribute, if it is a number or a text; `None` where there is none. A
/// version that does not have the attribute yet behaves as the default of the first that has.
pub fn default_attr(op: Op, name: &str, opset: i64) -> Option<&'static Attr> {
    let (old, new): (Vec<_>, Vec<_>) = versions(op).iter().partition(|s| s.since <= opset);
    let mut declared = old.into_iter().rev().chain(new);
    declared.find_map(|s| s.attribute(name))?.default.as_ref()
}

//! One version of an operator.

use rustc_hash::FxHashMap;

use super::types::Types;
use crate::Attr;

/// One version of an operator.
#[derive(Debug)]
pub struct Schema {
    pub(super) since: i64,
    pub(super) deprecated: bool,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
    pub(super) attributes: Vec<Attribute>,
}

impl Schema {
    /// The operator set that brought this version.
    pub fn since(&self) -> i64 {
        self.since
    }

    pub fn is_deprecated(&self) -> bool {
        self.deprecated
    }

    /// The operand at `k`; the last one may repeat.
    pub fn input(&self, k: usize) -> Option<Port> {
        at(&self.inputs, k)
    }

    /// The result at `k`; the last one may repeat.
    pub fn output(&self, k: usize) -> Option<Port> {
        at(&self.outputs, k)
    }

    /// The formal operands, a repeated one once.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The formal results, a repeated one once.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|a| a.name == name)
    }
}

/// A formal operand or result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    pub(super) types: Types,
    pub(super) variable: Option<u8>,
    pub(super) repeats: Repeats,
}

impl Port {
    /// What it may be.
    pub fn types(&self) -> Types {
        self.types
    }

    /// Whether this and another place of the same version have one type wherever both are used.
    pub fn is_like(&self, other: &Port) -> bool {
        self.variable.is_some()
            && self.variable == other.variable
            && self.repeats != Repeats::Freely
            && other.repeats != Repeats::Freely
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repeats {
    Never,
    Alike,
    Freely,
}

#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) name: &'static str,
    pub(super) default: Option<Attr>,
}

pub(super) type Table = FxHashMap<&'static str, Vec<Schema>>;

fn at(ports: &[Port], k: usize) -> Option<Port> {
    let last = ports.last().filter(|p| p.repeats != Repeats::Never);
    ports.get(k).or(last).copied()
}

//! Why a model cannot be converted.

use crate::Op;

/// The newest version of the default operator set that [`convert`] knows.
pub const NEWEST: i64 = 24;

/// The model cannot be converted to the wanted operator set.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpsetError {
    #[error("operator set {to} is not known (the newest known is {NEWEST})")]
    Unknown { to: i64 },
    #[error("the model imports operator set {from}, which does not exist")]
    Invalid { from: i64 },
    #[error(
        "{node}: {op} cannot be converted from operator set {from} to {to}: {op}-{version} is different, and {why}"
    )]
    Node {
        node: String,
        op: Op,
        /// The version that changed the operator.
        version: i64,
        /// The version the model imports.
        from: i64,
        /// The version that was asked for.
        to: i64,
        why: String,
    },
    #[error(
        "the local function {function} calls {op}, which {op}-{version} changed: bodies of functions are not converted \
         (its operator set is {from}, the model's will be {to})"
    )]
    Function {
        function: String,
        op: String,
        version: i64,
        /// The version that the function's body was written for.
        from: i64,
        to: i64,
    },
}

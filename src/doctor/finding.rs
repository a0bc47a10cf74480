//! One finding of an examination.

use serde::Serialize;

/// One thing that kiln can use, or two that do not fit together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub what: String,
    /// What it is for.
    pub enables: String,
    pub found: bool,
    /// Whether this machine is broken without it: kiln wants it everywhere, or what is installed cannot work so.
    pub needed: bool,
    /// Version, path, or what is wrong.
    pub detail: String,
    /// The command that mends it.
    pub mend: Option<String>,
}

//! What several verbs read of their arguments, and of this program.

use std::env;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use kiln_passes::registry::{self, UnknownPass};

use crate::report::Target;

/// The file of a report, by any name that the system allows.
pub(super) fn report_file() -> impl TypedValueParser<Value = Target> {
    OsStringValueParser::new().try_map(|text| Target::at(text.into()))
}

/// This binary, even if another has taken its place since it was started.
pub(super) fn this_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    match running.exists() {
        true => running,
        false => env::current_exe().unwrap_or("kiln".into()),
    }
}

/// The name of a pass, or `all`.
pub(super) fn known_pass(name: &str) -> Result<String, UnknownPass> {
    match name {
        "all" => Ok(name.to_string()),
        name => registry::find(name).map(|pass| pass.name().to_string()),
    }
}

/// Where numbers go as CSV.
#[derive(Clone, Debug)]
pub(super) enum Export {
    Stdout,
    File(PathBuf),
}

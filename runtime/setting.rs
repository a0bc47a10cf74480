//! What a user can set, as messages name it.
//!
//! A library does not know where its user sets things: the command line has options, a program has fields. So messages name a
//! [`Setting`], and whoever shows them says once how settings are spelled ([`spelled_by`]).

use std::fmt;
use std::sync::OnceLock;

/// Something that a user can set. It is written as the user's side spells it; where nobody said how, as `` `dim` ``.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setting(&'static str);

type Spelling = fn(Setting) -> String;

static SPELLING: OnceLock<Spelling> = OnceLock::new();

/// Says how messages of this process spell settings. The first call counts.
pub fn spelled_by(spelling: Spelling) {
    // Whoever comes second finds messages that were already written otherwise.
    let _ = SPELLING.set(spelling);
}

impl Setting {
    /// `no-engine`
    pub fn name(self) -> &'static str {
        self.0
    }

    /// As an option of a command, for what is about commands whoever shows it: a report.
    pub fn option(self) -> String {
        match self {
            OUTPUT => "-o".into(),
            other => format!("--{}", other.name()),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SPELLING.get() {
            Some(spelling) => f.write_str(&spelling(*self)),
            None => write!(f, "`{}`", self.0),
        }
    }
}

macro_rules! settings {
    ($($constant:ident = $name:literal;)*) => {
        $(pub const $constant: Setting = Setting($name);)*

        /// All that messages name.
        pub const ALL: &[Setting] = &[$($constant),*];
    };
}

settings! {
    BF16 = "bf16";
    BISECT = "bisect";
    CALIBRATE = "calibrate";
    DEVICE = "device";
    GENERATE = "generate";
    DIM = "dim";
    DROP_INPUTS = "drop-inputs";
    ENCODER = "encoder";
    ENGINE = "engine";
    EXPLAIN = "explain";
    FEATURES = "features";
    FIRST = "first";
    FORCE = "force";
    FP16 = "fp16";
    FP8 = "fp8";
    FROM = "from";
    GRID = "grid";
    HALF_IO = "half-io";
    INPUT = "input";
    INPUTS = "inputs";
    INT4 = "int4";
    INT8 = "int8";
    JSON = "json";
    JUDGE = "judge";
    KEEP = "keep";
    KEEP_OP = "keep-op";
    LATENCY = "latency";
    MAX_LATENCY_RATIO = "max-latency-ratio";
    MAX_LENGTH = "max-length";
    NAME = "name";
    NO_CHECK = "no-check";
    NO_CLOBBER = "no-clobber";
    NO_ENGINE = "no-engine";
    NO_LATENCY = "no-latency";
    NO_MEASURE = "no-measure";
    NO_SEARCH = "no-search";
    ORT_LIB = "ort-lib";
    OUTPUT = "output";
    OUTPUT_NAME = "output-name";
    POOLING = "pooling";
    PROOF = "proof";
    RECORD = "record";
    REFERENCE = "reference";
    RENAME = "rename";
    SHAPE = "shape";
    STOP = "stop";
    TARGET = "target";
    TOKENIZER = "tokenizer";
    TOLERANCE = "tolerance";
    VERBOSE = "verbose";
    WEIGHT_STRIPPED = "weight-stripped";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_its_name_where_nobody_spells_it() {
        assert_eq!(format!("give {DIM} batch=1"), "give `dim` batch=1");
    }
}

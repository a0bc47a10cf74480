//! What a proof ends with.

use super::CompileError;
use crate::bench::BenchReport;
use crate::engine_parity::EngineParity;
use crate::judge::Judgement;
use crate::options::Options;
use crate::parity;
use crate::prove::{self, Proof};
use crate::setting::KEEP;

/// The result differs from the original, and what can be done about it.
pub(crate) fn not_the_same(
    options: &Options,
    parity: parity::Report,
    engine: Option<String>,
) -> CompileError {
    CompileError::NotTheSame {
        model: options.model.clone(),
        engine,
        parity: Box::new(parity),
        advice: match (options.precision.linear.format(), options.precision.half()) {
            (Some(_), _) => {
                format!(
                    "Layers can be kept from quantization with {KEEP}; `kiln bisect` finds the pass"
                )
            }
            (None, Some(_)) => {
                format!("Nodes can be kept in FP32 with {KEEP}; `kiln bisect` finds the pass")
            }
            (None, None) => "`kiln bisect` finds the pass".into(),
        },
    }
}

/// What was proved and timed of a result.
pub(super) struct Proved {
    pub proof: Option<Proof>,
    pub parity: Option<parity::Report>,
    pub generation: Option<crate::generate::proof::Proof>,
    pub fallback: Option<String>,
    pub engine_parity: EngineParity,
    pub judge: Option<Judgement>,
    pub latency: Option<BenchReport>,
    pub latency_not_run: Option<String>,
    /// In place of `proof`.
    pub in_pieces: Option<InPieces>,
}

/// What ran the models piece by piece.
pub(super) struct InPieces {
    pub alone: prove::Alone,
    /// What it shows, and what it does not.
    pub shows: String,
}

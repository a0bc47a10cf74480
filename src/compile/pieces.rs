//! The proof of a model whose weights do not fit into memory: piece by piece, as `check` proves on request.

use kiln_graph::{Model, infer, onnx};

use super::CompileError;
use super::job::Job;
use super::proved::{InPieces, Proved, not_the_same};
use crate::bundle;
use crate::check::pieces;
use crate::options::{Extent, Options};

use crate::pipeline::{Rewritten, proved_as_optimized, tolerance};
use crate::prove::{self, Alone};
use crate::runtime::memory;
use crate::setting::{HALF_IO, INPUTS, JUDGE};
use crate::summary::bytes;
use crate::talk::Talk;

/// Why the proof runs piece by piece; `None` where the models run whole.
pub(super) fn needed(options: &Options, original: &Model, talk: &dyn Talk) -> Option<String> {
    let why = match (options.check, options.proof) {
        (false, _) | (_, Extent::Full) => return None,
        (true, Extent::Pieces) => "as it was asked for".to_string(),
        (true, Extent::Quick) => too_large(original.constant_bytes(), memory::free())?,
    };
    // What takes the outputs of the whole model.
    let whole = [
        (INPUTS, options.inputs.is_some()),
        (JUDGE, options.judge.is_some()),
        (HALF_IO, options.half_io),
    ];
    let whole = whole.iter().find(|(_, asked)| *asked);
    if let Some((setting, _)) = whole {
        talk.warn(&format!(
            "the models run whole because of {setting}, and not piece by piece {why}"
        ));
        return None;
    }
    Some(why)
}

/// Each run of a model whose weights do not stay in memory reads them from the disk again. Original and result run one after the other.
fn too_large(weights: usize, free: Option<u64>) -> Option<String> {
    let free = usize::try_from(free?).ok()?;
    (weights > free).then(|| {
        let (weights, free) = (bytes(weights), bytes(free));
        format!("as its weights take {weights}, and {free} of memory are free")
    })
}

/// Compares the result in its file with the original, at the smallest and the typical sizes.
///
/// # Errors
/// When a piece does not run, or one differs.
pub(super) fn prove(
    job: &Job<'_>,
    rewritten: &Rewritten,
    why: &str,
    proved: &mut Proved,
    talk: &dyn Talk,
) -> Result<(), CompileError> {
    let (options, prepared) = (job.options, job.prepared);
    let optimized = proved_as_optimized(options, &prepared.targets);
    let alone = Alone::new(prepared.device, options.ort_lib.as_deref(), optimized)?;
    let path = job.partial.file(bundle::MODEL);
    let mut candidate = onnx::read(path).map_err(prove::Error::from)?;
    let mut original = prepared.start().clone();
    infer::annotate(&mut candidate.graph);
    infer::annotate(&mut original.graph);
    let mut points = prepared.shapes.points();
    points.truncate(2);
    let cases = pieces::cases(&original.graph, &prepared.shapes, &points, options.seed)?;
    let tolerance = tolerance(options, Some(rewritten))?;
    let (report, pieces) =
        pieces::compare(&alone, &original, &candidate, &cases, &tolerance, talk)?;
    if report.failed() {
        return Err(not_the_same(options, report, None));
    }
    let names: Vec<&str> = points.iter().map(|(name, _)| *name).collect();
    proved.parity = Some(report);
    proved.in_pieces = Some(InPieces {
        shows: format!(
            "the models ran in {} pieces, {why}, each on what the original's pieces before it gave, at the {} sizes; how errors add \
             up from piece to piece was not seen",
            pieces.len(),
            names.join(" and ")
        ),
        alone,
    });
    proved.latency_not_run = Some("the models ran piece by piece".into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_into_memory_is_too_large() {
        let gigabytes = |n: usize| n * 1_000_000_000;
        let free = Some(gigabytes(16) as u64);
        assert_eq!(too_large(gigabytes(2), free), None);
        assert_eq!(too_large(gigabytes(27), None), None);
        let why = too_large(gigabytes(27), free).unwrap();
        assert!(why.contains("27.0 GB") && why.contains("16.0 GB"), "{why}");
    }
}

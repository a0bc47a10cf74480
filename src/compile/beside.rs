//! A bundle for two targets: an engine, and a model for ONNX Runtime's CUDA provider beside it.

use kiln_graph::onnx;

use super::CompileError;
use crate::bundle::{self, Over, Partial};
use crate::manifest::{Also, Manifest};
use crate::options::{Gates, Options};
use crate::pipeline;
use crate::recipe::Targets as Named;
use crate::talk::Talk;
use crate::targets::Targets;

/// Compiles for one target, into a folder that is no bundle yet.
type One<'a> = dyn Fn(&Options, &dyn Talk) -> Result<(Partial, Manifest), CompileError> + 'a;

/// Compiles for the engine, then for the provider. Either is proved against the original by itself.
///
/// # Errors
/// As a compilation for one of them; nothing is left of the other then.
pub(super) fn written(
    options: &Options,
    parts: [Targets; 2],
    talk: &dyn Talk,
    one: &One<'_>,
) -> Result<(Partial, Manifest), CompileError> {
    (parts.iter()).try_for_each(|part| pipeline::fit(options, part))?;
    let names = (parts.iter().rev()).flat_map(|part| {
        let names = part.to_string();
        names.split(',').map(str::to_string).collect::<Vec<_>>()
    });
    let names = Named::Several(names.collect());
    let [engines, cuda] = parts;
    let with = |targets| Options {
        targets: Some(targets),
        ..options.clone()
    };
    let (partial, mut manifest) = one(&with(engines), talk)?;
    let provider = Options {
        output: Some(partial.file(bundle::CUDA_MODEL).with_extension("kiln")),
        over: Over::Nothing,
        // There is no engine to gate.
        gates: Gates {
            precision: None,
            engine_parity: false,
            in_place: false,
            ..options.gates
        },
        engine: false,
        ..with(cuda)
    };
    talk.note("now for ONNX Runtime's CUDA provider");
    let (second, mut found) = one(&provider, talk)?;
    let result = onnx::read(second.file(bundle::MODEL))?;
    let to = partial.file(bundle::CUDA_MODEL);
    // Its name is another one, and so is that of its external data.
    onnx::write(&result, &to, &onnx::WriteOptions::default())?;
    drop(result);
    drop(second);
    for m in [&mut manifest, &mut found] {
        m.recipe.target = Some(names.clone());
    }
    manifest.also.push(Also {
        file: bundle::CUDA_MODEL.into(),
        manifest: found,
    });
    Ok((partial, manifest))
}

//! What other verbs do of generations: `kiln compile generation.json`, `kiln check --generate`.

use std::path::{Path, PathBuf};

use super::progress::Terminal;
use super::{Failure, Globals, NOT_PROVED, print_json, table::table};
use crate::bundle::{self, Partial};
use crate::compile;
use crate::generate::proof::{self, Request};
use crate::generate::{GenerateError, Given, Gpu, Options, Recorded, Roles, middle, record};
use crate::parity::{self, Tolerance};
use crate::precision::{Linear, Precision};
use crate::report::{self, generation};
use crate::runtime::scratch::Temporary;
use crate::targets::Targets;

/// What of `kiln check` bears on a generation.
#[derive(Debug)]
pub(super) struct Check {
    pub candidate: PathBuf,
    pub reference: Option<PathBuf>,
    pub steps: usize,
    pub tolerance: Option<String>,
    pub limits: Vec<String>,
    pub seed: u64,
    /// A real source or prompt.
    pub inputs: Option<PathBuf>,
    pub reports: Vec<report::Target>,
    pub json: bool,
}

pub(super) fn check(globals: &Globals, asked: Check) -> Result<u8, Failure> {
    let Some(reference) = asked.reference else {
        return Err(Failure::usage(anyhow::anyhow!(
            "--generate takes the original: --reference MODEL.onnx"
        )));
    };
    let mut tolerance = match &asked.tolerance {
        Some(name) => Tolerance::named(name).map_err(Failure::usage)?,
        None => proof::tolerance_of(&asked.candidate)?,
    };
    for limit in &asked.limits {
        tolerance = tolerance.with_override(limit).map_err(Failure::usage)?;
    }
    let given = given(asked.inputs.as_deref(), &reference)?;
    let found = proof::prove(&Request {
        original: &reference,
        result: &asked.candidate,
        steps: asked.steps,
        prompt: given.prompt,
        source: given.source,
        tolerance,
        seed: asked.seed,
        options: Options {
            ort_lib: globals.ort_lib.clone(),
            plain: true,
            gpu: Gpu {
                libraries: globals.trt_lib.clone(),
                ..Gpu::default()
            },
            ..Options::default()
        },
    })?;
    for target in &asked.reports {
        target.write(&generation::Proved(&found))?;
    }
    match asked.json {
        true => print_json(&found)?,
        false => {
            let (header, rows) = generation::claims(&found);
            globals.show(&table(&header, &rows))?;
        }
    }
    match found.failed() {
        true => {
            globals.fail(generation::failures(&found));
            Ok(1)
        }
        false => Ok(0),
    }
}

fn given(inputs: Option<&Path>, original: &Path) -> Result<Given, GenerateError> {
    match inputs {
        Some(path) => Given::read(path, &Roles::find(original)?),
        None => Ok(Given::default()),
    }
}

/// Compiles each model of a `generation.json` into a folder of its role, and writes the file beside them.
pub(super) fn by_roles(
    globals: &Globals,
    roles: Roles,
    options: &compile::Options,
) -> Result<u8, Failure> {
    let output = (options.output.clone()).unwrap_or_else(|| bundle::default_path(&options.model));
    let partial = Partial::new(&output, options.over).map_err(GenerateError::Bundle)?;
    let mut made = Roles {
        tokenizer: None,
        ..roles.clone()
    };
    let mut code = 0;
    let precision = precision(globals, options);
    let options = &with_ranges(globals, options, precision);
    let folder = Temporary::new()?;
    let (data, inputs) = (
        recorded(
            &roles,
            options,
            options.calibration.data.as_deref(),
            &folder,
            "data",
        )?,
        recorded(
            &roles,
            options,
            options.inputs.as_deref(),
            &folder,
            "inputs",
        )?,
    );
    for (role, path) in roles.models() {
        let mut calibration = options.calibration.clone();
        let inputs = match role {
            // Its caches are as the compilation makes them, so that it records what it reads itself.
            "decoder" => {
                calibration.generation = Some(roles.clone());
                options.inputs.clone()
            }
            _ => {
                calibration.data = data.as_ref().and_then(|d| folder_of(d, role));
                let inputs = inputs.as_ref().and_then(|d| folder_of(d, role));
                inputs.and_then(|folder| middle(&folder))
            }
        };
        let folder = PathBuf::from(role.replace(' ', "-"));
        let one = compile::Options {
            model: path.to_path_buf(),
            output: Some(partial.file(&folder.to_string_lossy())),
            precision,
            calibration,
            inputs,
            // The others hold no cache.
            max_length: options.max_length.filter(|_| role == "decoder"),
            ..options.clone()
        };
        globals.say(format!("{role}: {}", path.display()));
        let terminal = Terminal::new(globals.quiet);
        let done = compile::compile(&one, &terminal);
        terminal.clear();
        let manifest = done?.manifest;
        if let Some(parity) = &manifest.parity {
            globals.say(format!("  parity   {}", parity::verdict(parity)));
            if !parity.pass() {
                code = NOT_PROVED;
            }
        }
        match role {
            "encoder" => made.encoder = Some(folder),
            "decoder" => made.decoder = folder,
            _ => made.first = Some(folder),
        }
    }
    if let Some(tokenizer) = &roles.tokenizer {
        let name = PathBuf::from("tokenizer.json");
        std::fs::copy(tokenizer, partial.file("tokenizer.json"))?;
        made.tokenizer = Some(name);
    }
    made.write(&partial.file(""))?;
    if options.check && options.fixed.is_empty() && !options.half_io {
        together(globals, options, &partial.file(""))?;
    }
    let (output, _) = partial.finish().map_err(GenerateError::Bundle)?;
    globals.say(format!("bundle   {}", output.display()));
    Ok(code)
}

/// What each model reads in generations on sources of a path.
fn recorded(
    roles: &Roles,
    options: &compile::Options,
    path: Option<&Path>,
    folder: &Temporary,
    name: &str,
) -> Result<Option<Recorded>, Failure> {
    let Some(path) = path else {
        return Ok(None);
    };
    let calibration = &options.calibration;
    let tokenizer = calibration.tokenizer.as_deref();
    let given = Given::all(path, tokenizer, roles, calibration.samples)?;
    let how = Options {
        ort_lib: options.ort_lib.clone(),
        ..Options::default()
    };
    let to = folder.path().join(name);
    Ok(Some(record(roles, &given, calibration.samples, &to, &how)?))
}

fn folder_of(recorded: &Recorded, role: &str) -> Option<PathBuf> {
    match role {
        "encoder" => recorded.encoder.clone(),
        _ => recorded.first.clone(),
    }
}

/// Engines take one range for all runs: of the inputs for the proof, where there is no data.
fn with_ranges(
    globals: &Globals,
    options: &compile::Options,
    precision: Precision,
) -> compile::Options {
    let mut options = options.clone();
    let fixed = matches!(precision.linear, Linear::Int8 | Linear::Fp8);
    if fixed && options.calibration.data.is_none() && options.inputs.is_some() {
        globals.say("ranges come from the inputs of the proof: give more sources with --calibrate");
        options.calibration.data.clone_from(&options.inputs);
    }
    options
}

/// Ranges of activations from inputs that are made say nothing of a decoder behind an encoder, whose states and caches are those of real
/// sources: without data, the CPU takes the ranges of each run.
fn precision(globals: &Globals, options: &compile::Options) -> Precision {
    let made = options.calibration.data.is_none();
    let asked = options.precision;
    match (&options.targets, asked.linear) {
        (Some(Targets::Cpu), Linear::Int8) if made => {
            globals.say("INT8 takes the ranges of each run (dynamic): there is no data of the models' own to calibrate on");
            Precision {
                linear: Linear::Int8Dynamic,
                ..asked
            }
        }
        _ => asked,
    }
}

/// Tokens that a compilation generates for the proof from a source that is made.
const STEPS: usize = 8;
/// The most of a real source, which has an end.
const REAL_STEPS: usize = 64;

/// The proof that the models generate together what the originals do.
fn together(globals: &Globals, options: &compile::Options, output: &Path) -> Result<(), Failure> {
    let given = given(options.inputs.as_deref(), &options.model)?;
    let found = proof::prove(&Request {
        original: &options.model,
        result: output,
        steps: match options.inputs {
            Some(_) => REAL_STEPS,
            None => STEPS,
        },
        prompt: given.prompt,
        source: given.source,
        tolerance: proof::tolerance_of(output)?,
        seed: options.seed,
        options: Options {
            ort_lib: options.ort_lib.clone(),
            plain: true,
            ..Options::default()
        },
    })?;
    let (header, rows) = generation::claims(&found);
    globals.show(&table(&header, &rows))?;
    match found.failed() {
        true => Err(Failure {
            code: 1,
            error: anyhow::anyhow!(
                "what the models generate together is not what the originals do, so no bundle is written: {}",
                generation::failures(&found)
            ),
        }),
        false => Ok(()),
    }
}

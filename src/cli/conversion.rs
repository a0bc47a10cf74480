//! What is made of a model: the arguments that every command which rewrites one has.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;
use kiln_graph::Op;

use super::Failure;
use crate::bundle;
use crate::fixed::InputValue;
use crate::parity::Preset;
use crate::precision::{Floats, Linear};
use crate::recipe::{self, Dialect, Gates, Given, Parity, Precision, Recipe, Sizes, operator};
use crate::shapes::{DimSpec, ShapeSpec, SpecError};
use crate::targets::Targets;

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("half").args(["fp16", "bf16"])))]
pub(super) struct Conversion {
    /// The model: ONNX, with external data beside it if it has some. Of a bundle it is the original, and the recipe that made
    /// the bundle.
    #[arg(required_unless_present = "recipe")]
    model: Option<PathBuf>,
    /// A recipe (.yaml), or the manifest.json of a bundle that is to be made again. Options lie over it.
    #[arg(short = 'c', long = "recipe", value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// sm_75, sm_80, sm_86, sm_89, sm_120, sm_121 (several share one engine), local (this machine's GPU), or cpu
    /// [default: this machine's GPU, else sm_86,sm_89,sm_120].
    #[arg(long, value_name = "T[,T…]")]
    target: Option<Targets>,
    /// Operators to write: the target's own (ONNX Runtime's com.microsoft, TensorRT's operator set 23), or standard for
    /// plain ONNX that any runtime takes.
    #[arg(long, value_name = "DIALECT [default: target]", value_parser = ["target", "standard"])]
    dialect: Option<String>,
    /// Convert to FP16, with FP32 kept where it must be.
    #[arg(long)]
    fp16: bool,
    /// Convert to BF16, with FP32 kept where it must be (sm_80 and newer).
    #[arg(long, conflicts_with = "fp16")]
    bf16: bool,
    /// Multiply in 8-bit integers in linear layers and convolutions, with ranges of activations from calibration
    /// (static), or of each run (dynamic, linear layers only, ONNX Runtime only).
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "static",
          value_parser = ["static", "dynamic"], conflicts_with_all = ["int4", "fp8"])]
    int8: Option<String>,
    /// Multiply in FP8 (E4M3) in linear layers (sm_89 and newer).
    #[arg(long, conflicts_with = "int4")]
    fp8: bool,
    /// Real inputs, to measure the ranges of activations: .npz, .npy, a folder of them, or lines of text with --tokenizer.
    /// Samples behind the last that is measured prove the result.
    #[arg(long, value_name = "DATA")]
    calibrate: Option<PathBuf>,
    /// The model's tokenizer.json, for --calibrate with text.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The most samples to measure on [default: 128].
    #[arg(long, value_name = "N")]
    calibration_samples: Option<usize>,
    /// Keep what was measured in this file, for the same model and data.
    #[arg(long, value_name = "FILE")]
    calibration_cache: Option<PathBuf>,
    /// Store the weights of linear layers in 4 bits, with a scale for each block of rows (a power of two from 16 on)
    /// [default: 32, or with --calibrate 16 where the result is out of tolerance otherwise]. With --calibrate the errors of
    /// weights make up for each other on the data; without it, layers that come out of tolerance keep their precision, of a
    /// small model often half of them.
    #[arg(long, value_name = "BLOCK", num_args = 0..=1, require_equals = true)]
    int4: Option<Option<usize>>,
    /// Convert the graph's inputs and outputs too.
    #[arg(long, visible_aliases = ["fp16-io", "bf16-io"])]
    half_io: bool,
    /// Sizes of a symbolic dimension: batch=1:8:32 (min:opt:max), past=0:64:512 or seq=128.
    #[arg(long, value_name = "NAME=SIZES")]
    dim: Vec<DimSpec>,
    /// Shape of an input: NAME=1x128, or NAME=1x16:8x128:32x512 (min:opt:max).
    #[arg(long, value_name = "NAME=SHAPE", value_parser = shape)]
    shape: Vec<(String, String)>,
    /// Real inputs for the proof, as .npz, beside those that are made from the graph; without --calibrate they also give the
    /// ranges of FP16 and BF16.
    #[arg(long, value_name = "DATA.npz")]
    inputs: Option<PathBuf>,
    /// Fix an input: sr=16000, speed=1.0, flag=true, widths=320,640, name=text. The value becomes a constant, of which the
    /// rest folds, and the input is kept but read no more. Can be given several times.
    #[arg(long, value_name = "NAME=VALUE")]
    input: Vec<InputValue>,
    /// Leave out the inputs that --input fixes: the result and the engine are without them.
    #[arg(long)]
    drop_inputs: bool,
    /// Passes to run: default,-fuse-gelu or fold-constants,fuse-gelu.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    passes: Option<String>,
    /// Keep the precision of nodes whose names match.
    #[arg(long, value_name = "REGEX")]
    keep: Option<regex::Regex>,
    /// Keep the precision of all nodes of these operators: Softmax, com.microsoft:Attention; can be given several times.
    #[arg(long, value_name = "OP[,OP…]", value_delimiter = ',', value_parser = operator)]
    keep_op: Vec<Op>,
    /// How close outputs must be [default: that of the precision].
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Preset::names()))]
    tolerance: Option<String>,
    /// Seed of the inputs that are made [default: 1].
    #[arg(long)]
    seed: Option<u64>,
}

impl Conversion {
    /// The model, if it is a bundle.
    pub(super) fn bundle(&self) -> Option<PathBuf> {
        let model = self.model.clone()?;
        model.join(bundle::MANIFEST).is_file().then_some(model)
    }

    /// What was given on the command line, over the recipe that it names.
    ///
    /// # Errors
    /// When the recipe cannot be read, or the original of a bundle is not where it was.
    pub(super) fn recipe(mut self, more: Recipe) -> Result<Recipe, Failure> {
        let base = match (&self.recipe, self.bundle()) {
            (Some(_), Some(bundle)) => {
                return Err(Failure::usage(anyhow!(
                    "{} is a bundle, and its recipe is in it: give the bundle or -c, not both",
                    bundle.display()
                )));
            }
            (Some(path), None) => recipe::read(path).map_err(Failure::usage)?,
            (None, Some(bundle)) => {
                self.model = None;
                again(&bundle)?
            }
            (None, None) => Recipe::default(),
        };
        let over = more.over(&self.given()).map_err(Failure::usage)?;
        over.over(&base).map_err(Failure::usage)
    }

    fn given(self) -> Recipe {
        let (int8, fp8, int4) = (self.int8.as_deref(), self.fp8, self.int4);
        Recipe {
            model: self.model,
            target: self.target.map(|t| recipe::Targets::One(t.to_string())),
            dialect: self.dialect.map(|dialect| match dialect.as_str() {
                "standard" => Dialect::Standard,
                _ => Dialect::Target,
            }),
            precision: Precision {
                floats: match (self.fp16, self.bf16) {
                    (true, _) => Some(Floats::Fp16),
                    (_, true) => Some(Floats::Bf16),
                    _ => None,
                },
                linear: match (int8, fp8, int4) {
                    (Some("dynamic"), ..) => Some(Linear::Int8Dynamic),
                    (Some(_), ..) => Some(Linear::Int8),
                    (_, true, _) => Some(Linear::Fp8),
                    (.., Some(_)) => Some(Linear::Int4),
                    _ => None,
                },
                int4_block: int4.flatten(),
                half_io: self.half_io.then_some(true),
                keep: self.keep.map(|k| k.to_string()),
                keep_ops: self.keep_op.iter().map(operator_text).collect(),
                ..Precision::default()
            },
            calibration: recipe::Calibration {
                data: self.calibrate,
                tokenizer: self.tokenizer,
                cache: self.calibration_cache,
                samples: self.calibration_samples,
            },
            dims: (self.dim.into_iter())
                .map(|d| (d.name, Sizes::Range(d.range.to_string())))
                .collect(),
            shapes: self.shape.into_iter().collect(),
            inputs: self.inputs,
            input_values: (self.input.into_iter())
                .map(|i| (i.name, Given::Text(i.value)))
                .collect(),
            drop_inputs: self.drop_inputs.then_some(true),
            seed: self.seed,
            passes: self.passes,
            gates: Gates {
                parity: Parity {
                    tolerance: self.tolerance,
                    ..Parity::default()
                },
                ..Gates::default()
            },
            ..Recipe::default()
        }
    }
}

/// The recipe of a bundle, whose original is still where it was.
fn again(bundle: &Path) -> Result<Recipe, Failure> {
    let recipe = recipe::read(&bundle.join(bundle::MANIFEST)).map_err(Failure::usage)?;
    match &recipe.model {
        Some(original) if !original.exists() => Err(Failure::model(anyhow!(
            "{} was made from {}, which is not there: give the original",
            bundle.display(),
            original.display()
        ))),
        _ => Ok(recipe),
    }
}

/// As [`operator`] reads it.
fn operator_text(op: &Op) -> String {
    match op.domain() {
        "" => op.name().to_string(),
        domain => format!("{domain}:{}", op.name()),
    }
}

/// A shape as it was written, if it is one.
fn shape(text: &str) -> Result<(String, String), SpecError> {
    text.parse::<ShapeSpec>()?;
    let (name, shape) = text.rsplit_once('=').unwrap_or((text, ""));
    Ok((name.to_string(), shape.to_string()))
}

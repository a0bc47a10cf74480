//! What is made of a model: the arguments that every command which rewrites one has.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;
use kiln_graph::Op;

use super::{Failure, help};
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
    /// The model: ONNX, or a bundle to make again.
    ///
    /// External data is looked for beside an ONNX file. Of a bundle, the original is compiled by the bundle's recipe, with the
    /// options of the command line over it.
    #[arg(required_unless_present = "recipe")]
    model: Option<PathBuf>,
    /// A recipe (.yaml), or the manifest.json of a bundle.
    ///
    /// Options of the command line come before those of the recipe.
    #[arg(short = 'c', long = "recipe", value_name = "RECIPE", help_heading = help::INPUT)]
    recipe: Option<PathBuf>,
    /// Fix an input to a value: sr=16000, flag=true, name=text.
    ///
    /// The value becomes a constant, and what depends on it alone is folded. The input stays, unread, unless --drop-inputs is
    /// given. Forms: sr=16000, speed=1.0, flag=true, widths=320,640, name=text. Can be given several times.
    #[arg(long, value_name = "NAME=VALUE", help_heading = help::INPUT)]
    input: Vec<InputValue>,
    /// Leave out the inputs that --input fixes.
    ///
    /// The optimized model and the engine do not have them any more.
    #[arg(long, help_heading = help::INPUT)]
    drop_inputs: bool,
    /// GPUs to build for: sm_75, sm_80, sm_86, sm_89, sm_120, sm_121, local; cuda or cpu for ONNX Runtime.
    ///
    /// Several capabilities, such as sm_86,sm_89, share one engine. local is this machine's GPU; cuda and cpu build no engine
    /// [default: this machine's GPU, else sm_86,sm_89,sm_120].
    #[arg(long, value_name = "T[,T…]", env = "KILN_TARGET", help_heading = help::TARGET)]
    target: Option<Targets>,
    /// The target is the environment's, not the command line's.
    #[arg(skip)]
    pub(super) ambient_target: bool,
    /// Convert to FP16, with FP32 kept where it must be.
    #[arg(long, help_heading = help::TARGET)]
    fp16: bool,
    /// Convert to BF16, with FP32 kept where it must be (sm_80 and newer).
    #[arg(long, conflicts_with = "fp16", help_heading = help::TARGET)]
    bf16: bool,
    /// Multiply in 8-bit integers in linear layers and convolutions.
    ///
    /// static takes the ranges of activations from calibration; dynamic takes those of each run (linear layers only, target
    /// cpu only).
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "static",
          value_parser = ["static", "dynamic"], conflicts_with_all = ["int4", "fp8"], help_heading = help::TARGET)]
    int8: Option<String>,
    /// Multiply in FP8 (E4M3) in linear layers (sm_89 and newer).
    #[arg(long, conflicts_with = "int4", help_heading = help::TARGET)]
    fp8: bool,
    /// Store the weights of linear layers in 4 bits, with a scale for each block of rows.
    ///
    /// BLOCK is a power of two from 16 on [default: 32, or with --calibrate 16 where the result is out of tolerance
    /// otherwise]. With --calibrate, weights are rounded so that their errors make up for each other on the data. Without it,
    /// layers that come out of tolerance keep their precision: of a small model often half of them.
    #[arg(long, value_name = "BLOCK", num_args = 0..=1, require_equals = true, help_heading = help::TARGET)]
    int4: Option<Option<usize>>,
    /// Convert the graph's inputs and outputs too.
    #[arg(long, visible_aliases = ["fp16-io", "bf16-io"], help_heading = help::TARGET)]
    half_io: bool,
    /// Keep the precision of nodes whose names match.
    #[arg(long, value_name = "REGEX", help_heading = help::TARGET)]
    keep: Option<regex::Regex>,
    /// Keep the precision of all nodes of these operators.
    ///
    /// Such as Softmax or com.microsoft:Attention. Can be given several times.
    #[arg(long, value_name = "OP[,OP…]", value_delimiter = ',', value_parser = operator, help_heading = help::TARGET)]
    keep_op: Vec<Op>,
    /// Operators to write: the target's own, or standard ONNX.
    ///
    /// target: ONNX Runtime's com.microsoft, or TensorRT's operator set 23. standard: plain ONNX that any runtime takes.
    #[arg(long, value_name = "DIALECT [default: target]", value_parser = ["target", "standard"], help_heading = help::TARGET)]
    dialect: Option<String>,
    /// Sizes of a symbolic dimension: batch=1:8:32 or seq=128.
    ///
    /// NAME=MIN:OPT:MAX, or NAME=N for one size; past=0:64:512 lets a cache be empty. Names are those that `kiln inspect` shows.
    /// Can be given several times.
    #[arg(long, value_name = "NAME=SIZES", help_heading = help::SIZES)]
    dim: Vec<DimSpec>,
    /// Shape of an input: NAME=1x128, or NAME=1x16:8x128:32x512.
    ///
    /// The three shapes are the smallest, the typical and the largest. Can be given several times.
    #[arg(long, value_name = "NAME=SHAPE", value_parser = shape, help_heading = help::SIZES)]
    shape: Vec<(String, String)>,
    /// Tokens that the caches of an engine's decoder hold [default: as many as the model has positions for, or 2048].
    ///
    /// Caches that grow become buffers of this length, which new keys and values are written into.
    #[arg(long, value_name = "N", conflicts_with = "growing_caches", help_heading = help::SIZES)]
    max_length: Option<usize>,
    /// Leave the caches of an engine's decoder growing.
    #[arg(long, help_heading = help::SIZES)]
    growing_caches: bool,
    /// Real inputs, to measure the ranges of activations.
    ///
    /// An .npz or .npy file, a folder of them, or lines of text with --tokenizer. Samples after the measured ones prove
    /// the result.
    #[arg(long, value_name = "DATA", help_heading = help::DATA)]
    calibrate: Option<PathBuf>,
    /// The model's tokenizer.json, for --calibrate with text.
    #[arg(long, value_name = "FILE", help_heading = help::DATA)]
    tokenizer: Option<PathBuf>,
    /// The most samples to measure on [default: 128].
    #[arg(long, value_name = "N", help_heading = help::DATA)]
    calibration_samples: Option<usize>,
    /// Keep what was measured in this file, for the same model and data.
    #[arg(long, value_name = "FILE", help_heading = help::DATA)]
    calibration_cache: Option<PathBuf>,
    /// Real inputs for the proof, as .npz.
    ///
    /// They are compared beside the inputs that are made from the graph. Without --calibrate they also give the ranges of FP16
    /// and BF16.
    #[arg(long, value_name = "DATA.npz", help_heading = help::DATA)]
    inputs: Option<PathBuf>,
    /// Seed of the inputs that are made [default: 1].
    #[arg(long, help_heading = help::DATA)]
    seed: Option<u64>,
    /// How close outputs must be [default: that of the precision].
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Preset::names()), help_heading = help::PROOF)]
    tolerance: Option<String>,
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
        // A variable of the environment is there for all recipes, and none of them means it.
        let ambient = Recipe {
            target: match self.ambient_target {
                true => self.target.take().map(written),
                false => None,
            },
            ..Recipe::default()
        };
        let over = more.over(&self.given()).map_err(Failure::usage)?;
        let base = base.over(&ambient).map_err(Failure::usage)?;
        over.over(&base).map_err(Failure::usage)
    }

    fn given(self) -> Recipe {
        let (int8, fp8, int4) = (self.int8.as_deref(), self.fp8, self.int4);
        Recipe {
            model: self.model,
            target: self.target.map(written),
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
            max_length: self.max_length,
            growing_caches: self.growing_caches.then_some(true),
            seed: self.seed,
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

fn written(targets: Targets) -> recipe::Targets {
    recipe::Targets::One(targets.to_string())
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

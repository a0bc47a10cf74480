//! Recipes: everything that a compilation is told, in a file that is kept under version control.

mod path;
mod read;
mod resolve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::Hardware;
use crate::fixed::InputValue;
use crate::options::Extent;
use crate::precision::{Floats, Format, Linear};

pub(crate) use read::known_keys;
pub use read::{RecipeError, of_bundle, read};
pub(crate) use resolve::operator;
pub use resolve::resolve;

/// What to compile, and how. Keys that are not given have the defaults of the command line; paths are relative to the
/// recipe's folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
#[schemars(deny_unknown_fields)]
pub struct Recipe {
    /// The model: ONNX, with external data beside it if it has some.
    #[serde(with = "path", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    pub model: Option<PathBuf>,
    /// The SHA-256 that the model must have, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The BLAKE3 hash that the model must have, in hexadecimal digits; faster than SHA-256 where no proof runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Where the bundle goes: MODEL.kiln beside the model unless given.
    #[serde(with = "path", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    pub output: Option<PathBuf>,
    /// sm_75, sm_80, sm_86, sm_89, sm_120, sm_121 (several share one engine), local (this machine's GPU), or cpu.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Targets>,
    /// Operators to write: the target's own, or plain ONNX.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialect: Option<Dialect>,
    #[serde(skip_serializing_if = "is_default")]
    pub precision: Precision,
    #[serde(skip_serializing_if = "is_default")]
    pub calibration: Calibration,
    /// Sizes of symbolic dimensions: min:opt:max, or one number.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dims: BTreeMap<String, Sizes>,
    /// Shapes of inputs: 1x128, or 1x16:8x128:32x512 (min:opt:max).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub shapes: BTreeMap<String, String>,
    /// Inputs for the proof, as .npz.
    #[serde(with = "path", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    pub inputs: Option<PathBuf>,
    /// Inputs that always have one value, which becomes a constant: sr: 16000.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub input_values: BTreeMap<String, Given>,
    /// The inputs of input-values are no inputs of the result any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_inputs: Option<bool>,
    /// Tokens that the caches of an engine's decoder hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// The caches of an engine's decoder grow, as the model's do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growing_caches: Option<bool>,
    /// Seed of the inputs that are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Passes to run: default,-fuse-gelu or fold-constants,fuse-gelu.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passes: Option<String>,
    /// Build an engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<bool>,
    /// Prove that the result computes the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<bool>,
    /// How much of the sizes the proof runs: quick or full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Extent>,
    /// Time the original and the result; by default only where the result serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub build: Build,
    #[serde(skip_serializing_if = "is_default")]
    pub gates: Gates,
}

/// What the engine can do beside running where it was built.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
#[schemars(deny_unknown_fields)]
pub struct Build {
    /// Its weights can be replaced. It is built on a machine with a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refittable: Option<bool>,
    /// The engine has no weights; they are taken from model.onnx when it is opened, as kiln does. It is built on a machine
    /// with a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_stripped: Option<bool>,
    /// Newer versions of TensorRT proper run it, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_compatible: Option<bool>,
    /// Other GPUs run it, too (TensorRT proper).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_compatible: Option<Hardware>,
    /// A file that keeps the timing of kernels (TensorRT proper).
    #[serde(with = "path", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    pub timing_cache: Option<PathBuf>,
    /// FP32 products round their factors to TF32; only where FP32 becomes another format unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tf32: Option<bool>,
}

/// One target or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    One(String),
    Several(Vec<String>),
}

/// A number, or min:opt:max.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Sizes {
    One(usize),
    Range(String),
}

/// A number, true or false, a text, or a list of numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Given {
    Truth(bool),
    Whole(i64),
    Number(f64),
    Text(String),
    Several(Vec<f64>),
}

impl std::fmt::Display for Given {
    /// As the command line takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Given::Truth(b) => b.fmt(f),
            Given::Whole(n) => n.fmt(f),
            Given::Number(x) => x.fmt(f),
            Given::Text(text) => f.write_str(text),
            Given::Several(all) => {
                let all: Vec<String> = all.iter().map(f64::to_string).collect();
                f.write_str(&all.join(","))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    Target,
    Standard,
}

/// Number formats, and what keeps its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
#[schemars(deny_unknown_fields)]
pub struct Precision {
    /// What FP32 becomes where it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floats: Option<Floats>,
    /// What linear layers multiply in, or what their weights are stored in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linear: Option<Linear>,
    /// Rows of a block of INT4 weights: a power of two from 16 on; 32 unless given, or with calibration data 16 where the result is
    /// out of tolerance otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int4_block: Option<usize>,
    /// Inputs and outputs of the graph become FP16 or BF16, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_io: Option<bool>,
    /// A regular expression: nodes whose names match keep their precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// Operators whose nodes keep their precision: Softmax, com.microsoft:Attention.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep_ops: Vec<String>,
    /// Layers that are not quantized, or where nothing is quantized nodes that are not converted: what a search found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep_nodes: Vec<String>,
    /// Find nodes that must keep their precision where the result is out of tolerance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<bool>,
}

/// Real inputs, to measure the ranges of activations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
#[schemars(deny_unknown_fields)]
pub struct Calibration {
    /// .npz, .npy, a folder of them, or lines of text.
    #[serde(with = "path", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    pub data: Option<PathBuf>,
    /// The model's tokenizer.json, for text.
    #[serde(with = "path", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    pub tokenizer: Option<PathBuf>,
    /// A file that keeps what was measured.
    #[serde(with = "path", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    pub cache: Option<PathBuf>,
    /// The most samples to measure on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
}

/// What the result must be; otherwise no bundle is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
#[schemars(deny_unknown_fields)]
pub struct Gates {
    #[serde(skip_serializing_if = "is_default")]
    pub parity: Parity,
    #[serde(skip_serializing_if = "is_default")]
    pub latency: Latency,
    #[serde(skip_serializing_if = "is_default")]
    pub size: Size,
    /// The engine must run on a GPU of this machine, and give what the original gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_parity: Option<bool>,
    /// Steps of a decoder's engine must leave caches where they are: none is copied, and input and output are one memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_in_place: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub judge: Judge,
    /// What the engine's products must multiply in, as its own plan says: fp32, fp16, bf16, int8, fp8 or int4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Format>,
}

/// A command of one's own that judges inputs and outputs of original and result; it must end with 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Judge {
    /// Run by sh, with a folder of .npz files as its last argument, in the folder where kiln runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// .npz, .npy, a folder of them, or lines of text; the inputs of the comparison unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// The model's tokenizer.json, for text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
}

/// How close the outputs must be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
#[schemars(deny_unknown_fields)]
pub struct Parity {
    /// fp32-exact, fp32-rewrite, fp16, bf16, int8, fp8 or int4; that of the precision unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<String>,
    /// Other limits, by output and metric: logits: {cosine: 0.999}.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, BTreeMap<String, f64>>,
}

/// How fast the result must be, in ONNX Runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
#[schemars(deny_unknown_fields)]
pub struct Latency {
    /// The most that its median may be of the original's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ratio: Option<f64>,
}

/// How large model.onnx may be, with its external data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "kebab-case")]
#[schemars(deny_unknown_fields)]
pub struct Size {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Of the original's size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ratio: Option<f64>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Recipe {
    /// This recipe where it says something, the other where it does not. Lists are replaced, maps are joined.
    ///
    /// # Errors
    /// Never for recipes that were read.
    pub fn over(&self, base: &Recipe) -> serde_json::Result<Recipe> {
        let mut value = serde_json::to_value(base)?;
        lay(&mut value, serde_json::to_value(self)?);
        serde_json::from_value(value)
    }

    /// With paths relative to `folder` made absolute.
    #[must_use]
    pub fn placed(mut self, folder: &Path) -> Recipe {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
        let paths = [
            &mut self.model,
            &mut self.output,
            &mut self.inputs,
            &mut self.calibration.data,
            &mut self.calibration.tokenizer,
            &mut self.calibration.cache,
            &mut self.build.timing_cache,
            &mut self.gates.judge.data,
            &mut self.gates.judge.tokenizer,
        ];
        for path in paths.into_iter().flatten() {
            *path = folder.join(&*path);
        }
        self
    }

    /// The inputs that it fixes, as the command line takes them.
    pub fn fixed(&self) -> Vec<InputValue> {
        let values = self.input_values.iter();
        let values = values.map(|(name, value)| InputValue {
            name: name.clone(),
            value: value.to_string(),
        });
        values.collect()
    }

    /// The JSON Schema of a recipe.
    pub fn schema() -> schemars::Schema {
        crate::schema::schema::<Recipe>()
    }
}

fn lay(base: &mut serde_json::Value, over: serde_json::Value) {
    use serde_json::Value::Object;
    match (base, over) {
        (Object(base), Object(over)) => {
            for (key, value) in over {
                lay(base.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests;

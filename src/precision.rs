//! What a compilation makes of a model's numbers, and the one table of what follows from a format of numbers.

use std::fmt;

use kiln_graph::{DType, Model};
use kiln_passes::precision::HalfFormat;
use kiln_passes::{Step, registry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::{ComputeCapability, DataType};
use crate::parity::Preset;
use crate::setting::{self, Setting};

/// What a compilation makes of a model's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Precision {
    /// What FP32 becomes where it can.
    pub floats: Floats,
    /// What linear layers multiply in, or what their weights are stored in.
    pub linear: Linear,
}

/// What FP32 becomes where it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Floats {
    #[default]
    Fp32,
    Fp16,
    Bf16,
}

/// What linear layers multiply in, or what their weights are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Linear {
    /// As all else.
    #[default]
    Floats,
    Int8,
    Int8Dynamic,
    Fp8,
    Int4,
}

/// How a linear layer is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Weights and activations, these by ranges from calibration.
    Static,
    /// Weights and activations, these by the range of each run.
    Dynamic,
    /// Weights alone, in blocks of rows.
    Weights,
}

/// A format of numbers that products multiply in, or that weights are stored in. The coarser, the later.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Fp32,
    Fp16,
    Bf16,
    Int8,
    Fp8,
    Int4,
}

/// What follows from a format.
struct Facts {
    /// In recipes, gates, manifests and reports.
    name: &'static str,
    /// What asks for it.
    setting: Option<Setting>,
    /// In sentences.
    title: &'static str,
    /// Of graphs.
    dtypes: &'static [DType],
    /// Of engines.
    data_type: DataType,
    /// How close the result must be to the original.
    tolerance: Preset,
    /// The pass that writes it, and the steps around that.
    pass: Option<&'static str>,
    steps: &'static [Step],
    /// What alone takes it, and what to ask for elsewhere.
    limits: Option<Needs>,
}

/// What a format needs of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The oldest GPU that multiplies it.
    pub least: ComputeCapability,
    /// What ONNX Runtime's CPU provider lacks for it.
    pub cpu_lacks: &'static str,
    /// The format to ask for where it is not.
    pub instead: Format,
}

static FP32: Facts = Facts {
    name: "fp32",
    setting: None,
    title: "FP32",
    dtypes: &[DType::F32],
    data_type: DataType::Float32,
    tolerance: Preset::Fp32Rewrite,
    pass: None,
    steps: &[],
    limits: None,
};

static FP16: Facts = Facts {
    name: "fp16",
    setting: Some(setting::FP16),
    title: "FP16",
    dtypes: &[DType::F16],
    data_type: DataType::Float16,
    tolerance: Preset::Fp16,
    pass: Some("convert-fp16"),
    steps: registry::FP16,
    limits: None,
};

static BF16: Facts = Facts {
    name: "bf16",
    setting: Some(setting::BF16),
    title: "BF16",
    dtypes: &[DType::BF16],
    data_type: DataType::Bfloat16,
    tolerance: Preset::Bf16,
    pass: Some("convert-bf16"),
    steps: registry::BF16,
    limits: Some(Needs {
        // From Ampere on.
        least: ComputeCapability::Sm80,
        cpu_lacks: "BF16 kernels",
        instead: Format::Fp16,
    }),
};

static INT8: Facts = Facts {
    name: "int8",
    setting: Some(setting::INT8),
    title: "INT8",
    dtypes: &[DType::I8, DType::U8],
    data_type: DataType::Int8,
    tolerance: Preset::Int8,
    pass: Some("quantize-int8"),
    steps: registry::INT8,
    limits: None,
};

static FP8: Facts = Facts {
    name: "fp8",
    setting: Some(setting::FP8),
    title: "FP8",
    dtypes: &[DType::F8E4M3FN],
    data_type: DataType::Float8,
    tolerance: Preset::Fp8,
    pass: Some("quantize-fp8"),
    steps: registry::FP8,
    limits: Some(Needs {
        // From Ada Lovelace on.
        least: ComputeCapability::Sm89,
        cpu_lacks: "FP8 products",
        instead: Format::Int8,
    }),
};

static INT4: Facts = Facts {
    name: "int4",
    setting: Some(setting::INT4),
    title: "INT4",
    dtypes: &[DType::I4, DType::U4],
    data_type: DataType::Int4,
    tolerance: Preset::Int4,
    pass: Some("quantize-int4"),
    steps: registry::INT4,
    limits: None,
};

impl Format {
    /// The coarsest format in a model.
    pub(crate) fn coarsest(model: &Model) -> Format {
        let mut coarsest = Format::Fp32;
        let mut found = |format: Format| coarsest = coarsest.max(format);
        model.graph.for_each_graph(&mut |g| {
            for (_, node) in g.nodes() {
                let op = node.op();
                if op.name() == "MatMulNBits" {
                    found(Format::Int4);
                } else if op.is("MatMulInteger") || op.is("QuantizeLinear") {
                    found(Format::Int8);
                }
            }
            for tensor in g.values().filter_map(|(_, v)| v.constant()) {
                match Format::of(tensor.dtype()) {
                    // Bytes may be anything.
                    Format::Int8 => {}
                    format => found(format),
                }
            }
        });
        coarsest
    }

    pub const ALL: [Format; 6] = [
        Format::Fp32,
        Format::Fp16,
        Format::Bf16,
        Format::Int8,
        Format::Fp8,
        Format::Int4,
    ];

    fn facts(self) -> &'static Facts {
        match self {
            Format::Fp32 => &FP32,
            Format::Fp16 => &FP16,
            Format::Bf16 => &BF16,
            Format::Int8 => &INT8,
            Format::Fp8 => &FP8,
            Format::Int4 => &INT4,
        }
    }

    /// `int8`
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// `INT8`
    pub fn title(self) -> &'static str {
        self.facts().title
    }

    /// What asks for it, as messages name it.
    pub fn option(self) -> String {
        let setting = self.facts().setting;
        setting.map_or(self.title().into(), |s| s.to_string())
    }

    /// The format of a graph's values of this type; FP32 for types that have none.
    pub fn of(dtype: DType) -> Format {
        let mut all = Format::ALL.into_iter();
        all.find(|f| f.facts().dtypes.contains(&dtype))
            .unwrap_or(Format::Fp32)
    }

    /// What engines call it.
    pub fn data_type(self) -> DataType {
        self.facts().data_type
    }

    /// How close a result in it must be to the original.
    pub fn tolerance(self) -> Preset {
        self.facts().tolerance
    }

    /// The name of the pass that writes it.
    pub fn pass(self) -> Option<&'static str> {
        self.facts().pass
    }

    /// The steps that write it.
    pub fn steps(self) -> &'static [Step] {
        self.facts().steps
    }

    /// What it needs of a target; `None` if all have it.
    pub fn needs(self) -> Option<Needs> {
        self.facts().limits
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Floats {
    pub fn format(self) -> Format {
        match self {
            Floats::Fp32 => Format::Fp32,
            Floats::Fp16 => Format::Fp16,
            Floats::Bf16 => Format::Bf16,
        }
    }

    /// The format of 16 bits, if it is one.
    pub fn half(self) -> Option<HalfFormat> {
        match self {
            Floats::Fp32 => None,
            Floats::Fp16 => Some(HalfFormat::Fp16),
            Floats::Bf16 => Some(HalfFormat::Bf16),
        }
    }
}

impl Linear {
    /// The format, if it is another than that of all else.
    pub fn format(self) -> Option<Format> {
        match self {
            Linear::Floats => None,
            Linear::Int8 | Linear::Int8Dynamic => Some(Format::Int8),
            Linear::Fp8 => Some(Format::Fp8),
            Linear::Int4 => Some(Format::Int4),
        }
    }

    /// How it is quantized, if it is.
    pub fn scheme(self) -> Option<Scheme> {
        match self {
            Linear::Floats => None,
            Linear::Int8 | Linear::Fp8 => Some(Scheme::Static),
            Linear::Int8Dynamic => Some(Scheme::Dynamic),
            Linear::Int4 => Some(Scheme::Weights),
        }
    }
}

impl From<Floats> for Precision {
    fn from(floats: Floats) -> Precision {
        Precision {
            floats,
            ..Precision::default()
        }
    }
}

impl From<Linear> for Precision {
    fn from(linear: Linear) -> Precision {
        Precision {
            linear,
            ..Precision::default()
        }
    }
}

impl Precision {
    /// FP16 or BF16, if FP32 becomes it.
    pub fn half(self) -> Option<HalfFormat> {
        self.floats.half()
    }

    /// What is asked for beside FP32: what linear layers become, then what all else does.
    pub fn formats(self) -> impl Iterator<Item = Format> {
        let floats = Some(self.floats.format()).filter(|f| *f != Format::Fp32);
        self.linear.format().into_iter().chain(floats)
    }

    /// Whether the numbers stay as they are.
    pub fn is_unchanged(self) -> bool {
        self == Precision::default()
    }

    /// How close the result must be to the original: as close as its coarsest format lets it.
    pub fn tolerance(self) -> Preset {
        let coarsest = self.formats().next();
        coarsest.unwrap_or(Format::Fp32).tolerance()
    }
}

/// In one word: `fp32`, `fp16`, `int8`, `int8+fp16`, …
impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.formats().map(Format::name).collect();
        match names.is_empty() {
            true => f.write_str(Format::Fp32.name()),
            false => f.write_str(&names.join("+")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn each_format_has_one_name_everywhere() {
        for format in Format::ALL {
            let name = serde_json::to_value(format).unwrap();
            assert_eq!(name, format.name());
            assert_eq!(Format::from_str(format.name(), false), Ok(format));
            assert_eq!(format.data_type().short(), format.name());
            assert!(format.tolerance().name().starts_with(format.name()));
            assert_eq!(format.title().to_lowercase(), format.name());
            let setting = format.facts().setting.map_or("fp32", Setting::name);
            assert_eq!(setting, format.name());
            for &dtype in format.facts().dtypes {
                assert_eq!(Format::of(dtype), format);
            }
            if let Some(pass) = format.pass() {
                assert!(pass.ends_with(format.name()));
                let runs = |s: &Step| matches!(s, Step::Run(p) if p.name() == pass);
                assert!(format.steps().iter().any(runs), "{format}");
            }
        }
    }

    #[test]
    fn a_precision_is_one_word() {
        let precision = |floats, linear| Precision { floats, linear };
        for (p, word, tolerance) in [
            (Precision::default(), "fp32", "fp32-rewrite"),
            (precision(Floats::Bf16, Linear::Floats), "bf16", "bf16"),
            (precision(Floats::Fp32, Linear::Int8Dynamic), "int8", "int8"),
            (precision(Floats::Fp16, Linear::Int4), "int4+fp16", "int4"),
            (precision(Floats::Bf16, Linear::Fp8), "fp8+bf16", "fp8"),
        ] {
            assert_eq!(
                (p.to_string().as_str(), p.tolerance().name()),
                (word, tolerance)
            );
        }
    }

    #[test]
    fn formats_of_nothing_are_fp32() {
        assert_eq!(Format::of(DType::I64), Format::Fp32);
        assert_eq!(Format::of(DType::F64), Format::Fp32);
    }
}

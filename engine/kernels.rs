//! The kernels of a finished engine, as the builder lists them in its log.
//!
//! With detailed verbosity TensorRT for RTX writes one line for each layer of the engine that it built: name, kind, inputs,
//! constants and outputs with sizes, strides and types, and the ONNX nodes that the layer comes from. `IEngineInspector` tells
//! the same, but takes a GPU (`inspected.rs`). There is one list for all capabilities of an engine: kernels are made for the GPU when it is opened.
//! The verbosity changes neither the size of the plan nor the names in it (TensorRT for RTX 1.7.1): ONNX names are in both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DataType;

/// Whether a message of the builder's lists an engine's kernels.
pub(super) fn is_list(message: &[u8]) -> bool {
    message.trim_ascii_start().starts_with(b"Layers:")
}

/// A layer of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    pub name: String,
    /// TensorRT's word: `gemm`, `kgen` for a generated kernel, `runtime_fusion` for a product with what is fused to it, …
    pub kind: String,
    pub inputs: Vec<Operand>,
    pub constants: Vec<Operand>,
    pub outputs: Vec<Operand>,
    pub tactic: String,
    /// Labels of the ONNX nodes that it comes from.
    pub nodes: Vec<String>,
}

/// A tensor that a kernel reads or writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operand {
    pub name: String,
    /// -1 stands for a dynamic dimension.
    pub shape: Vec<i64>,
    /// In elements.
    pub strides: Vec<i64>,
    pub dtype: DataType,
}

/// The kernels of an engine in the order in which they run; empty where the builder did not list them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Kernels(pub Vec<Kernel>);

/// Layers that wait for streams or compute sizes on the host, and launch nothing on the GPU.
const NO_KERNELS: &[&str] = &["signal", "wait", "shape_call", "reshape"];

/// Begins the name of a layer that makes a size of a number, on the host.
const HOST_CAST: &str = "cast_hvar";

/// Kinds of layers that multiply matrices or convolve.
const PRODUCTS: &[&str] = &["gemm", "runtime_fusion", CONVOLUTION];
const CONVOLUTION: &str = "correlation";
/// Part of the name of a convolution with what is fused to it.
const FUSED_CONVOLUTION: &str = "_Corr";

/// Part of the name of a kernel of a profile behind the first.
const FURTHER: &str = "[profile ";

/// The number of the graph that a kernel is of: 1 in `__myl_FcAdd_myl1_8`.
fn graph(name: &str) -> Option<String> {
    let (_, behind) = name.rsplit_once("_myl")?;
    let (number, _) = behind.split_once('_')?;
    Some(number.to_string())
}

impl Kernels {
    /// Reads the lists in what the builder logged. Lines that are not understood are left out.
    pub(super) fn read(lists: &[String]) -> Kernels {
        let lines = lists.iter().flat_map(|list| list.lines());
        Kernels(lines.filter_map(kernel).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of the first profile of sizes, and those of further ones: TensorRT builds a graph for each, and names the profile
    /// in some kernels of it.
    pub fn by_profile(self) -> (Kernels, Kernels) {
        let further = self.0.iter().filter(|k| k.name.contains(FURTHER));
        let graphs: BTreeSet<String> = further.filter_map(|k| graph(&k.name)).collect();
        let is_further = |k: &Kernel| graph(&k.name).is_some_and(|g| graphs.contains(&g));
        let (further, first) = self.0.into_iter().partition(is_further);
        (Kernels(first), Kernels(further))
    }

    /// Those that run on the GPU.
    pub fn launched(&self) -> impl Iterator<Item = &Kernel> {
        self.0.iter().filter(|k| k.launches())
    }

    /// Products outside of attention kernels, by what they multiply.
    pub fn products(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for product in self.launched().filter(|k| k.is_product()) {
            *found.entry(product.multiplies().to_string()).or_default() += 1;
        }
        found
    }

    /// Dedicated kernels for attention.
    pub fn attention(&self) -> usize {
        self.launched().filter(|k| k.is_attention()).count()
    }
}

impl Kernel {
    pub fn launches(&self) -> bool {
        !NO_KERNELS.contains(&self.kind.as_str()) && !self.name.starts_with(HOST_CAST)
    }

    /// A whole attention in one kernel.
    pub fn is_attention(&self) -> bool {
        self.name.contains("mha")
    }

    /// A product of matrices, or a convolution.
    pub fn is_product(&self) -> bool {
        !self.is_attention() && PRODUCTS.contains(&self.kind.as_str())
    }

    pub(super) fn is_convolution(&self) -> bool {
        self.kind == CONVOLUTION || self.name.contains(FUSED_CONVOLUTION)
    }

    /// The matrix that a product holds.
    pub(super) fn weight(&self) -> Option<&Operand> {
        let matrices = self.constants.iter().filter(|o| o.is_matrix());
        matrices.max_by_key(|o| o.shape.iter().product::<i64>())
    }

    /// The types that a product multiplies.
    ///
    /// A residual that is added behind the product is an operand, too, so the type of the weight decides where one of the inputs
    /// has it. An integer beside a float is converted before it is multiplied.
    pub fn multiplies(&self) -> Multiplied {
        let mut inputs = self.inputs.iter().filter(|o| o.is_matrix());
        match self.weight() {
            Some(weight) if inputs.clone().any(|i| i.dtype == weight.dtype) => {
                Multiplied(weight.dtype, weight.dtype)
            }
            Some(weight) => Multiplied(
                inputs.next().map_or(weight.dtype, |i| i.dtype),
                weight.dtype,
            ),
            None => {
                let first = inputs.next().map_or(DataType::Other, |i| i.dtype);
                Multiplied(first, inputs.next().map_or(first, |i| i.dtype))
            }
        }
    }
}

impl Operand {
    /// The number of its open dimensions.
    pub(super) fn open(&self) -> usize {
        self.shape.iter().filter(|&&d| d < 0).count()
    }

    /// The product of its other dimensions.
    pub(super) fn known(&self) -> u64 {
        known(&self.shape)
    }

    /// More than a number or a vector.
    fn is_matrix(&self) -> bool {
        self.shape.iter().filter(|&&d| d != 1).count() > 1
    }
}

/// The product of the dimensions that are not open.
pub(super) fn known(listed: &[i64]) -> u64 {
    let known = listed.iter().filter_map(|&d| u64::try_from(d).ok());
    known.fold(1, u64::saturating_mul)
}

/// The types of a product's two factors, as the kernel reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Multiplied(pub DataType, pub DataType);

impl Multiplied {
    /// Whether it reads its weight in this type, and where that has 8 bits the other factor, too.
    pub fn is(self, asked: DataType) -> bool {
        match asked {
            DataType::Int4 | DataType::Float4 => self.1 == asked,
            _ => self.0 == asked && self.1 == asked,
        }
    }
}

impl fmt::Display for Multiplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 == self.1 {
            true => f.write_str(self.0.short()),
            false => write!(f, "{} x {}", self.0.short(), self.1.short()),
        }
    }
}

/// One line of a list.
fn kernel(line: &str) -> Option<Kernel> {
    let rest = line.trim_start().strip_prefix("Name: ")?;
    let (name, rest) = rest.split_once(", LayerType: ")?;
    let (kind, rest) = rest.split_once(", Inputs: [")?;
    let (inputs, rest) = rest.split_once("], Constants: [")?;
    let (constants, rest) = rest.split_once("], Outputs: [")?;
    let (outputs, rest) = rest.split_once("], TacticName: ")?;
    let (tactic, rest) = rest.split_once(", StreamId: ").unwrap_or((rest, ""));
    let nodes = rest.split_once("Metadata: ").map_or("", |(_, nodes)| nodes);
    Some(Kernel {
        name: name.into(),
        kind: kind.into(),
        inputs: operands(inputs)?,
        constants: operands(constants)?,
        outputs: operands(outputs)?,
        tactic: tactic.into(),
        nodes: labels(nodes),
    })
}

/// `{ Name: a, Dimensions: [1,2], Strides: [2,1], StrideOrder: [1,0], Datatype: Half, Format: … }, …`
fn operands(list: &str) -> Option<Vec<Operand>> {
    let all = list.split("{ Name: ").skip(1);
    all.map(operand).collect()
}

fn operand(text: &str) -> Option<Operand> {
    let (name, rest) = text.split_once(", Dimensions: [")?;
    let (shape, rest) = rest.split_once(']')?;
    let strides = rest.split_once("Strides: [")?.1.split_once(']')?.0;
    let dtype = rest.split_once("Datatype: ")?.1;
    let dtype = dtype.split([',', ' ', '}']).next()?;
    Some(Operand {
        name: name.into(),
        shape: numbers(shape)?,
        strides: numbers(strides)?,
        dtype: data_type(dtype),
    })
}

fn numbers(list: &str) -> Option<Vec<i64>> {
    let all = list.split(',').filter(|n| !n.is_empty());
    all.map(|n| n.trim().parse().ok()).collect()
}

/// `[ONNX Layer: a]` of each node, with a separator between them (a unit's here, a record's in TensorRT 10) or none. A name may have
/// brackets of its own.
pub(super) fn labels(metadata: &str) -> Vec<String> {
    let parts = metadata.split("[ONNX Layer: ").skip(1);
    let ends = |c: char| c.is_control() || c.is_whitespace();
    let names = parts.filter_map(|part| part.trim_end_matches(ends).strip_suffix(']'));
    names.map(str::to_string).collect()
}

/// The builder's word for a type.
pub(super) fn data_type(word: &str) -> DataType {
    match word {
        "Float" => DataType::Float32,
        "Half" => DataType::Float16,
        "BFloat16" => DataType::Bfloat16,
        "FP8" => DataType::Float8,
        "FP4" => DataType::Float4,
        "Int64" => DataType::Int64,
        "Int32" => DataType::Int32,
        "Int8" => DataType::Int8,
        "Int4" => DataType::Int4,
        "UInt8" => DataType::Uint8,
        "Bool" => DataType::Bool,
        _ => DataType::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, inputs: &[(&str, &str)], constants: &[(&str, &str)]) -> String {
        let list = |operands: &[(&str, &str)]| {
            let all = operands.iter().map(|(shape, dtype)| {
                format!(
                    " {{ Name: /m/a[0], Dimensions: [{shape}], Strides: [1], StrideOrder: [0], Datatype: {dtype}, Format: (Linear) Row major linear format }}"
                )
            });
            all.collect::<Vec<_>>().join(",")
        };
        format!(
            "Name: __myl_x_1, LayerType: {kind}, Inputs: [{}], Constants: [{}], Outputs: [{}], TacticName: __myl_x, StreamId: 0, Metadata: [ONNX Layer: /m/MatMul]\u{1f}[ONNX Layer: node_of_y]",
            list(inputs),
            list(constants),
            list(&[("-1,8", "Half")])
        )
    }

    fn product(inputs: &[(&str, &str)], constants: &[(&str, &str)]) -> String {
        let list = format!("\nLayers:\n{}\n", line("gemm", inputs, constants));
        Kernels::read(&[list]).0[0].multiplies().to_string()
    }

    #[test]
    fn a_line_is_read() {
        let text = line(
            "gemm",
            &[("-1,4", "Int8")],
            &[("4,8", "Int8"), ("1", "Float")],
        );
        let found = kernel(&text).unwrap();
        assert_eq!(
            (found.kind.as_str(), found.name.as_str()),
            ("gemm", "__myl_x_1")
        );
        assert_eq!(found.nodes, ["/m/MatMul", "node_of_y"]);
        assert_eq!(found.inputs[0].name, "/m/a[0]");
        assert_eq!(found.inputs[0].shape, [-1, 4]);
        assert_eq!(found.constants.len(), 2);
        assert_eq!(found.outputs[0].dtype, DataType::Float16);
        assert!(is_list(b"\nLayers:\nName: x") && !is_list(b"I/O Tensors:"));
    }

    #[test]
    fn other_lines_are_left_out() {
        let text = "Layers:\nEngine Metadata:\n Name: x, IOMode: Input, DataType: Int64\nName: , LayerType: gemm, Inputs: [";
        assert!(Kernels::read(&[text.into()]).is_empty());
        assert!(operand("a, Dimensions: [x], Strides: [1], Datatype: Half").is_none());
    }

    #[test]
    fn what_multiplies_is_told_by_the_weight() {
        // A factor beside the weight, and a residual beside the input.
        assert_eq!(
            product(&[("-1,4", "Int8")], &[("4,8", "Int8"), ("1", "Float")]),
            "int8"
        );
        assert_eq!(
            product(&[("-1,8", "Half"), ("-1,4", "Int8")], &[("4,8", "Int8")]),
            "int8"
        );
        // Scales beside weights of 4 bits.
        assert_eq!(
            product(&[("-1,64", "Half")], &[("64,8", "Int4"), ("2,8", "Half")]),
            "fp16 x int4"
        );
        // A weight that another kernel dequantized.
        assert_eq!(
            product(&[("-1,4", "Int8"), ("1,4,8", "Half")], &[]),
            "int8 x fp16"
        );
        assert_eq!(
            product(&[("-1,-1,4", "Float"), ("-1,4,-1", "Float")], &[]),
            "fp32"
        );
    }

    #[test]
    fn kernels_of_a_further_profile_are_apart() {
        let kernel = |name: &str| Kernel {
            name: name.into(),
            kind: "gemm".into(),
            inputs: Vec::new(),
            constants: Vec::new(),
            outputs: Vec::new(),
            tactic: String::new(),
            nodes: Vec::new(),
        };
        let names = [
            "a_myl0_0",
            "__myl_Fc_myl1_0",
            "b [profile 1]_myl1_1",
            "c_myl0_1",
        ];
        let (first, further) = Kernels(names.map(kernel).to_vec()).by_profile();
        let names = |all: &Kernels| all.0.iter().map(|k| k.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&first), ["a_myl0_0", "c_myl0_1"]);
        assert_eq!(names(&further), ["__myl_Fc_myl1_0", "b [profile 1]_myl1_1"]);
        assert_eq!(first.by_profile().1, Kernels::default());
    }

    #[test]
    fn what_waits_is_no_kernel() {
        let list = [
            line("shape_call", &[], &[]),
            line("kgen", &[], &[]),
            line("wait", &[], &[]),
        ];
        let kernels = Kernels::read(&[list.join("\n")]);
        assert_eq!((kernels.0.len(), kernels.launched().count()), (3, 1));
    }
}

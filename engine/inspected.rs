//! The kernels of an engine as `IEngineInspector` tells them on a GPU, and how they differ from the builder's list.
//!
//! The JSON is that of TensorRT's documentation ("Engine Inspector" in its developer guide, and "Migrating IEngineInspector Usage from
//! TensorRT 10.x to 11.x"): `Layers` has an object for each layer of an engine that was built with detailed verbosity, and a name where
//! it was not. Until 10 a tensor's type is in its `Format/Datatype`, from 11 on `Format` and `DataType` stand apart, and `I/O Tensors` in
//! the place of `Bindings`. Nothing of this has been read from a GPU.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::DataType;
use super::kernels::{Kernel, Kernels, Operand, data_type, labels};

/// What an inspector wrote is not what its documentation says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    #[error("TensorRT's inspector wrote no JSON of layers: {0}")]
    Json(String),
    /// Built without detailed verbosity.
    #[error(
        "TensorRT's inspector names {0} layers and tells nothing of them: the engine was built without detailed verbosity"
    )]
    NamesOnly(usize),
}

#[derive(Deserialize)]
struct Engine {
    #[serde(rename = "Layers")]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Layer {
    Name(#[expect(dead_code, reason = "only that it is nothing more")] String),
    Told(Box<Told>),
}

#[derive(Deserialize)]
struct Told {
    #[serde(rename = "Name", alias = "LayerName")]
    name: String,
    #[serde(rename = "LayerType", default)]
    kind: String,
    #[serde(rename = "Inputs", default)]
    inputs: Vec<Tensor>,
    #[serde(rename = "Constants", default)]
    constants: Vec<Tensor>,
    #[serde(rename = "Outputs", default)]
    outputs: Vec<Tensor>,
    #[serde(rename = "TacticName", default, deserialize_with = "text")]
    tactic: String,
    #[serde(rename = "Metadata", default, deserialize_with = "text")]
    metadata: String,
}

#[derive(Deserialize)]
struct Tensor {
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "Dimensions", default)]
    shape: Vec<i64>,
    #[serde(rename = "Strides", default)]
    strides: Vec<i64>,
    /// TensorRT 11 has it beside the format, TensorRT 10 in it.
    #[serde(rename = "Datatype", alias = "DataType", default)]
    dtype: Option<String>,
    /// `Half`, or a sentence such as `Row major linear FP16 format`.
    #[serde(rename = "Format/Datatype", alias = "Format", default)]
    format: Option<String>,
}

/// A text; anything else that stands in its place says nothing.
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let value = Value::deserialize(from)?;
    Ok(value.as_str().unwrap_or_default().to_string())
}

impl From<Tensor> for Operand {
    fn from(t: Tensor) -> Operand {
        let told = t.dtype.or(t.format).unwrap_or_default();
        Operand {
            name: t.name,
            shape: t.shape,
            strides: t.strides,
            dtype: told_type(&told),
        }
    }
}

/// The type in a format's sentence; the builder's own word where it is one.
fn told_type(told: &str) -> DataType {
    let exact = data_type(told);
    if exact != DataType::Other {
        return exact;
    }
    let word = |word: &str| match word {
        "FP32" | "FLOAT" | "Float32" => DataType::Float32,
        "FP16" | "HALF" | "Float16" => DataType::Float16,
        "BF16" => DataType::Bfloat16,
        "INT8" => DataType::Int8,
        "INT4" => DataType::Int4,
        "INT32" => DataType::Int32,
        "INT64" => DataType::Int64,
        "BOOL" | "BOOLEAN" => DataType::Bool,
        other => data_type(other),
    };
    let mut words = told.split_whitespace().map(word);
    words
        .find(|&t| t != DataType::Other)
        .unwrap_or(DataType::Other)
}

/// The kernels in what `IEngineInspector::getEngineInformation` gives as JSON.
///
/// # Errors
/// When it is no such JSON, or only names.
pub fn read(json: &str) -> Result<Kernels, Unread> {
    let engine: Engine = serde_json::from_str(json).map_err(|e| Unread::Json(e.to_string()))?;
    let count = engine.layers.len();
    let kernel = |layer: Layer| match layer {
        Layer::Name(_) => Err(Unread::NamesOnly(count)),
        Layer::Told(t) => Ok(Kernel {
            name: t.name,
            kind: t.kind,
            inputs: t.inputs.into_iter().map(Operand::from).collect(),
            constants: t.constants.into_iter().map(Operand::from).collect(),
            outputs: t.outputs.into_iter().map(Operand::from).collect(),
            tactic: t.tactic,
            nodes: labels(&t.metadata),
        }),
    };
    let kernels = engine.layers.into_iter().map(kernel);
    Ok(Kernels(kernels.collect::<Result<_, _>>()?))
}

/// An opened engine beside the list that its builder wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Kernels that the builder listed, and that the inspector tells.
    pub listed: usize,
    pub told: usize,
    /// One sentence for each; none where both say the same.
    pub differences: Vec<String>,
}

/// Compares names, kinds and the types of operands of all that runs on the GPU.
///
/// An operand that one side does not have (constants, which the documentation does not promise) and sizes that were open when the engine was built are no difference.
pub fn compared(listed: &Kernels, told: &Kernels) -> Compared {
    let by_name = |all: &Kernels| -> BTreeMap<String, Kernel> {
        let named = all.launched().map(|k| (k.name.clone(), k.clone()));
        named.collect()
    };
    let (first, second) = (by_name(listed), by_name(told));
    let mut differences = Vec::new();
    for (name, kernel) in &first {
        match second.get(name) {
            None => differences.push(format!("{name} is listed by the builder alone")),
            Some(other) => differ(kernel, other, &mut differences),
        }
    }
    let new = second.keys().filter(|name| !first.contains_key(*name));
    differences.extend(new.map(|name| format!("{name} is in the opened engine alone")));
    Compared {
        listed: listed.launched().count(),
        told: told.launched().count(),
        differences,
    }
}

fn differ(listed: &Kernel, told: &Kernel, differences: &mut Vec<String>) {
    let name = &listed.name;
    if listed.kind != told.kind && !told.kind.is_empty() {
        let (a, b) = (&listed.kind, &told.kind);
        differences.push(format!("{name}: {a} in the list, {b} in the opened engine"));
    }
    for (what, first, second) in [
        ("input", &listed.inputs, &told.inputs),
        ("constant", &listed.constants, &told.constants),
        ("output", &listed.outputs, &told.outputs),
    ] {
        if first.len() != second.len() && !second.is_empty() {
            let (a, b) = (first.len(), second.len());
            differences.push(format!(
                "{name}: {a} {what}s in the list, {b} in the opened engine"
            ));
            continue;
        }
        for (k, (a, b)) in first.iter().zip(second).enumerate() {
            let known = a.dtype != DataType::Other && b.dtype != DataType::Other;
            if known && a.dtype != b.dtype {
                let (a, b) = (a.dtype.short(), b.dtype.short());
                differences.push(format!(
                    "{name}: {what} {k} is {a} in the list, {b} in the opened engine"
                ));
            }
            let rank = a.shape.len() == b.shape.len() || b.shape.is_empty();
            let sizes = a.shape.iter().zip(&b.shape);
            if !rank || sizes.clone().any(|(a, b)| *a >= 0 && *b >= 0 && a != b) {
                let (a, b) = (&a.shape, &b.shape);
                differences.push(format!(
                    "{name}: {what} {k} is {a:?} in the list, {b:?} in the opened engine"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in the documentation, with the types of both its forms.
    const JSON: &str = r#"{"Layers": [{
        "Name": "node_of_y_product_myl0_1",
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1, 128, 384], "Format/Datatype": "Thirty-two wide channel vectorized row major INT8 format"}],
        "Constants": [{"Name": "w", "Dimensions": [384, 1536], "Strides": [1536, 1], "StrideOrder": [1, 0], "Datatype": "Int8"}],
        "Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [1, 128, 1536], "Format/Datatype": "Half"}],
        "TacticName": "sm80_xmma_gemm", "StreamId": 0,
        "Metadata": "[ONNX Layer: /m/MatMul]\u001f[ONNX Layer: y_scaled]"
      }, {
        "Name": "signal_1", "LayerType": "signal", "Inputs": [], "Outputs": [], "TacticName": null, "TacticValue": "0x0000000000000000"
      }], "Bindings": ["x", "y"]}"#;

    #[test]
    fn documented_layers_are_read() {
        let found = read(JSON).unwrap();
        let product = &found.0[0];
        assert_eq!((found.0.len(), found.launched().count()), (2, 1));
        assert_eq!(product.nodes, ["/m/MatMul", "y_scaled"]);
        assert_eq!(product.tactic, "sm80_xmma_gemm");
        assert_eq!(product.inputs[0].dtype, DataType::Int8);
        assert_eq!(product.outputs[0].dtype, DataType::Float16);
        assert_eq!(product.constants[0].strides, [1536, 1]);
        assert_eq!(product.multiplies().to_string(), "int8");
    }

    /// TensorRT 8 to 10: sentences, locations, tactics as numbers, open sizes.
    #[test]
    fn layers_of_older_versions_are_read() {
        let json = r#"{"Layers": [{
            "Name": "Reformatting CopyNode for Input Tensor 0 to stem", "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1,3,224,224], "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "Reformatted Input Tensor 0 to stem", "Location": "Device", "Dimensions": [1,3,224,224],
                "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
            "ParameterType": "Reformat", "Origin": "REFORMAT", "TacticValue": "0x00000000000003e8", "StreamId": 0, "Metadata": ""
          }, {
            "Name": "stem + relu", "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "Reformatted Input Tensor 0 to stem", "Location": "Device", "Dimensions": [1,3,224,224],
                "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
            "Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [-1,64,112,112], "Format/Datatype": "N/A due to dynamic shapes"}],
            "ParameterType": "Convolution", "Kernel": [7,7], "PaddingMode": "kEXPLICIT_ROUND_DOWN", "Stride": [2,2], "Groups": 1,
            "Weights": {"Type": "Int8", "Count": 9408}, "Bias": {"Type": "Float", "Count": 64}, "Activation": "RELU", "HasBias": 1,
            "TacticName": "sm80_xmma_fprop", "TacticValue": "0x11bde0e1d9f2f35d", "StreamId": 0,
            "Metadata": "[ONNX Layer: /stem/Conv]\u001e[ONNX Layer: /relu/Relu]"
          }], "Bindings": ["x", "y"]}"#;
        let found = read(json).unwrap();
        let (copy, product) = (&found.0[0], &found.0[1]);
        assert_eq!(copy.inputs[0].dtype, DataType::Float16);
        assert_eq!(copy.outputs[0].dtype, DataType::Float16);
        assert_eq!(copy.nodes, Vec::<String>::new());
        assert_eq!(product.inputs[0].dtype, DataType::Int8);
        assert_eq!(product.outputs[0].dtype, DataType::Other);
        assert_eq!(product.outputs[0].shape, [-1, 64, 112, 112]);
        assert_eq!(product.nodes, ["/stem/Conv", "/relu/Relu"]);
    }

    /// TensorRT 11: types beside formats.
    #[test]
    fn layers_of_newer_versions_are_read() {
        let json = r#"{"Layers": [{
            "Name": "_gemm_mha_v2_myl0_5", "LayerType": "kgen",
            "Inputs": [{"Name": "q", "Dimensions": [12,128,32], "Format": "Row major linear format (kLINEAR)", "DataType": "Half"}],
            "Outputs": [{"Name": "o", "Dimensions": [12,128,32], "Format": "Row major linear INT8 format (kLINEAR)"}],
            "TacticName": "_gemm_mha_v2_0x5f", "StreamId": 0,
            "Metadata": "[ONNX Layer: /a/MatMul][ONNX Layer: /a/Softmax]"
          }],
          "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Int64", "Dimensions": [1,128], "Location": "Device",
            "IsShapeInferenceIO": false, "ProfileInfo": [{"MinShape": [1,1], "OptShape": [1,128], "MaxShape": [1,128], "Format": "kLINEAR"}]}],
          "ProfilingVerbosity": "DETAILED"}"#;
        let attention = &read(json).unwrap().0[0];
        assert_eq!(attention.inputs[0].dtype, DataType::Float16);
        assert_eq!(attention.outputs[0].dtype, DataType::Int8);
        assert_eq!(attention.nodes, ["/a/MatMul", "/a/Softmax"]);
    }

    #[test]
    fn what_tells_nothing_is_said() {
        let names = r#"{"Layers": ["a", "b"], "Bindings": []}"#;
        assert_eq!(read(names), Err(Unread::NamesOnly(2)));
        assert!(matches!(read("[1]"), Err(Unread::Json(_))));
        assert!(matches!(read(""), Err(Unread::Json(_))));
        let strange = r#"{"Layers": [{"Name": "a", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}]}"#;
        assert_eq!(read(strange).unwrap().0[0].inputs[0].dtype, DataType::Other);
    }

    #[test]
    fn types_and_kernels_are_compared() {
        let told = read(JSON).unwrap();
        assert_eq!(compared(&told, &told).differences, Vec::<String>::new());
        // Open sizes, and constants that are not told.
        let mut open = told.clone();
        open.0[0].inputs[0].shape = vec![-1, -1, 384];
        let mut bare = told.clone();
        bare.0[0].constants.clear();
        assert_eq!(compared(&open, &bare).differences, Vec::<String>::new());
        let mut other = told.clone();
        other.0[0].inputs[0].dtype = DataType::Float16;
        other.0[0].outputs[0].shape = vec![1, 128, 768];
        let found = compared(&told, &other).differences;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("input 0 is int8 in the list, fp16 in the opened engine"));
        other.0[0].name = "renamed".into();
        let found = compared(&told, &other);
        assert_eq!(
            (found.listed, found.told, found.differences.len()),
            (1, 1, 2)
        );
        assert!(found.differences[1].contains("in the opened engine alone"));
    }
}

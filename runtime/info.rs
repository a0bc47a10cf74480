use std::fmt;

use kiln_graph::DType;
use ort::value::{Outlet, ValueType};
use serde::Serialize;

use super::Error;
use super::values::dtype;

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    pub name: String,
    #[serde(serialize_with = "as_text")]
    pub dtype: DType,
    /// Empty for a scalar, and also where the model says nothing about the rank: ONNX Runtime does not tell the two
    /// apart.
    pub shape: Vec<Dim>,
}

/// A dimension as a model declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Dim {
    Fixed(usize),
    Symbol(String),
    Unknown,
}

fn as_text<S: serde::Serializer>(value: &impl fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(size) => size.fmt(f),
            Dim::Symbol(name) => f.write_str(name),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// `float[batch,16]`, as ONNX text writes it.
impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<_> = self.shape.iter().map(Dim::to_string).collect();
        write!(f, "{}[{}]", self.dtype, dims.join(","))
    }
}

pub(super) fn infos(
    outlets: &[Outlet],
    port: &'static str,
    model: &str,
) -> Result<Vec<TensorInfo>, Error> {
    outlets.iter().map(|o| info(o, port, model)).collect()
}

fn info(outlet: &Outlet, port: &'static str, model: &str) -> Result<TensorInfo, Error> {
    let not_tensor = || Error::NotTensor {
        model: model.to_owned(),
        port,
        name: outlet.name().to_owned(),
        found: outlet.dtype().to_string(),
    };
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = outlet.dtype()
    else {
        return Err(not_tensor());
    };
    let shape = shape
        .iter()
        .zip(dimension_symbols.iter())
        .map(|(&size, symbol)| match usize::try_from(size) {
            Ok(size) => Dim::Fixed(size),
            Err(_) if symbol.is_empty() => Dim::Unknown,
            Err(_) => Dim::Symbol(symbol.clone()),
        })
        .collect();
    Ok(TensorInfo {
        name: outlet.name().to_owned(),
        dtype: dtype(*ty).ok_or_else(not_tensor)?,
        shape,
    })
}

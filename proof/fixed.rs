//! Inputs that the user fixes: `--input NAME=VALUE`.

use std::str::FromStr;

use kiln_graph::{Dim, Graph, Tensor, ValueId};

use crate::parity;
use crate::shapes::{DimSpec, SpecError};
use kiln_runtime::setting::{DIM, DROP_INPUTS, INPUT};

/// An input and the value that it always has, as they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputValue {
    pub name: String,
    pub value: String,
}

impl FromStr for InputValue {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<InputValue, SpecError> {
        let fail = |why: &str| SpecError::Syntax {
            what: "value of an input (NAME=VALUE)",
            text: text.to_string(),
            why: why.to_string(),
        };
        let (name, value) = text.split_once('=').ok_or_else(|| fail("it has no '='"))?;
        match name.trim() {
            "" => Err(fail("it names no input")),
            name => Ok(InputValue {
                name: name.to_string(),
                value: value.to_string(),
            }),
        }
    }
}

/// A value does not fit the input that it is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FixError {
    #[error("{INPUT} {name}: the model has no such input; it has: {known}")]
    Unknown { name: String, known: String },
    #[error(
        "{INPUT} {name}: it is {ty}, and a value needs known sizes: give those of its dimensions with {DIM}"
    )]
    Open { name: String, ty: String },
    #[error("{INPUT} {name}={value}: it is {ty}, and {why}")]
    Value {
        name: String,
        value: String,
        ty: String,
        why: String,
    },
    #[error("{INPUT} {0} is given twice")]
    Twice(String),
    #[error("{DROP_INPUTS} leaves out the inputs that {INPUT} fixes, and it fixes none")]
    NothingToDrop,
}

/// The inputs of one model that are fixed.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// By the model's names, in the dtypes and shapes that it takes.
    pub values: Vec<(String, Tensor)>,
    /// Whether they are no inputs of the result any more.
    pub dropped: bool,
}

impl Fixed {
    /// The values that were given, as a graph takes them. Sizes of symbolic dimensions come from `dims`, where those are one
    /// size; one number is enough for a whole tensor.
    ///
    /// # Errors
    /// When an input is unknown, is given twice, has open sizes, or takes no such value.
    pub fn of(graph: &Graph, given: &[InputValue], dims: &[DimSpec]) -> Result<Fixed, FixError> {
        let mut values: Vec<(String, Tensor)> = Vec::new();
        for one in given {
            if values.iter().any(|(name, _)| *name == one.name) {
                return Err(FixError::Twice(one.name.clone()));
            }
            values.push((one.name.clone(), tensor(graph, one, dims)?));
        }
        Ok(Fixed {
            values,
            dropped: false,
        })
    }

    /// As [`Fixed::of`], of those values whose inputs the graph has.
    ///
    /// # Errors
    /// As [`Fixed::of`], but for unknown inputs.
    pub fn known(graph: &Graph, given: &[InputValue], dims: &[DimSpec]) -> Result<Fixed, FixError> {
        let mut here = given.to_vec();
        here.retain(|one| port(graph, &one.name).is_some());
        Fixed::of(graph, &here, dims)
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let mut values = self.values.iter();
        values.find(|(n, _)| n == name).map(|(_, t)| t)
    }

    /// Whether a model may be without this input.
    pub fn is_dropped(&self, name: &str) -> bool {
        self.dropped && self.get(name).is_some()
    }

    /// Makes what reads the inputs read constants instead; inputs that are dropped go.
    pub fn fold(&self, graph: &mut Graph) {
        for (name, tensor) in &self.values {
            let Some(input) = port(graph, name) else {
                continue;
            };
            let constant = graph.add_constant(&format!("{name}_fixed"), tensor.clone());
            graph.replace_uses(input, constant);
            if self.dropped {
                graph.remove_input(input);
            }
        }
    }

    /// Adds those that are missing to a case's inputs.
    pub fn complete(&self, inputs: &mut Vec<(String, Tensor)>) {
        for (name, tensor) in &self.values {
            match inputs.iter_mut().find(|(n, _)| n == name) {
                Some((_, old)) => *old = tensor.clone(),
                None => inputs.push((name.clone(), tensor.clone())),
            }
        }
    }
}

fn port(graph: &Graph, name: &str) -> Option<ValueId> {
    let mut inputs = graph.inputs().iter().copied();
    inputs.find(|&v| graph.value(v).name() == name)
}

fn tensor(graph: &Graph, one: &InputValue, dims: &[DimSpec]) -> Result<Tensor, FixError> {
    let InputValue { name, value } = one;
    let Some(input) = port(graph, name) else {
        let names = graph.inputs().iter().map(|&v| graph.value(v).name());
        return Err(FixError::Unknown {
            name: name.clone(),
            known: names.collect::<Vec<_>>().join(", "),
        });
    };
    let ty = graph.value(input).ty();
    let bad = |why: String| FixError::Value {
        name: name.clone(),
        value: value.clone(),
        ty: ty.to_string(),
        why,
    };
    let (Some(dtype), Some(shape)) = (ty.dtype(), ty.shape()) else {
        return Err(bad("its type is not known".into()));
    };
    let count = parity::texts(dtype, value).len();
    let size = |d: &Dim| match d {
        Dim::Known(n) => Some(*n),
        Dim::Symbol(s) => {
            let given = dims.iter().find(|spec| *spec.name == **s);
            let fixed = given.filter(|spec| spec.range.is_fixed());
            // A list along an open axis says how long it is.
            fixed
                .map(|spec| spec.range.opt)
                .or((shape.len() == 1 && count > 1).then_some(count))
        }
        Dim::Unknown => (shape.len() == 1).then_some(count),
    };
    let sizes: Option<Vec<usize>> = shape.iter().map(size).collect();
    let sizes = sizes.ok_or_else(|| FixError::Open {
        name: name.clone(),
        ty: ty.to_string(),
    })?;
    parity::from_text(dtype, &sizes, value).map_err(bad)
}

/// What a session of these inputs takes of a case's: all but those that were dropped from it.
pub(crate) fn fed(
    infos: &[kiln_runtime::TensorInfo],
    fixed: &Fixed,
    inputs: &[(String, Tensor)],
) -> Vec<(String, Tensor)> {
    let has = |name: &str| infos.iter().any(|i| i.name == name);
    let taken = inputs
        .iter()
        .filter(|(n, _)| has(n) || !fixed.is_dropped(n));
    taken.cloned().collect()
}

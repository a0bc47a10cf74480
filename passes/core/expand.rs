//! A fusion read from left to right: a call becomes its body.

use kiln_graph::{Attr, Attrs, DType, Def, Graph, INTERNAL_DOMAIN, Op, Tensor, ValueId, ops};
use kiln_graph::{Function, NodeId};
use rustc_hash::FxHashMap;

use super::fusion::Parsed;
use super::pass::Miss;
use super::patch::{Patch, Ref};
use super::pattern;

/// A call as far as it chooses its body: the attributes given, and the inputs' dtypes.
#[derive(Debug)]
pub struct Call<'a> {
    pub op: Op,
    pub attrs: &'a Attrs,
    /// `None` for an input left out, `Some(None)` for one of unknown dtype.
    pub inputs: &'a [Option<Option<DType>>],
}

/// The body in place of the call: the inverse of a fusion, for a target that lacks the operator. Numbers of the body take
/// the dtype of the operand that they meet, so that the result is strongly typed. Internal operators inside the body are
/// expanded too; `body` says what a call is.
///
/// # Errors
/// A miss if there is no body, if the call leaves out an input that the body reads, or if a dtype or attribute is missing.
pub fn expand<'a>(
    g: &Graph,
    call: NodeId,
    body: &dyn Fn(&Call<'_>) -> Option<&'a Parsed>,
) -> Result<Patch, Miss> {
    let node = g.node(call);
    let typed = |v: &Option<ValueId>| v.map(|v| (Ref::Old(v), g.value(v).ty().dtype()));
    let inputs: Vec<Option<Made>> = node.inputs().iter().map(typed).collect();
    let mut expansion = Expansion {
        opset: g.opset(),
        body,
        patch: Patch::new(),
    };
    let (made, _) = expansion.call(node.op(), node.attrs(), &inputs)?;
    let mut patch = expansion.patch;
    if let Some(output) = node.output(0) {
        patch.replace(output, made);
    }
    Ok(patch)
}

/// What stands for a value of a body, and its dtype.
type Made = (Ref, Option<DType>);

struct Expansion<'a, 'b> {
    opset: i64,
    body: &'b dyn Fn(&Call<'_>) -> Option<&'a Parsed>,
    patch: Patch,
}

impl Expansion<'_, '_> {
    fn call(&mut self, op: Op, attrs: &Attrs, inputs: &[Option<Made>]) -> Result<Made, Miss> {
        let dtypes: Vec<_> = inputs.iter().map(|i| i.map(|(_, dtype)| dtype)).collect();
        let call = Call {
            op,
            attrs,
            inputs: &dtypes,
        };
        let body = (self.body)(&call);
        let function = &body
            .ok_or_else(|| Miss::because(format!("{op} has no body")))?
            .function;
        let scope = Scope {
            function,
            op,
            attrs,
            opset: self.opset,
            narrow: dtypes.first().copied().flatten().flatten(),
        };
        let f = &function.body;
        let mut made: FxHashMap<ValueId, Made> = FxHashMap::default();
        for (&p, input) in f.inputs().iter().zip(inputs) {
            made.extend(input.map(|input| (p, input)));
        }
        let order = f.topo_order();
        let order = order.map_err(|e| Miss::because(format!("its body is malformed: {e}")))?;
        for id in order {
            let node = f.node(id);
            if node.op().is("Constant") {
                continue;
            }
            let operands = node.inputs().iter().flatten();
            let dtype = operands.filter_map(|p| made.get(p)).find_map(|m| m.1);
            let mut inputs: Vec<Option<Made>> = Vec::with_capacity(node.inputs().len());
            for p in node.inputs() {
                inputs.push(match p {
                    None => None,
                    Some(p) => Some(match made.get(p) {
                        Some(made) => *made,
                        None => (self.patch.constant(scope.constant(*p, dtype)?), dtype),
                    }),
                });
            }
            let mut attrs = Attrs::new();
            for (name, attr) in node.attrs().iter() {
                attrs.set(name, scope.attribute(attr)?);
            }
            let result = match node.op().domain() == INTERNAL_DOMAIN {
                true => self.call(node.op(), &attrs, &inputs)?,
                false => {
                    let to = node.op().is("Cast").then(|| attrs.int("to")).flatten();
                    let dtype = match to {
                        Some(to) => i32::try_from(to).ok().and_then(DType::from_onnx),
                        None => dtype,
                    };
                    let inputs = inputs.iter().map(|i| i.map(|(v, _)| v));
                    let outputs = self.patch.node_with(node.op(), inputs, 1, attrs);
                    (outputs[0], dtype)
                }
            };
            made.extend(node.output(0).map(|p| (p, result)));
        }
        let output = f.outputs().first().and_then(|o| made.get(&o.value));
        output
            .copied()
            .ok_or_else(|| Miss::because(format!("the body of {op} computes nothing")))
    }
}

/// What a body's references and constants mean in one call.
struct Scope<'a> {
    function: &'a Function,
    op: Op,
    attrs: &'a Attrs,
    opset: i64,
    /// The type of the first input.
    narrow: Option<DType>,
}

impl Scope<'_> {
    fn constant(&self, p: ValueId, dtype: Option<DType>) -> Result<Tensor, Miss> {
        let f = &self.function.body;
        let tensor = match f.value(p).def() {
            Def::Constant(tensor) => match tensor.as_f64() {
                Some(v) => number(v, dtype),
                // Integers of a body are axes, which operators take as vectors.
                None => tensor.to_i64s().map(|v| Tensor::vector(&v)),
            },
            Def::Node(parameter, _) => match f.node(*parameter).attrs().iter().next() {
                Some((_, attr)) => match self.attribute(attr)? {
                    Attr::Float(v) => number(f64::from(v), dtype),
                    _ => None,
                },
                None => None,
            },
            _ => return Err(Miss::because("it leaves out an input that its body reads")),
        };
        tensor.ok_or_else(|| Miss::because("the dtype of one of its operands is unknown"))
    }

    fn attribute(&self, attr: &Attr) -> Result<Attr, Miss> {
        let Attr::Ref { name, .. } = attr else {
            return Ok(attr.clone());
        };
        if **name == *pattern::NARROW
            && let Some(dtype) = self.narrow
        {
            return Ok(Attr::Int(i64::from(dtype.to_onnx())));
        }
        let given = self.attrs.get(name).cloned();
        given
            .or_else(|| ops::schema::default_attr(self.op, name, self.opset).cloned())
            .ok_or_else(|| Miss::because(format!("it has no attribute '{name}'")))
    }
}

/// A scalar of a float type.
pub(crate) fn number(v: f64, dtype: Option<DType>) -> Option<Tensor> {
    match dtype? {
        DType::F64 => Some(Tensor::scalar(v)),
        DType::F32 => Some(Tensor::scalar(v as f32)),
        narrow => Tensor::scalar(v as f32).narrowed(narrow),
    }
}

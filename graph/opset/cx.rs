//! What adapters work with: the graph, what is known of its types, and edits that keep names.

use crate::graph::Inputs;
use crate::infer::Facts;
use crate::types::Dim;
use crate::{Attrs, DType, Graph, NodeId, Op, Tensor, Type, ValueId};

/// Whether the node was changed, or why it cannot be carried over.
pub(super) type Outcome = Result<bool, String>;

pub(super) struct Cx<'a> {
    pub graph: &'a mut Graph,
    facts: &'a Facts,
    /// The version that is wanted in the end.
    pub to: i64,
}

pub(super) const MALFORMED: &str = "its attributes are malformed";

impl<'a> Cx<'a> {
    pub fn new(graph: &'a mut Graph, facts: &'a Facts, to: i64) -> Cx<'a> {
        Cx { graph, facts, to }
    }

    /// The type as it was inferred before the conversion; that of a value made by it is written in the graph.
    pub fn ty(&self, v: ValueId) -> &Type {
        match self.facts.ty(v) {
            Type::Unknown => self.graph.value(v).ty(),
            known => known,
        }
    }

    pub fn dims(&self, v: Option<ValueId>) -> Option<&[Dim]> {
        self.ty(v?).shape()
    }

    pub fn rank(&self, v: Option<ValueId>) -> Option<usize> {
        self.dims(v).map(<[Dim]>::len)
    }

    pub fn input(&self, id: NodeId, k: usize) -> Option<ValueId> {
        self.graph.node(id).input(k)
    }

    pub fn remove_attr(&mut self, id: NodeId, name: &str) -> bool {
        self.graph.attrs_mut(id).remove(name).is_some()
    }

    /// Makes a constant the operand at `k`.
    pub fn set_constant(&mut self, id: NodeId, k: usize, name: &str, tensor: Tensor) {
        let name = self.name(id, name);
        let value = self.graph.add_constant(&name, tensor);
        self.graph.set_input(id, k, Some(value));
    }

    /// Moves an attribute of integers to the operand at `k`; gives `false` if the node has none.
    pub fn ints_to_input(&mut self, id: NodeId, name: &str, k: usize) -> Outcome {
        let Some(attr) = self.graph.attrs_mut(id).remove(name) else {
            return Ok(false);
        };
        let crate::Attr::Ints(ints) = attr else {
            return Err(MALFORMED.into());
        };
        self.set_constant(id, k, name, Tensor::vector(&ints));
        Ok(true)
    }

    /// A name for something that belongs to a node.
    pub fn name(&self, id: NodeId, suffix: &str) -> String {
        match self.graph.node(id).name() {
            "" => String::new(),
            name => format!("{name}/{suffix}"),
        }
    }

    /// Adds a node with one result, named after the node `by`. New nodes have no name themselves: ONNX Runtime refuses
    /// two of one name.
    pub fn add(
        &mut self,
        by: NodeId,
        op: &str,
        inputs: impl IntoIterator<Item = ValueId>,
        attrs: Attrs,
    ) -> Result<ValueId, String> {
        let name = self.name(by, op);
        let inputs: Vec<_> = inputs.into_iter().map(Some).collect();
        let names = [Some(name.as_str())];
        let id = self
            .graph
            .add_node_named(Op::onnx(op), "", inputs, &names, attrs);
        let output = self.graph.node(id).sole_output();
        output.ok_or_else(|| "a new node has no output".to_string())
    }

    pub fn constant(&mut self, by: NodeId, name: &str, tensor: Tensor) -> ValueId {
        let name = self.name(by, name);
        self.graph.add_constant(&name, tensor)
    }

    /// Puts a node behind the result `v` of `by`: whatever read `v` reads the new node's result, which takes `v`'s name.
    pub fn put_behind(
        &mut self,
        by: NodeId,
        v: ValueId,
        op: &str,
        more: &[ValueId],
        attrs: Attrs,
    ) -> Result<(), String> {
        let after = self.add(by, op, [], attrs)?;
        let ty = self.graph.value(v).ty().clone();
        let name = self.graph.value(v).name().to_string();
        self.graph.replace_uses(v, after);
        self.graph.set_type(after, ty);
        self.graph.set_value_name(after, &name);
        self.graph.set_type(v, Type::Unknown);
        self.graph.set_value_name(v, &self.name(by, "result"));
        let node = self.graph.producer(after);
        let node = node.ok_or_else(|| "a new node has no output".to_string())?;
        let inputs: Inputs = [v].iter().chain(more).map(|&v| Some(v)).collect();
        self.graph.set_inputs(node, inputs);
        Ok(())
    }

    /// A scalar of the dtype of `like`. Where that is unknown, a node finds it, if the wanted operator set has one.
    pub fn scalar_like(
        &mut self,
        by: NodeId,
        name: &str,
        value: f32,
        like: Option<ValueId>,
    ) -> Result<ValueId, String> {
        let like = like.ok_or("its first operand is missing")?;
        let tensor = match self.ty(like).dtype() {
            Some(DType::F32) => Tensor::scalar(value),
            Some(DType::F64) => Tensor::scalar(f64::from(value)),
            Some(DType::F16) => Tensor::scalar(half::f16::from_f32(value)),
            Some(DType::BF16) => Tensor::scalar(half::bf16::from_f32(value)),
            Some(other) => return Err(format!("its operand is {other}, which it does not take")),
            None if self.to >= 15 => {
                let constant = self.constant(by, name, Tensor::scalar(value));
                return self.add(by, "CastLike", [constant, like], Attrs::new());
            }
            None => return Err("the dtype of its operand is unknown".into()),
        };
        Ok(self.constant(by, name, tensor))
    }
}

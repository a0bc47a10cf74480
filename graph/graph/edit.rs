//! Building and editing. Def-use edges are changed here and nowhere else.

use smallvec::SmallVec;

use super::{
    Def, Graph, Inputs, Node, NodeId, Notes, Opsets, Output, Outputs, Slot, Use, Value, ValueId,
};
use crate::{Attrs, Op, Tensor, Type};

impl Graph {
    // Building.

    fn add_value(&mut self, name: &str, ty: Type, def: Def) -> ValueId {
        let id = ValueId::new(self.values.len());
        self.values.push(Value {
            name: name.into(),
            ty,
            def,
            uses: SmallVec::new(),
            outputs: 0,
        });
        id
    }

    pub fn add_input(&mut self, name: &str, ty: Type) -> ValueId {
        let def = Def::Input(self.inputs.len() as u32);
        let id = self.add_value(name, ty, def);
        self.inputs.push(id);
        id
    }

    /// Removes an input that nothing reads. Gives `false`, and changes nothing, if the value is read or is not an input.
    pub fn remove_input(&mut self, input: ValueId) -> bool {
        let place = self.inputs.iter().position(|&v| v == input);
        let (Some(place), true) = (place, self.value(input).is_unused()) else {
            return false;
        };
        self.inputs.remove(place);
        self.defaults.retain(|(v, _)| *v != input);
        self.values[input.index()].def = Def::Removed;
        for (k, v) in self.inputs.iter().enumerate() {
            self.values[v.index()].def = Def::Input(k as u32);
        }
        true
    }

    /// Gives an input a value for when it is not fed.
    pub fn set_default(&mut self, input: ValueId, value: Tensor) {
        self.defaults.push((input, value));
    }

    /// In a nested graph: a value of the outer graph, the owning node's capture of this position.
    pub fn add_capture(&mut self, name: &str, ty: Type, position: usize) -> ValueId {
        self.add_value(name, ty, Def::Capture(position as u32))
    }

    pub fn add_constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let dims = tensor.dims().iter().map(|&d| crate::Dim::Known(d));
        let ty = Type::tensor(tensor.dtype(), Some(dims.collect()));
        self.add_value(name, ty, Def::Constant(tensor))
    }

    /// Adds a node and one new value of unknown type for each output.
    pub fn add_node(
        &mut self,
        op: Op,
        name: &str,
        inputs: impl IntoIterator<Item = Option<ValueId>>,
        outputs: usize,
        attrs: Attrs,
    ) -> NodeId {
        let names = vec![Some(""); outputs];
        self.add_node_named(op, name, inputs, &names, attrs)
    }

    /// Adds a node whose outputs get these names; `None` is an optional output left out.
    pub fn add_node_named(
        &mut self,
        op: Op,
        name: &str,
        inputs: impl IntoIterator<Item = Option<ValueId>>,
        outputs: &[Option<&str>],
        attrs: Attrs,
    ) -> NodeId {
        self.order.take();
        let id = NodeId::new(self.nodes.len());
        let outputs = outputs.iter().enumerate().map(|(k, name)| {
            name.map(|name| self.add_value(name, Type::Unknown, Def::Node(id, k as u32)))
        });
        let outputs: Outputs = outputs.collect();
        let node = Node {
            op,
            name: name.into(),
            inputs: inputs.into_iter().collect(),
            outputs,
            captures: SmallVec::new(),
            attrs,
            notes: Notes::default(),
        };
        for (slot, v) in node.operands() {
            self.values[v.index()].uses.push(Use { node: id, slot });
        }
        self.nodes.push(Some(node));
        id
    }

    /// Adds a `metadata`-carrying output slot.
    pub fn add_output(&mut self, name: &str, value: ValueId) {
        self.values[value.index()].outputs += 1;
        self.outputs.push(Output {
            name: name.into(),
            value,
        });
    }

    // Editing.

    /// Removes all outputs and gives them.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        let outputs = std::mem::take(&mut self.outputs);
        for output in &outputs {
            self.values[output.value.index()].outputs -= 1;
        }
        outputs
    }

    /// Takes a use away. Uses are in no particular order, so the last takes its place.
    fn forget(&mut self, value: ValueId, gone: Use) {
        let uses = &mut self.values[value.index()].uses;
        if let Some(at) = uses.iter().position(|u| *u == gone) {
            uses.swap_remove(at);
        }
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        match &mut self.nodes[id.index()] {
            Some(node) => node,
            None => panic!("node {id:?} was removed"),
        }
    }

    pub fn set_type(&mut self, value: ValueId, ty: Type) {
        self.values[value.index()].ty = ty;
    }

    pub fn set_value_name(&mut self, value: ValueId, name: &str) {
        self.values[value.index()].name = name.into();
    }

    pub fn set_op(&mut self, node: NodeId, op: Op) {
        self.node_mut(node).op = op;
    }

    pub fn set_node_name(&mut self, node: NodeId, name: &str) {
        self.node_mut(node).name = name.into();
    }

    /// The node's attributes. Attributes that hold graphs may be edited in place; their captures stay as they are.
    pub fn attrs_mut(&mut self, node: NodeId) -> &mut Attrs {
        &mut self.node_mut(node).attrs
    }

    pub fn notes_mut(&mut self, node: NodeId) -> &mut Notes {
        &mut self.node_mut(node).notes
    }

    pub fn opsets_mut(&mut self) -> &mut Opsets {
        &mut self.opsets
    }

    /// Makes `node` read `value` at input `k`, growing its inputs if need be; `None` leaves the input out.
    pub fn set_input(&mut self, node: NodeId, k: usize, value: Option<ValueId>) {
        self.order.take();
        let slot = Slot::Input(k as u32);
        let inputs = &mut self.node_mut(node).inputs;
        if inputs.len() <= k {
            inputs.resize(k + 1, None);
        }
        let old = std::mem::replace(&mut inputs[k], value);
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        if let Some(old) = old {
            self.forget(old, Use { node, slot });
        }
        if let Some(new) = value {
            self.values[new.index()].uses.push(Use { node, slot });
        }
    }

    /// Replaces all operands of a node.
    pub fn set_inputs(&mut self, node: NodeId, inputs: Inputs) {
        self.order.take();
        let old = std::mem::replace(&mut self.node_mut(node).inputs, inputs);
        for (k, old) in old.into_iter().enumerate() {
            if let Some(old) = old {
                let slot = Slot::Input(k as u32);
                self.forget(old, Use { node, slot });
            }
        }
        for k in 0..self.node(node).inputs.len() {
            if let Some(v) = self.node(node).inputs[k] {
                let slot = Slot::Input(k as u32);
                self.values[v.index()].uses.push(Use { node, slot });
            }
        }
    }

    /// Adds a captured outer value to `node` and gives its position.
    pub fn push_capture(&mut self, node: NodeId, value: ValueId) -> usize {
        self.order.take();
        let captures = &mut self.node_mut(node).captures;
        let k = captures.len();
        captures.push(value);
        let slot = Slot::Capture(k as u32);
        self.values[value.index()].uses.push(Use { node, slot });
        k
    }

    /// Forgets the captures of a node that nothing in its nested graphs reads.
    pub fn drop_unused_captures(&mut self, node: NodeId) {
        let count = self.node(node).captures.len();
        let mut read = vec![false; count];
        for graph in self.node(node).attrs.iter().flat_map(|(_, a)| a.graphs()) {
            for (_, value) in graph.values() {
                if let Def::Capture(k) = value.def
                    && let Some(read) = read.get_mut(k as usize)
                {
                    *read |= !value.is_unused();
                }
            }
        }
        if read.iter().all(|r| *r) {
            return;
        }
        self.order.take();
        let old = std::mem::take(&mut self.node_mut(node).captures);
        let mut places = vec![None; count];
        for (k, v) in old.into_iter().enumerate() {
            let slot = Slot::Capture(k as u32);
            self.forget(v, Use { node, slot });
            if read[k] {
                places[k] = Some(self.push_capture(node, v) as u32);
            }
        }
        for attr in self.node_mut(node).attrs.values_mut() {
            for graph in attr.graphs_mut() {
                for value in &mut graph.values {
                    if let Def::Capture(k) = value.def {
                        let place = places.get(k as usize).copied().flatten();
                        value.def = place.map_or(Def::Removed, Def::Capture);
                    }
                }
            }
        }
    }

    /// Adds an output to a node that may leave it out.
    pub fn push_output(&mut self, node: NodeId, name: &str) -> ValueId {
        let k = self.node(node).outputs.len() as u32;
        let value = self.add_value(name, Type::Unknown, Def::Node(node, k));
        self.node_mut(node).outputs.push(Some(value));
        value
    }

    /// Everything that reads `old`, the graph's outputs included, reads `new` instead.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        if old == new {
            return;
        }
        self.order.take();
        let uses = std::mem::take(&mut self.values[old.index()].uses);
        for u in &uses {
            let node = self.node_mut(u.node);
            match u.slot {
                Slot::Input(k) => node.inputs[k as usize] = Some(new),
                Slot::Capture(k) => node.captures[k as usize] = new,
            }
        }
        self.values[new.index()].uses.extend(uses);
        let moved = std::mem::take(&mut self.values[old.index()].outputs);
        if moved > 0 {
            for output in self.outputs.iter_mut().filter(|o| o.value == old) {
                output.value = new;
            }
            self.values[new.index()].outputs += moved;
        }
    }

    /// Makes the graph's output at `k` give `value`.
    pub fn set_output_value(&mut self, k: usize, value: ValueId) {
        let old = std::mem::replace(&mut self.outputs[k].value, value);
        self.values[old.index()].outputs -= 1;
        self.values[value.index()].outputs += 1;
    }

    /// Makes one use read another value.
    pub fn set_use(&mut self, u: Use, value: ValueId) {
        self.order.take();
        match u.slot {
            Slot::Input(k) => self.set_input(u.node, k as usize, Some(value)),
            Slot::Capture(k) => {
                let captures = &mut self.node_mut(u.node).captures;
                let old = std::mem::replace(&mut captures[k as usize], value);
                self.forget(old, u);
                self.values[value.index()].uses.push(u);
            }
        }
    }

    /// Turns a value that a node computed into a constant; the node stays, with that output left out.
    pub fn make_constant(&mut self, value: ValueId, tensor: Tensor) {
        if let Def::Node(node, k) = self.values[value.index()].def {
            self.order.take();
            self.node_mut(node).outputs[k as usize] = None;
        }
        let dims = tensor.dims().iter().map(|&d| crate::Dim::Known(d));
        self.values[value.index()].ty = Type::tensor(tensor.dtype(), Some(dims.collect()));
        self.values[value.index()].def = Def::Constant(tensor);
    }

    /// Replaces the data of a constant, its type included.
    pub fn set_constant(&mut self, value: ValueId, tensor: Tensor) {
        self.make_constant(value, tensor);
    }

    /// Removes a node whose outputs nothing reads. Gives `false`, and does nothing, if something does.
    pub fn remove_node(&mut self, id: NodeId) -> bool {
        let node = self.node(id);
        if node
            .outputs
            .iter()
            .flatten()
            .any(|&v| !self.value(v).is_unused())
        {
            return false;
        }
        if let Some(node) = self.nodes[id.index()].take() {
            self.order.take();
            for (slot, v) in node.operands() {
                self.forget(v, Use { node: id, slot });
            }
            for v in node.outputs.iter().flatten() {
                self.values[v.index()].def = Def::Removed;
            }
        }
        true
    }

    /// Removes a constant or capture that nothing reads.
    pub fn remove_unused_value(&mut self, id: ValueId) -> bool {
        let value = &mut self.values[id.index()];
        let removable = value.is_unused() && matches!(value.def, Def::Constant(_));
        if removable {
            value.def = Def::Removed;
        }
        removable
    }

    /// Calls `f` on this graph and on every graph nested in it, innermost last.
    pub fn for_each_graph_mut(&mut self, f: &mut dyn FnMut(&mut Graph)) {
        f(self);
        for node in self.nodes.iter_mut().flatten() {
            for attr in node.attrs.values_mut() {
                for graph in attr.graphs_mut() {
                    graph.for_each_graph_mut(f);
                }
            }
        }
    }
}

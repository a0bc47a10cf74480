//! A change as a value: new nodes, and which old values they stand in for.

use kiln_graph::graph::Inputs;
use kiln_graph::{Attrs, Graph, Node, NodeId, Op, Tensor, ValueId};

use super::pass::Remark;

/// A value in a patch: one of the graph's, or one that the patch makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ref {
    Old(ValueId),
    New(usize),
}

impl From<ValueId> for Ref {
    fn from(v: ValueId) -> Ref {
        Ref::Old(v)
    }
}

#[derive(Debug)]
enum Step {
    Constant(Tensor, Ref0),
    Node {
        op: Op,
        inputs: Vec<Option<Ref>>,
        outputs: Vec<Option<Ref0>>,
        attrs: Attrs,
        stands_for: StandsFor,
    },
}

/// Index of a value that the patch makes.
type Ref0 = usize;

/// Which node's name a new one gets.
#[derive(Clone, Copy, Debug)]
enum StandsFor {
    /// The root's, with the operator behind it where the patch makes several nodes.
    Part,
    Root,
    Other(NodeId),
}

/// New nodes and replacements; applying it is the driver's business.
#[derive(Debug, Default)]
pub struct Patch {
    steps: Vec<Step>,
    made: usize,
    replaced: Vec<(ValueId, Ref)>,
    changed: Vec<ValueId>,
    remarks: Vec<Remark>,
}

/// A patch does not fit the graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' is a {old} and cannot be replaced by a {new}")]
pub struct SeamError {
    pub value: String,
    pub old: String,
    pub new: String,
}

impl Patch {
    pub fn new() -> Patch {
        Patch::default()
    }

    /// A patch that only makes readers of `old` read `new`.
    pub fn replacing(old: ValueId, new: impl Into<Ref>) -> Patch {
        let mut patch = Patch::new();
        patch.replace(old, new);
        patch
    }

    fn make(&mut self) -> usize {
        self.made += 1;
        self.made - 1
    }

    pub fn constant(&mut self, tensor: Tensor) -> Ref {
        let made = self.make();
        self.steps.push(Step::Constant(tensor, made));
        Ref::New(made)
    }

    /// A node with one output.
    pub fn node(&mut self, op: Op, inputs: impl IntoIterator<Item = Ref>, attrs: Attrs) -> Ref {
        self.node_with(op, inputs.into_iter().map(Some), 1, attrs)[0]
    }

    /// A node with optional inputs and several outputs.
    pub fn node_with(
        &mut self,
        op: Op,
        inputs: impl IntoIterator<Item = Option<Ref>>,
        outputs: usize,
        attrs: Attrs,
    ) -> Vec<Ref> {
        let inputs = inputs.into_iter().collect();
        self.push(op, inputs, outputs, attrs, StandsFor::Part)
    }

    /// A node with optional inputs that gives only the outputs at these places.
    pub fn node_giving(
        &mut self,
        op: Op,
        inputs: impl IntoIterator<Item = Option<Ref>>,
        places: &[usize],
        attrs: Attrs,
    ) -> Vec<Ref> {
        let count = places.iter().max().map_or(0, |last| last + 1);
        let inputs = inputs.into_iter().collect();
        let all = self.push(op, inputs, count, attrs, StandsFor::Part);
        if let Some(Step::Node { outputs, .. }) = self.steps.last_mut() {
            let left = outputs.iter_mut().enumerate();
            left.filter(|(k, _)| !places.contains(k))
                .for_each(|(_, output)| *output = None);
        }
        places.iter().map(|&k| all[k]).collect()
    }

    /// The root again on other inputs, with its name, operator and number of outputs.
    pub fn again(&mut self, root: &Node, inputs: Vec<Option<Ref>>, attrs: Attrs) -> Vec<Ref> {
        let outputs = root.outputs().len();
        self.push(root.op(), inputs, outputs, attrs, StandsFor::Root)
    }

    /// Another node than the root again on other inputs, with its name, operator, attributes and one output.
    pub fn remade(&mut self, g: &Graph, id: NodeId, inputs: impl IntoIterator<Item = Ref>) -> Ref {
        let node = g.node(id);
        let inputs = inputs.into_iter().map(Some).collect();
        let stands_for = StandsFor::Other(id);
        self.push(node.op(), inputs, 1, node.attrs().clone(), stands_for)[0]
    }

    fn push(
        &mut self,
        op: Op,
        inputs: Vec<Option<Ref>>,
        outputs: usize,
        attrs: Attrs,
        stands_for: StandsFor,
    ) -> Vec<Ref> {
        let made: Vec<usize> = (0..outputs).map(|_| self.make()).collect();
        let refs = made.iter().map(|&k| Ref::New(k)).collect();
        let outputs = made.into_iter().map(Some).collect();
        self.steps.push(Step::Node {
            op,
            inputs,
            outputs,
            attrs,
            stands_for,
        });
        refs
    }

    /// Everything that reads `old` will read `new`, whose type must not contradict.
    pub fn replace(&mut self, old: ValueId, new: impl Into<Ref>) {
        self.replaced.push((old, new.into()));
    }

    /// The numbers of `value` are others once the patch is applied, so it loses its name: values of one name are held against
    /// each other where two models are compared.
    pub fn change(&mut self, value: ValueId) {
        self.changed.push(value);
    }

    /// What a user should know once the patch is applied.
    pub fn remark(&mut self, remark: Remark) {
        self.remarks.push(remark);
    }

    pub(crate) fn take_remarks(&mut self) -> Vec<Remark> {
        std::mem::take(&mut self.remarks)
    }

    /// Applies the patch to the graph it was made for; new nodes are named after `root` and note `pass`. Nodes that
    /// nothing reads any more are removed, upwards from the replaced values.
    ///
    /// # Errors
    /// When dtype or shape contradict at a seam; nothing is changed then.
    pub fn apply(self, g: &mut Graph, root: NodeId, pass: &str) -> Result<(), SeamError> {
        for (old, new) in &self.replaced {
            if let Ref::Old(new) = new {
                let (old, new) = (g.value(*old), g.value(*new));
                if old.ty().conflicts(new.ty()) {
                    return Err(SeamError {
                        value: old.name().to_string(),
                        old: old.ty().to_string(),
                        new: new.ty().to_string(),
                    });
                }
            }
        }
        let name = g.node(root).name().to_string();
        let metadata = g.node(root).notes().metadata().to_vec();
        let mut made: Vec<Option<ValueId>> = vec![None; self.made];
        let resolve = |made: &[Option<ValueId>], r: Ref| match r {
            Ref::Old(v) => Some(v),
            Ref::New(k) => made[k],
        };
        let many = self
            .steps
            .iter()
            .filter(|s| matches!(s, Step::Node { .. }))
            .count()
            > 1;
        for step in self.steps {
            match step {
                Step::Constant(tensor, at) => made[at] = Some(g.add_constant("", tensor)),
                Step::Node {
                    op,
                    inputs,
                    outputs,
                    attrs,
                    stands_for,
                } => {
                    let inputs: Inputs = (inputs.into_iter())
                        .map(|r| r.and_then(|r| resolve(&made, r)))
                        .collect();
                    let label = match (name.as_str(), stands_for) {
                        (_, StandsFor::Other(id)) => g.node(id).name().to_string(),
                        ("", _) => String::new(),
                        (name, StandsFor::Part) if many => format!("{name}/{}", op.name()),
                        (name, _) => name.to_string(),
                    };
                    let names: Vec<Option<&str>> = outputs.iter().map(|o| o.map(|_| "")).collect();
                    let id = g.add_node_named(op, &label, inputs, &names, attrs);
                    let metadata = match stands_for {
                        StandsFor::Other(old) => g.node(old).notes().metadata().to_vec(),
                        _ => metadata.clone(),
                    };
                    for (key, value) in metadata {
                        g.notes_mut(id).set(&key, value);
                    }
                    g.notes_mut(id).set("kiln.pass", pass.to_string());
                    for (k, at) in outputs.into_iter().enumerate() {
                        if let Some(at) = at {
                            made[at] = g.node(id).output(k);
                        }
                    }
                }
            }
        }
        for value in self.changed {
            g.set_value_name(value, "");
        }
        let mut seeds = vec![root];
        for (old, new) in self.replaced {
            let Some(new) = resolve(&made, new) else {
                continue;
            };
            let ty = g.value(new).ty().refined_by(g.value(old).ty());
            if !matches!(g.value(new).def(), kiln_graph::Def::Constant(_)) {
                g.set_type(new, ty);
            }
            if g.value(new).name().is_empty() {
                let name = g.value(old).name().to_string();
                g.set_value_name(new, &name);
            }
            g.replace_uses(old, new);
            seeds.extend(g.producer(old));
        }
        remove_dead(g, seeds);
        Ok(())
    }
}

/// Removes these nodes, and then those only they read, as far as nothing reads their outputs. Gives the number removed.
pub(crate) fn remove_dead(g: &mut Graph, mut seeds: Vec<NodeId>) -> usize {
    let mut removed = 0;
    while let Some(id) = seeds.pop() {
        let Some(node) = g.get(id) else { continue };
        let operands: Vec<ValueId> = (node.inputs().iter().flatten().copied())
            .chain(node.captures().iter().copied())
            .collect();
        if !g.remove_node(id) {
            continue;
        }
        removed += 1;
        for v in operands {
            match g.producer(v) {
                Some(producer) => seeds.push(producer),
                None => {
                    g.remove_unused_value(v);
                }
            }
        }
    }
    removed
}

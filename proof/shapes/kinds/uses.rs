//! What the nodes that read an input, or what is computed from it, ask of its numbers.

use bytes::Bytes;
use kiln_graph::graph::Slot;
use kiln_graph::{DType, Def, Graph, Node, NodeId, Tensor, ValueId, ops};
use rustc_hash::FxHashSet;

use super::operands::{Argument, argument, passes, table};
use super::worlds::{mask_operands, uniform};

/// What the graph does with an input.
#[derive(Clone, Debug, Default)]
pub(super) struct Uses {
    /// Numbers from here on are beyond the end of the smallest table that it indexes.
    pub table: Option<i64>,
    /// It indexes something whose length is known only when it runs.
    pub open: bool,
    /// What that is, as far as it is a value of the outermost graph.
    pub indexed: Vec<Indexed>,
    /// Texts that it is compared with.
    pub words: Vec<Bytes>,
    /// What it is compared with for equality.
    pub equal: Vec<f64>,
    /// What it is held against as a bound.
    pub bounds: Vec<f64>,
    /// Those of them by which it is divided for the rest.
    pub moduli: Vec<f64>,
    /// What it is compared with is computed, at this node of the outermost graph; and the factor that it has there.
    pub versus: Option<(NodeId, f64)>,
    /// It is a condition, or part of one.
    pub decides: bool,
    /// An If has it, or what is computed from it, as its condition.
    pub branches: bool,
    /// It is an argument that says how much, how many or where.
    pub argument: Option<Argument>,
    /// A sine or a cosine of it is taken.
    pub waves: bool,
    /// It is read as a mask.
    pub masks: bool,
    /// Its numbers are added up one after the other, as places are counted by a mask.
    pub counts: bool,
    /// It is multiplied with weights, or convolved: numbers of the world.
    pub data: bool,
    /// It is divided by, or its root or logarithm is taken.
    pub positive: bool,
    /// It counts bytes of an image: the graph brings it from 0 to 255 to the size of one.
    pub levels: bool,
    /// The smallest factor, by its size, that brings it to the numbers computed with.
    pub scale: Option<f64>,
    /// The least and the largest number that a quantization of it holds.
    pub range: Option<(f64, f64)>,
}

/// An axis of open size that `factor` times a number of the input, and `addend`, is a place on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Indexed {
    pub of: ValueId,
    pub axis: i64,
    pub factor: f64,
    pub addend: f64,
}

/// A number of the input as it is where it is read: `scale · x + offset`, if that is known.
#[derive(Clone, Copy, Debug)]
struct Affine {
    scale: f64,
    offset: f64,
    exact: bool,
}

impl Affine {
    const SAME: Affine = Affine {
        scale: 1.0,
        offset: 0.0,
        exact: true,
    };

    fn lost(self) -> Affine {
        Affine {
            exact: false,
            ..self
        }
    }

    /// The number of the input that is `y` here.
    fn back(self, y: f64) -> Option<f64> {
        let x = (y - self.offset) / self.scale;
        (self.exact && x.is_finite()).then_some(x)
    }
}

/// A graph, and for a body the node that it belongs to.
#[derive(Clone, Copy)]
struct Scope<'a> {
    graph: &'a Graph,
    owner: Option<(usize, NodeId)>,
}

/// Values that are looked at.
const MOST: usize = 2048;
/// Constants that it is compared with, of which all are kept.
const KEPT: usize = 64;

/// Follows an input of the outermost graph.
pub(super) fn uses(graph: &Graph, input: ValueId) -> Uses {
    let mut walk = Walk {
        scopes: vec![Scope { graph, owner: None }],
        todo: vec![(0, input, Affine::SAME)],
        seen: FxHashSet::default(),
        found: Uses::default(),
    };
    while let Some((scope, v, at)) = walk.todo.pop() {
        if walk.seen.len() < MOST && walk.seen.insert((scope, v)) {
            walk.value(scope, v, at);
        }
    }
    let found = &mut walk.found;
    for numbers in [&mut found.equal, &mut found.bounds] {
        numbers.sort_by(f64::total_cmp);
        numbers.dedup();
    }
    walk.found
}

struct Walk<'a> {
    scopes: Vec<Scope<'a>>,
    todo: Vec<(usize, ValueId, Affine)>,
    seen: FxHashSet<(usize, ValueId)>,
    found: Uses,
}

impl<'a> Walk<'a> {
    fn value(&mut self, scope: usize, v: ValueId, at: Affine) {
        let Scope { graph, owner } = self.scopes[scope];
        for u in graph.value(v).uses() {
            match u.slot {
                Slot::Capture(k) => self.captured(scope, u.node, k, at),
                Slot::Input(k) => {
                    self.read(scope, u.node, k as usize, at);
                    self.carried(scope, u.node, k as usize, at);
                }
            }
        }
        // What a body gives is what its node gives.
        if let (true, Some((outer, id))) = (graph.value(v).is_output(), owner) {
            let node = self.scopes[outer].graph.node(id);
            let shift = usize::from(node.op().is("Loop"));
            for (k, output) in graph.outputs().iter().enumerate() {
                let out = k.checked_sub(shift).and_then(|k| node.output(k));
                if let (true, Some(out)) = (output.value == v, out) {
                    self.todo.push((outer, out, at));
                }
            }
        }
    }

    /// A constant, of a graph around this one too.
    fn constant(&self, scope: usize, v: ValueId) -> Option<&'a Tensor> {
        let Scope { graph, owner } = self.scopes[scope];
        match (graph.value(v).def(), owner) {
            (Def::Capture(k), Some((outer, node))) => {
                let captures = self.scopes[outer].graph.node(node).captures();
                self.constant(outer, *captures.get(*k as usize)?)
            }
            _ => graph.constant(v),
        }
    }

    fn bodies(&mut self, scope: usize, id: NodeId) -> Vec<usize> {
        let graph: &'a Graph = self.scopes[scope].graph;
        let mut found = Vec::new();
        for (_, attr) in graph.node(id).attrs().iter() {
            for body in attr.graphs() {
                let known = self.scopes.iter().position(|s| std::ptr::eq(s.graph, body));
                found.push(known.unwrap_or_else(|| {
                    self.scopes.push(Scope {
                        graph: body,
                        owner: Some((scope, id)),
                    });
                    self.scopes.len() - 1
                }));
            }
        }
        found
    }

    fn captured(&mut self, scope: usize, id: NodeId, k: u32, at: Affine) {
        for body in self.bodies(scope, id) {
            let graph = self.scopes[body].graph;
            for (v, value) in graph.values() {
                if matches!(value.def(), Def::Capture(c) if *c == k) {
                    self.todo.push((body, v, at));
                }
            }
        }
    }

    /// Inputs of Loop and Scan are inputs of their bodies.
    fn carried(&mut self, scope: usize, id: NodeId, k: usize, at: Affine) {
        let op = self.scopes[scope].graph.node(id).op();
        let place = match op.name() {
            "Loop" if op.is("Loop") && k >= 2 => k,
            "Scan" if op.is("Scan") => k,
            _ => return,
        };
        for body in self.bodies(scope, id) {
            if let Some(&v) = self.scopes[body].graph.inputs().get(place) {
                self.todo.push((body, v, at.lost()));
            }
        }
    }

    fn on(&mut self, scope: usize, node: &Node, at: Affine) {
        for v in node.outputs().iter().flatten() {
            self.todo.push((scope, *v, at));
        }
    }

    fn read(&mut self, scope: usize, id: NodeId, k: usize, at: Affine) {
        let g = self.scopes[scope].graph;
        let node = g.node(id);
        let op = node.op();
        if mask_operands(op.domain(), op.name()).contains(&k) {
            self.found.masks = true;
        }
        if let Some(argument) = argument(g, node, k) {
            let known = self.found.argument.get_or_insert(argument);
            // What must be right somewhere counts before what may be anything.
            if *known == Argument::Zero {
                *known = argument;
            }
            return;
        }
        if let Some((of, axis, rows)) = table(g, node, k) {
            if let (0, Some(of), None) = (scope, of, rows)
                && at.exact
                && at.scale > 0.0
            {
                self.found.indexed.push(Indexed {
                    of,
                    axis,
                    factor: at.scale,
                    addend: at.offset,
                });
            }
            return self.index(rows, at);
        }
        match (op.domain(), op.name()) {
            ("", name) if passes(name, k) => self.on(scope, node, at),
            ("", "Add" | "Sub" | "Mul" | "Div" | "Neg") => self.arithmetic(scope, id, k, at),
            ("", "Equal") => {
                self.compare(scope, id, k, at, true);
                self.truth(scope, node);
            }
            ("", "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual") => {
                self.compare(scope, id, k, at, false);
                self.truth(scope, node);
            }
            ("", "Min" | "Max" | "Clip" | "Mod") => {
                self.compare(scope, id, k, at, false);
                self.on(scope, node, at.lost());
            }
            ("", "If") if k == 0 => {
                self.found.decides = true;
                self.found.branches = true;
            }
            ("", "Where") if k == 0 => self.found.decides = true,
            ("", "Loop") if k == 1 => self.found.decides = true,
            ("", "Not") => self.on(scope, node, at.lost()),
            ("", name) if name.starts_with("Reduce") => {
                let single = |v| {
                    let dims = g.value(v).ty().shape()?;
                    Some(dims.iter().all(|d| d.known() == Some(1)))
                };
                // Of one number, the sum, the mean and the largest are that.
                match node.input(0).and_then(single) {
                    Some(true) if !name.contains("L") => self.on(scope, node, at),
                    _ => self.found.data = true,
                }
            }
            ("", "And" | "Or" | "Xor") => {
                self.found.decides = true;
                self.on(scope, node, at.lost());
            }
            ("", "QuantizeLinear") if k == 0 => {
                self.found.data = true;
                self.quantized(g, id, at);
            }
            ("", "Sin" | "Cos") => self.found.waves = true,
            ("", "Sqrt" | "Log" | "Reciprocal" | "Pow") => {
                self.found.positive = true;
                self.on(scope, node, at.lost());
            }
            ("", "CumSum") => {
                self.found.data = true;
                self.found.counts = true;
            }
            ("", "Sign") => {
                self.found.equal.extend(at.back(0.0));
                self.on(scope, node, at.lost());
            }
            ("", "Abs" | "LeakyRelu" | "PRelu" | "Relu" | "Sigmoid" | "Softplus" | "Tanh")
                if k == 0 && at.exact && at.offset != 0.0 =>
            {
                // Where it is zero here, one side becomes the other.
                self.found.bounds.extend(at.back(0.0));
                self.on(scope, node, at.lost());
            }
            ("", "Floor" | "Ceil" | "Round" | "Abs" | "Exp") => self.on(scope, node, at.lost()),
            ("", "MatMul" | "Gemm" | "Einsum") => {
                self.found.data = true;
                self.wave(scope, node);
            }
            _ => self.found.data = true,
        }
    }

    /// What somebody measured of real inputs, where it was quantized.
    fn quantized(&mut self, g: &Graph, id: NodeId, at: Affine) {
        let range = range(g, id).map(|ends| ends.map(|y| at.back(y)));
        let Some([Some(a), Some(b)]) = range else {
            return;
        };
        let (low, high) = self.found.range.unwrap_or((a, a));
        self.found.range = Some((low.min(a).min(b), high.max(a).max(b)));
    }

    /// What a comparison gives may be a condition, as it is or beside others.
    fn truth(&mut self, scope: usize, node: &Node) {
        let g = self.scopes[scope].graph;
        let mut todo: Vec<ValueId> = node.outputs().iter().flatten().copied().collect();
        for _ in 0..16 {
            let Some(v) = todo.pop() else { return };
            for u in g.value(v).uses() {
                let next = g.node(u.node);
                let op = next.op();
                self.found.branches |= op.is("If") && u.slot == Slot::Input(0);
                if passes(op.name(), 0) || op.is_any(&["Not", "And", "Or", "Xor"]) {
                    todo.extend(next.outputs().iter().flatten());
                }
            }
        }
    }

    /// Behind a product with frequencies there are sines and cosines, or there is nothing to see.
    fn wave(&mut self, scope: usize, node: &Node) {
        let g = self.scopes[scope].graph;
        let mut todo: Vec<ValueId> = node.outputs().iter().flatten().copied().collect();
        for _ in 0..16 {
            let Some(v) = todo.pop() else { return };
            for u in g.value(v).uses() {
                let next = g.node(u.node);
                let op = next.op();
                self.found.waves |= op.is_any(&["Sin", "Cos"]);
                if passes(op.name(), 0) || op.is("Concat") {
                    todo.extend(next.outputs().iter().flatten());
                }
            }
        }
    }

    fn index(&mut self, rows: Option<i64>, at: Affine) {
        let last = rows.and_then(|rows| at.back(rows as f64 - 1.0));
        match last {
            Some(last) if at.scale > 0.0 => {
                let upper = (last.floor() as i64).saturating_add(1);
                self.found.table = Some(self.found.table.map_or(upper, |t| t.min(upper)));
            }
            _ => self.found.open = true,
        }
    }

    fn arithmetic(&mut self, scope: usize, id: NodeId, k: usize, at: Affine) {
        let g = self.scopes[scope].graph;
        let node = g.node(id);
        let other = match node.inputs().len() {
            2 => node.input(1 - k.min(1)),
            _ => None,
        };
        let number = other.and_then(|v| g.constant(v)).and_then(uniform);
        let name = node.op().name();
        let Affine {
            scale,
            offset,
            exact,
        } = at;
        let next = match (name, number) {
            ("Neg", _) => Affine {
                scale: -scale,
                offset: -offset,
                exact,
            },
            ("Add", Some(c)) => Affine {
                scale,
                offset: offset + c,
                exact,
            },
            ("Sub", Some(c)) if k == 0 => Affine {
                scale,
                offset: offset - c,
                exact,
            },
            ("Sub", Some(c)) => Affine {
                scale: -scale,
                offset: c - offset,
                exact,
            },
            ("Mul", Some(c)) if c != 0.0 => Affine {
                scale: scale * c,
                offset: offset * c,
                exact,
            },
            ("Div", Some(c)) if k == 0 && c != 0.0 => {
                self.found.levels |= exact && scale == 1.0 && offset == 0.0 && c >= 127.0;
                Affine {
                    scale: scale / c,
                    offset: offset / c,
                    exact,
                }
            }
            _ => {
                self.found.positive |= name == "Div" && k == 1;
                at.lost()
            }
        };
        if next.exact && next.scale != scale {
            let factor = next.scale.abs();
            self.found.scale = Some(self.found.scale.map_or(factor, |s| s.min(factor)));
        }
        if name == "Mul" && exact && next.exact && scale == 1.0 && offset == 0.0 {
            self.found.levels |= (1.0 / 512.0..=1.0 / 127.0).contains(&next.scale);
        }
        // Beside what is computed, a float is one of many operands.
        let joins = number.is_none() && other.is_some_and(|v| g.constant(v).is_none());
        let floats = (node.sole_output()).and_then(|v| g.value(v).ty().dtype());
        if joins && floats.is_some_and(DType::is_float) {
            self.found.data = true;
            return self.wave(scope, node);
        }
        self.on(scope, node, next);
    }

    fn compare(&mut self, scope: usize, id: NodeId, k: usize, at: Affine, equal: bool) {
        let g = self.scopes[scope].graph;
        let node = g.node(id);
        for (other, v) in node.inputs().iter().enumerate() {
            let Some(v) = v.filter(|_| other != k) else {
                continue;
            };
            let Some(tensor) = self.constant(scope, v) else {
                if scope == 0 && self.found.versus.is_none() && node.op().name() != "Mod" {
                    self.found.versus = Some((id, at.scale));
                }
                continue;
            };
            if let Some(texts) = tensor.strings().filter(|t| t.len() <= KEPT) {
                let new = texts.iter().filter(|t| !self.found.words.contains(t));
                let new: Vec<Bytes> = new.cloned().collect();
                self.found.words.extend(new);
            }
            let numbers = match tensor.len() <= KEPT {
                true => numbers(tensor),
                false => Vec::new(),
            };
            let back: Vec<f64> = numbers.into_iter().filter_map(|y| at.back(y)).collect();
            if node.op().name() == "Mod" {
                self.found.moduli.extend(&back);
            }
            match equal {
                true => self.found.equal.extend(back),
                false => self.found.bounds.extend(back),
            }
        }
        if equal || node.op().name() != "Mod" {
            self.found.decides |= !node.op().is_any(&["Min", "Max", "Clip"]);
        }
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let ints = || Some(tensor.to_i64s()?.into_iter().map(|n| n as f64).collect());
    tensor.to_f64s().or_else(ints).unwrap_or_default()
}

/// The least and the largest number of a quantization of one scale.
fn range(g: &Graph, id: NodeId) -> Option<[f64; 2]> {
    let quantize = ops::QuantizeLinear::of(g, id)?;
    let (least, most) = match quantize.to()? {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        DType::U16 => (0.0, 65535.0),
        DType::I16 => (-32768.0, 32767.0),
        _ => return None,
    };
    let scale = g.constant(quantize.scale()?)?.as_f64()?;
    let zero = match quantize.zero_point() {
        Some(zero) => g.constant(zero)?.as_i64()? as f64,
        None => 0.0,
    };
    let real = [least, most].map(|q| (q - zero) * scale);
    real.iter().all(|x| x.is_finite()).then_some(real)
}

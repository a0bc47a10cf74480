//! Random graphs: a program is a list of small numbers, each step of which makes a few nodes out of the values there are, or none.
//! So any part of a program is one too, and can be shrunk to.

#![allow(clippy::manual_is_multiple_of)]

mod arithmetic;
mod blocks;
mod layout;
mod products;

use std::f64::consts::SQRT_2;
use std::fmt::Write as _;

use kiln_graph::text::{self, PrintOptions};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub struct Step {
    op: u8,
    /// Operands, counted from the last value that was made.
    a: u8,
    b: u8,
    p: [u8; 3],
}

#[derive(Clone, Debug)]
pub struct Program {
    opset: u8,
    width: u8,
    /// The first two dimensions of the inputs have names instead of sizes.
    symbolic: bool,
    steps: Vec<Step>,
}

pub fn programs() -> impl Strategy<Value = Program> {
    let step = (any::<u8>(), 0u8..6, 0u8..12, any::<[u8; 3]>());
    let step = step.prop_map(|(op, a, b, p)| Step { op, a, b, p });
    (any::<u8>(), any::<u8>(), any::<bool>(), vec(step, 1..14)).prop_map(
        |(opset, width, symbolic, steps)| Program {
            opset,
            width,
            symbolic,
            steps,
        },
    )
}

/// Kinds of steps.
const KINDS: u8 = 36;

const OPSETS: [i64; 3] = [13, 18, 20];

#[derive(Clone, Debug)]
struct Value {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

struct Builder {
    opset: i64,
    values: Vec<Value>,
    constants: String,
    nodes: String,
    read: Vec<bool>,
    made: usize,
    random: u64,
}

/// The graph of a program, as ONNX text.
pub fn text(program: &Program) -> String {
    let width = [4, 8, 6][program.width as usize % 3];
    let mut b = Builder {
        opset: OPSETS[program.opset as usize % OPSETS.len()],
        values: Vec::new(),
        constants: String::new(),
        nodes: String::new(),
        read: Vec::new(),
        made: 0,
        random: 0x9e37_79b9,
    };
    // `common::specs` gives symbols the sizes 2, 3, … in the order of their names.
    let (n, s) = match program.symbolic {
        true => ("b", "s"),
        false => ("2", "3"),
    };
    let inputs = [
        ("x", "float", vec![2, 3, width]),
        ("w", "float", vec![2, 3, width]),
        ("keep", "bool", vec![2, 3]),
        ("ids", "int64", vec![2, 3]),
    ];
    let mut declared = Vec::new();
    for (name, dtype, shape) in inputs {
        let dims = match shape.len() {
            3 => format!("{n}, {s}, {width}"),
            _ => format!("{n}, {s}"),
        };
        declared.push(format!("{dtype}[{dims}] {name}"));
        b.values.push(Value {
            name: name.into(),
            dtype,
            shape,
        });
        b.read.push(false);
    }
    // So that ids are indices into a table.
    let table = b.constant("float", &[5, width]);
    b.emit("Gather", &[&table, "ids"], "float", vec![2, 3, width]);
    for step in &program.steps {
        b.step(step);
    }
    let unread: Vec<usize> = (4..b.values.len()).filter(|&k| !b.read[k]).collect();
    let outputs: Vec<String> = (unread.iter())
        .map(|&k| format!("{}[] {}", b.values[k].dtype, b.values[k].name))
        .collect();
    // Every input is one of the model, whether anything reads it or not.
    format!(
        "<ir_version: 8, opset_import: [\"\" : {}]>\ng ({}) => ({})\n<{}>\n{{\n{}}}\n",
        b.opset,
        declared.join(", "),
        outputs.join(", "),
        b.constants.trim_end_matches([',', ' ']),
        b.nodes
    )
}

fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], k: usize| match (k + s.len()).checked_sub(rank) {
        Some(k) => s[k],
        None => 1,
    };
    let dims = (0..rank).map(|k| match (at(a, k), at(b, k)) {
        (x, y) if x == y => Some(x),
        (1, y) => Some(y),
        (x, 1) => Some(x),
        _ => None,
    });
    dims.collect()
}

fn list(values: impl IntoIterator<Item = impl ToString>) -> String {
    let parts: Vec<String> = values.into_iter().map(|v| v.to_string()).collect();
    parts.join(", ")
}

impl Builder {
    fn next(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.random >> 33
    }

    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("v{}", self.made)
    }

    /// An initializer of small floats.
    fn constant(&mut self, dtype: &str, shape: &[usize]) -> String {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f64> = (0..count)
            .map(|_| (self.next() % 400) as f64 / 200.0 - 1.0)
            .collect();
        self.literal(
            dtype,
            shape,
            &list(numbers.iter().map(|v| format!("{v:?}"))),
        )
    }

    fn literal(&mut self, dtype: &str, shape: &[usize], numbers: &str) -> String {
        let name = format!("c{}", self.fresh());
        let dims = match shape.is_empty() {
            true => String::new(),
            false => format!("[{}]", list(shape)),
        };
        let _ = write!(self.constants, "{dtype}{dims} {name} = {{{numbers}}}, ");
        name
    }

    fn ints(&mut self, values: &[i64]) -> String {
        self.literal("int64", &[values.len()], &list(values))
    }

    fn scalar(&mut self, dtype: &str, value: f64) -> String {
        self.literal(dtype, &[], &format!("{value:?}"))
    }

    /// A node with one output, which becomes a value that later steps can read.
    fn emit(
        &mut self,
        op: &str,
        inputs: &[&str],
        dtype: &'static str,
        shape: Vec<usize>,
    ) -> String {
        let name = self.fresh();
        let _ = writeln!(self.nodes, "  {name} = {op}({})", inputs.join(", "));
        for (k, v) in self.values.iter().enumerate() {
            self.read[k] |= inputs.contains(&v.name.as_str());
        }
        self.values.push(Value {
            name: name.clone(),
            dtype,
            shape,
        });
        self.read.push(false);
        name
    }

    /// The nearest value that fits.
    fn find(&self, back: u8, fits: impl Fn(&Value) -> bool) -> Option<Value> {
        let mut all: Vec<&Value> = self.values.iter().rev().filter(|v| fits(v)).collect();
        match all.is_empty() {
            true => None,
            false => Some(all.swap_remove(back as usize % all.len()).clone()),
        }
    }

    fn float(&self, back: u8) -> Option<Value> {
        self.find(back, |v| matches!(v.dtype, "float" | "double"))
    }

    fn reduce(&mut self, op: &str, x: &Value, axes: &[i64], keep: bool) -> String {
        let rank = x.shape.len() as i64;
        let hit: Vec<usize> = axes.iter().map(|a| a.rem_euclid(rank) as usize).collect();
        let shape =
            (x.shape.iter().enumerate()).filter_map(|(k, &d)| match (hit.contains(&k), keep) {
                (true, true) => Some(1),
                (true, false) => None,
                _ => Some(d),
            });
        let shape = shape.collect();
        let keep = i64::from(keep);
        if self.opset < 18 && op != "ReduceSum" {
            let call = format!("{op}<axes = [{}], keepdims = {keep}>", list(axes));
            return self.emit(&call, &[&x.name], x.dtype, shape);
        }
        let axes = self.ints(axes);
        self.emit(
            &format!("{op}<keepdims = {keep}>"),
            &[&x.name, &axes],
            x.dtype,
            shape,
        )
    }

    fn last(&self) -> Value {
        self.values[self.values.len() - 1].clone()
    }

    fn step(&mut self, step: &Step) {
        let Some(x) = self.float(step.a) else { return };
        match step.op % KINDS {
            0..=6 | 25 | 26 => self.arithmetic(&x, step),
            7..=11 | 23 | 24 => self.products(&x, step),
            27..=33 => self.blocks(&x, step),
            _ => self.layout(&x, step),
        }
        // Large graphs of large values say no more.
        if self.last().shape.iter().product::<usize>() > 4096 {
            self.read[self.values.len() - 1] = false;
        }
    }
}

/// The same graph with its nodes and initializers in the opposite order, and other names inside.
pub fn shuffled(source: &str) -> String {
    let mut model = text::parse_model(source).expect("a graph that parsed before");
    let graph = model.graph.as_mut().expect("a model with a graph");
    graph.node.reverse();
    graph.initializer.reverse();
    let ports: Vec<String> = (graph.input.iter().chain(&graph.output))
        .filter_map(|v| v.name.clone())
        .collect();
    let rename = |name: &mut String| {
        if !name.is_empty() && !ports.contains(name) {
            // Sorts otherwise than before.
            *name = format!("r{}", name.chars().rev().collect::<String>());
        }
    };
    for node in &mut graph.node {
        node.input
            .iter_mut()
            .chain(&mut node.output)
            .for_each(rename);
    }
    for tensor in &mut graph.initializer {
        tensor.name.iter_mut().for_each(rename);
    }
    text::print_model(&model, &PrintOptions::default())
}

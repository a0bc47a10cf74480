//! Random graphs: a program is a list of small numbers, each step of which makes a few nodes out of the values there are, or none.
//! So any part of a program is one too, and can be shrunk to.

#![allow(clippy::manual_is_multiple_of)]

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
        let [p, q, r] = step.p.map(usize::from);
        let Some(x) = self.float(step.a) else { return };
        let (name, rank, dtype) = (x.name.as_str(), x.shape.len(), x.dtype);
        let last = x.shape.last().copied().unwrap_or(1);
        let axis = if rank > 0 { p % rank } else { 0 };
        // Axes are written either way.
        let spelled = |axis: usize| axis as i64 - if q % 2 == 0 { rank as i64 } else { 0 };
        match step.op % 36 {
            0 => {
                let op = [
                    "Tanh", "Sigmoid", "Erf", "Neg", "Abs", "Relu", "Identity", "Sin",
                ][p % 8];
                // Double has few kernels.
                if dtype == "float" || ["Tanh", "Sigmoid", "Neg", "Abs", "Identity"].contains(&op) {
                    self.emit(op, &[name], dtype, x.shape.clone());
                }
            }
            1 | 2 => {
                let op = ["Add", "Mul", "Sub", "Add"][p % 4];
                let fits = |v: &Value| v.dtype == dtype && broadcast(&v.shape, &x.shape).is_some();
                if let Some(y) = self.find(step.b, fits) {
                    let shape = broadcast(&y.shape, &x.shape).unwrap_or_default();
                    let order = if q % 2 == 0 {
                        [name, &y.name]
                    } else {
                        [&y.name, name]
                    };
                    self.emit(op, &order, dtype, shape);
                }
            }
            3 | 4 => {
                let op = ["Add", "Mul", "Sub", "Div", "Max", "Min"][p % 6];
                let shape = match q % 4 {
                    0 => vec![],
                    1 => vec![1],
                    2 => vec![last],
                    _ => [vec![1; rank.saturating_sub(1)], vec![last]].concat(),
                };
                let c = match (op, r % 4) {
                    ("Div", _) => self.scalar(dtype, [0.5, 2.0, 3.0, SQRT_2][r % 4]),
                    ("Mul", 0) => self.scalar(dtype, 1.0),
                    ("Add" | "Sub", 0) => self.scalar(dtype, 0.0),
                    _ => self.constant(dtype, &shape),
                };
                let shape = if op == "Div" || r % 4 == 0 {
                    vec![]
                } else {
                    shape
                };
                let shape = broadcast(&shape, &x.shape).unwrap_or_default();
                let back = r % 8 >= 4 && op != "Div";
                let order = if back {
                    [c.as_str(), name]
                } else {
                    [name, c.as_str()]
                };
                self.emit(op, &order, dtype, shape);
            }
            5 => {
                let exponent = self.scalar(dtype, [2.0, 1.0, 3.0, 0.0][p % 4]);
                self.emit("Pow", &[name, &exponent], dtype, x.shape.clone());
            }
            6 => {
                // A root of something positive.
                let square = self.emit("Mul", &[name, name], dtype, x.shape.clone());
                let one = self.scalar(dtype, 1.0);
                let sum = self.emit("Add", &[&square, &one], dtype, x.shape.clone());
                let root = self.emit("Sqrt", &[&sum], dtype, x.shape.clone());
                if p % 2 == 0 {
                    self.emit("Reciprocal", &[&root], dtype, x.shape.clone());
                } else if p % 3 == 0 {
                    self.emit("Div", &[name, &root], dtype, x.shape.clone());
                }
            }
            7 | 8 if rank > 0 => {
                let op = ["Softmax", "Softmax", "LogSoftmax"][r % 3];
                self.emit(
                    &format!("{op}<axis = {}>", spelled(axis)),
                    &[name],
                    dtype,
                    x.shape.clone(),
                );
            }
            9 | 10 if rank > 0 => {
                let columns = [4, 6, 8][p % 3];
                let weight = self.constant(dtype, &[last, columns]);
                let shape = [&x.shape[..rank - 1], &[columns]].concat();
                let made = match rank == 2 && q % 2 == 0 && dtype == "float" {
                    true => {
                        let bias = self.constant(dtype, &[columns]);
                        self.emit("Gemm", &[name, &weight, &bias], dtype, shape.clone())
                    }
                    false => self.emit("MatMul", &[name, &weight], dtype, shape.clone()),
                };
                if r % 2 == 0 {
                    let bias = self.constant(dtype, &[columns]);
                    self.emit("Add", &[&made, &bias], dtype, shape);
                }
            }
            11 if rank >= 2 => {
                // A product with a transposed value of the same shape.
                let fits = |v: &Value| v.dtype == dtype && v.shape == x.shape;
                let Some(y) = self.find(step.b, fits) else {
                    return;
                };
                let mut perm: Vec<usize> = (0..rank).collect();
                perm.swap(rank - 2, rank - 1);
                let mut turned = x.shape.clone();
                turned.swap(rank - 2, rank - 1);
                let t = self.emit(
                    &format!("Transpose<perm = [{}]>", list(&perm)),
                    &[&y.name],
                    dtype,
                    turned,
                );
                let rows = x.shape[rank - 2];
                let shape = [&x.shape[..rank - 2], &[rows, rows]].concat();
                self.emit("MatMul", &[name, &t], dtype, shape);
            }
            12 | 13 if rank >= 2 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                perm.swap(axis, q % rank);
                if r % 3 == 0 {
                    perm.rotate_left(1);
                }
                let shape = perm.iter().map(|&k| x.shape[k]).collect();
                self.emit(
                    &format!("Transpose<perm = [{}]>", list(&perm)),
                    &[name],
                    dtype,
                    shape,
                );
            }
            14 | 15 => self.reshape(&x, p, q, r),
            16 if rank > 0 => {
                let size = x.shape[axis] as i64;
                let (from, to) = (r as i64 % size, size - (r as i64 / 8) % 2);
                if from >= to {
                    return;
                }
                let stride = 1 + (q / 2) as i64 % 2;
                let end = if r % 5 == 0 && to == size {
                    i64::MAX
                } else {
                    to
                };
                let start = if q % 3 == 0 { from - size } else { from };
                let parts = [vec![start], vec![end], vec![spelled(axis)], vec![stride]];
                let parts = parts.map(|v| self.ints(&v));
                let mut shape = x.shape.clone();
                shape[axis] = (to - from + stride - 1) as usize / stride as usize;
                self.emit(
                    "Slice",
                    &[name, &parts[0], &parts[1], &parts[2], &parts[3]],
                    dtype,
                    shape,
                );
            }
            17 if rank > 0 => {
                let fits = |v: &Value| v.dtype == dtype && v.shape == x.shape;
                if let Some(y) = self.find(step.b, fits) {
                    let mut shape = x.shape.clone();
                    shape[axis] *= 2;
                    self.emit(
                        &format!("Concat<axis = {}>", spelled(axis)),
                        &[name, &y.name],
                        dtype,
                        shape,
                    );
                }
            }
            18 if rank > 0 && x.shape[axis] % 2 == 0 => {
                let half = x.shape[axis] / 2;
                let mut shape = x.shape.clone();
                shape[axis] = half;
                let (first, second) = (self.fresh(), self.fresh());
                let sizes = self.ints(&[half as i64, half as i64]);
                let _ = writeln!(
                    self.nodes,
                    "  {first}, {second} = Split<axis = {}>({name}, {sizes})",
                    spelled(axis)
                );
                for (k, v) in self.values.iter().enumerate() {
                    self.read[k] |= v.name == name;
                }
                for name in [&first, &second] {
                    self.values.push(Value {
                        name: name.clone(),
                        dtype,
                        shape: shape.clone(),
                    });
                    self.read.push(false);
                }
                match r % 4 {
                    // As rotary embeddings turn halves.
                    0 => {
                        let neg = self.emit("Neg", &[&second], dtype, shape.clone());
                        self.emit(
                            &format!("Concat<axis = {}>", spelled(axis)),
                            &[&neg, &first],
                            dtype,
                            x.shape.clone(),
                        );
                    }
                    1 => drop(self.emit("Add", &[&first, &second], dtype, shape)),
                    2 => drop(self.emit(
                        &format!("Concat<axis = {}>", spelled(axis)),
                        &[&first, &second],
                        dtype,
                        x.shape.clone(),
                    )),
                    _ => {}
                }
            }
            19 if rank > 0 => {
                let size = x.shape[axis] as i64;
                let mut shape = x.shape.clone();
                let index = match r % 3 {
                    0 => {
                        shape.remove(axis);
                        self.literal("int64", &[], &(r as i64 % size).to_string())
                    }
                    _ => {
                        shape[axis] = 2;
                        self.ints(&[r as i64 % size, -1])
                    }
                };
                self.emit(
                    &format!("Gather<axis = {}>", spelled(axis)),
                    &[name, &index],
                    dtype,
                    shape,
                );
            }
            20 => {
                let at = p % (rank + 1);
                let axes = self.ints(&[if q % 2 == 0 {
                    at as i64
                } else {
                    at as i64 - rank as i64 - 1
                }]);
                let mut shape = x.shape.clone();
                shape.insert(at, 1);
                if shape.len() <= 5 {
                    self.emit("Unsqueeze", &[name, &axes], dtype, shape);
                }
            }
            21 => {
                if let Some(at) = x.shape.iter().position(|&d| d == 1) {
                    let axes = self.ints(&[spelled(at)]);
                    let mut shape = x.shape.clone();
                    shape.remove(at);
                    self.emit("Squeeze", &[name, &axes], dtype, shape);
                }
            }
            22 => {
                let fits = |v: &Value| broadcast(&v.shape, &x.shape).is_some();
                let Some(y) = self.find(step.b, fits) else {
                    return;
                };
                let shape = broadcast(&y.shape, &x.shape).unwrap_or_default();
                let to = match p % 2 {
                    0 => self.emit("Shape", &[&y.name], "int64", vec![y.shape.len()]),
                    _ => {
                        let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
                        self.ints(&dims)
                    }
                };
                self.emit("Expand", &[name, &to], dtype, shape);
            }
            23 | 24 if rank > 0 => {
                let op = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMean"][r % 4];
                let axes = match r % 8 {
                    7 if rank > 1 => vec![spelled(axis), spelled((axis + 1) % rank)],
                    _ => vec![spelled(axis)],
                };
                self.reduce(op, &x, &axes, p / 8 % 2 == 0);
            }
            25 => {
                // A choice that rounding cannot change: by the boolean input, or by an input's sign.
                let condition = match p % 2 {
                    0 => Value {
                        name: "keep".into(),
                        dtype: "bool",
                        shape: vec![2, 3],
                    },
                    _ => {
                        let zero = self.scalar("float", 0.0);
                        let c =
                            self.emit("Less", &["x", &zero], "bool", self.values[0].shape.clone());
                        Value {
                            name: c,
                            ..self.last()
                        }
                    }
                };
                let condition = match broadcast(&condition.shape, &x.shape) {
                    Some(_) => condition,
                    None if rank == 3 && x.shape[..2] == [2, 3] => {
                        let axes = self.ints(&[-1]);
                        let name = self.emit("Unsqueeze", &["keep", &axes], "bool", vec![2, 3, 1]);
                        Value {
                            name,
                            ..self.last()
                        }
                    }
                    None => return,
                };
                let shape = broadcast(&condition.shape, &x.shape).unwrap_or_default();
                let fill = self.scalar(dtype, [0.0, 1.0, -2.5][q % 3]);
                let order = if r % 2 == 0 {
                    [&condition.name, name, &fill]
                } else {
                    [&condition.name, &fill, name]
                };
                self.emit("Where", &order, dtype, shape);
            }
            26 => {
                let (to, number) = if dtype == "float" {
                    ("double", 11)
                } else {
                    ("float", 1)
                };
                self.emit(
                    &format!("Cast<to = {number}>"),
                    &[name],
                    to,
                    x.shape.clone(),
                );
            }
            27 if dtype == "float" => {
                // Gelu, exact or not.
                let divisor = self.scalar(dtype, [SQRT_2, SQRT_2, 1.5][p % 3]);
                let d = self.emit("Div", &[name, &divisor], dtype, x.shape.clone());
                let e = self.emit("Erf", &[&d], dtype, x.shape.clone());
                let one = self.scalar(dtype, [1.0, 1.0, 1.01][q % 3]);
                let a = self.emit("Add", &[&e, &one], dtype, x.shape.clone());
                let half = self.scalar(dtype, [0.5, 0.5, 0.4][r % 3]);
                let m = match r % 2 {
                    0 => self.emit("Mul", &[name, &a], dtype, x.shape.clone()),
                    _ => self.emit("Mul", &[&a, &half], dtype, x.shape.clone()),
                };
                let other = if r % 2 == 0 { half.as_str() } else { name };
                self.emit("Mul", &[&m, other], dtype, x.shape.clone());
            }
            28 => {
                let s = self.emit("Sigmoid", &[name], dtype, x.shape.clone());
                let fits = |v: &Value| v.dtype == dtype && v.shape == x.shape;
                let by = if p % 4 == 0 {
                    self.find(step.b, fits)
                } else {
                    Some(x.clone())
                };
                if let Some(by) = by {
                    self.emit("Mul", &[&by.name, &s], dtype, x.shape.clone());
                }
            }
            29 | 30 if rank > 0 && dtype == "float" => self.norm(&x, p, q, r),
            31..=33 if rank == 3 && dtype == "float" => self.attention(&x, step),
            34 if rank > 0 => {
                let op = format!("Flatten<axis = {axis}>");
                let (a, b): (usize, usize) = (
                    x.shape[..axis].iter().product(),
                    x.shape[axis..].iter().product(),
                );
                self.emit(&op, &[name], dtype, vec![a, b]);
            }
            35 if rank > 0 => {
                let mut times = vec![1i64; rank];
                times[axis] = 1 + q as i64 % 2;
                let mut shape = x.shape.clone();
                shape[axis] *= times[axis] as usize;
                let times = self.ints(&times);
                self.emit("Tile", &[name, &times], dtype, shape);
            }
            _ => {}
        }
        // Large graphs of large values say no more.
        if self.last().shape.iter().product::<usize>() > 4096 {
            self.read[self.values.len() - 1] = false;
        }
    }

    /// A Reshape by constants, by zeros and -1, or by sizes taken from a Shape.
    fn reshape(&mut self, x: &Value, p: usize, q: usize, r: usize) {
        let count: usize = x.shape.iter().product();
        let rank = x.shape.len();
        let mut shape: Vec<usize> = match p % 5 {
            0 => vec![count],
            1 if rank >= 2 => [
                &x.shape[..rank - 2],
                &[x.shape[rank - 2] * x.shape[rank - 1]],
            ]
            .concat(),
            2 if rank >= 1 && x.shape[rank - 1].is_multiple_of(2) => {
                [&x.shape[..rank - 1], &[2, x.shape[rank - 1] / 2]].concat()
            }
            3 if rank >= 2 => [&[x.shape[0] * x.shape[1]], &x.shape[2..]].concat(),
            4 if rank >= 1 => [&[x.shape[0], 1], &x.shape[1..]].concat(),
            _ => x.shape.clone(),
        };
        shape.truncate(5);
        if shape.iter().product::<usize>() != count {
            return;
        }
        let mut dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        if q % 2 == 0 {
            for (k, d) in dims.iter_mut().enumerate() {
                if x.shape.get(k) == Some(&(*d as usize)) && r >> k & 1 == 0 {
                    *d = 0;
                }
            }
        }
        let free = (0..dims.len()).rev().find(|&k| dims[k] != 0);
        if let (Some(k), true) = (free, r % 4 < 2) {
            dims[k] = -1;
        }
        let to = match q % 3 {
            // [Shape(x)[0], rest…], as exporters write it.
            0 if rank > 0 && dims.len() > 1 && shape[0] == x.shape[0] => {
                let sizes = self.emit("Shape", &[&x.name], "int64", vec![rank]);
                let zero = self.ints(&[0]);
                let first = self.emit("Gather<axis = 0>", &[&sizes, &zero], "int64", vec![1]);
                dims.remove(0);
                // A zero would stand for another dimension than before.
                for (k, d) in dims.iter_mut().enumerate() {
                    if *d == 0 {
                        *d = shape[k + 1] as i64;
                    }
                }
                let rest = self.ints(&dims);
                self.emit(
                    "Concat<axis = 0>",
                    &[&first, &rest],
                    "int64",
                    vec![shape.len()],
                )
            }
            _ => self.ints(&dims),
        };
        self.emit("Reshape", &[&x.name, &to], x.dtype, shape);
    }

    /// A LayerNormalization or RMSNormalization spelled out, with an axis or a constant that may be off.
    fn norm(&mut self, x: &Value, p: usize, q: usize, r: usize) {
        let rank = x.shape.len();
        let last = x.shape[rank - 1];
        let axis = if r % 7 == 0 && rank > 1 { -2 } else { -1 };
        let shape = x.shape.clone();
        let d = match p % 3 {
            0 => x.clone(),
            _ => {
                let mean = self.reduce("ReduceMean", x, &[axis], true);
                let name = self.emit("Sub", &[&x.name, &mean], "float", shape.clone());
                Value { name, ..x.clone() }
            }
        };
        let square = match q % 2 {
            0 => self.emit("Mul", &[&d.name, &d.name], "float", shape.clone()),
            _ => {
                let two = self.scalar("float", 2.0);
                self.emit("Pow", &[&d.name, &two], "float", shape.clone())
            }
        };
        let square = Value {
            name: square,
            ..x.clone()
        };
        let variance = self.reduce("ReduceMean", &square, &[axis], true);
        let small = self.last().shape;
        let epsilon = self.scalar("float", 1e-5);
        let sum = self.emit("Add", &[&variance, &epsilon], "float", small.clone());
        let root = self.emit("Sqrt", &[&sum], "float", small.clone());
        let n = match q % 3 {
            0 => {
                let inverse = self.emit("Reciprocal", &[&root], "float", small);
                self.emit("Mul", &[&d.name, &inverse], "float", shape.clone())
            }
            _ => self.emit("Div", &[&d.name, &root], "float", shape.clone()),
        };
        let scale_shape = if r % 5 == 0 { vec![] } else { vec![last] };
        let scale = self.constant("float", &scale_shape);
        let scaled = self.emit("Mul", &[&n, &scale], "float", shape.clone());
        if r % 2 == 0 {
            let bias = self.constant("float", &[last]);
            self.emit("Add", &[&scaled, &bias], "float", shape);
        }
    }

    /// Attention over two heads, with scale, mask, axis, layout and further uses that vary.
    fn attention(&mut self, x: &Value, step: &Step) {
        let [p, q, r] = step.p.map(usize::from);
        let [n, s, d] = [x.shape[0], x.shape[1], x.shape[2]];
        if d % 2 != 0 || n > 4 || s > 8 {
            return;
        }
        let (heads, size) = (2, d / 2);
        let split = self.ints(&[
            0,
            if p % 2 == 0 { 0 } else { -1 },
            heads as i64,
            size as i64,
        ]);
        let mut parts = Vec::new();
        for k in 0..3 {
            let weight = self.constant("float", &[d, d]);
            let mut v = self.emit("MatMul", &[&x.name, &weight], "float", vec![n, s, d]);
            if r >> k & 1 == 0 {
                let bias = self.constant("float", &[d]);
                v = self.emit("Add", &[&v, &bias], "float", vec![n, s, d]);
            }
            let v = self.emit("Reshape", &[&v, &split], "float", vec![n, s, heads, size]);
            let (perm, shape) = match k {
                1 => ("0, 2, 3, 1", vec![n, heads, size, s]),
                _ => ("0, 2, 1, 3", vec![n, heads, s, size]),
            };
            parts.push(self.emit(
                &format!("Transpose<perm = [{perm}]>"),
                &[&v],
                "float",
                shape,
            ));
        }
        let square = vec![n, heads, s, s];
        let factor = [0.5, 0.7, 1.0, 2.0][q % 4];
        let scale = self.scalar("float", factor);
        if q / 4 % 3 == 0 {
            parts[0] = self.emit(
                "Mul",
                &[&parts[0], &scale],
                "float",
                vec![n, heads, s, size],
            );
        }
        let mut scores = self.emit("MatMul", &[&parts[0], &parts[1]], "float", square.clone());
        if q / 4 % 3 == 1 {
            scores = self.emit("Div", &[&scores, &scale], "float", square.clone());
        }
        match r / 8 % 5 {
            0 => {
                let mask = self.constant("float", &[s, s]);
                scores = self.emit("Add", &[&scores, &mask], "float", square.clone());
            }
            1 if [n, s] == [2, 3] => {
                let axes = self.ints(&[1, 2]);
                let keep = self.emit("Unsqueeze", &["keep", &axes], "bool", vec![n, 1, 1, s]);
                let low = self.scalar("float", -1e4);
                scores = self.emit("Where", &[&keep, &scores, &low], "float", square.clone());
            }
            2 if [n, s] == [2, 3] => {
                let axes = self.ints(&[1, 2]);
                let keep = self.emit("Unsqueeze", &["keep", &axes], "bool", vec![n, 1, 1, s]);
                let kept = self.emit("Cast<to = 1>", &[&keep], "float", vec![n, 1, 1, s]);
                let one = self.scalar("float", 1.0);
                let hidden = self.emit("Sub", &[&one, &kept], "float", vec![n, 1, 1, s]);
                let low = self.scalar("float", -1e4);
                let bias = self.emit("Mul", &[&hidden, &low], "float", vec![n, 1, 1, s]);
                scores = self.emit("Add", &[&scores, &bias], "float", square.clone());
            }
            _ => {}
        }
        let axis = if p / 2 % 6 == 0 { 2 } else { 3 };
        let probabilities = self.emit(
            &format!("Softmax<axis = {axis}>"),
            &[&scores],
            "float",
            square.clone(),
        );
        if p / 16 % 5 == 0 {
            // Somebody else reads the probabilities.
            self.emit("ReduceMax", &[&probabilities], "float", vec![1; 4]);
        }
        let o = self.emit(
            "MatMul",
            &[&probabilities, &parts[2]],
            "float",
            vec![n, heads, s, size],
        );
        let o = match p / 16 % 7 {
            // Heads and positions stay as they are: another function.
            0 => o,
            _ => self.emit(
                "Transpose<perm = [0, 2, 1, 3]>",
                &[&o],
                "float",
                vec![n, s, heads, size],
            ),
        };
        let flat = self.ints(&[n as i64, s as i64, d as i64]);
        self.emit("Reshape", &[&o, &flat], "float", vec![n, s, d]);
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

//! Operators that move elements.

use super::*;

impl Builder {
    pub(super) fn layout(&mut self, x: &Value, step: &Step) {
        let [p, q, r] = step.p.map(usize::from);
        let name = x.name.as_str();
        let rank = x.shape.len();
        let dtype = x.dtype;
        let axis = if rank > 0 { p % rank } else { 0 };
        // Axes are written either way.
        let spelled = |axis: usize| axis as i64 - if q % 2 == 0 { rank as i64 } else { 0 };
        match step.op % KINDS {
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
            14 | 15 => self.reshape(x, p, q, r),
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
}

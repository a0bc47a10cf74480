//! Products, softmaxes and reductions.

use super::*;

impl Builder {
    pub(super) fn products(&mut self, x: &Value, step: &Step) {
        let [p, q, r] = step.p.map(usize::from);
        let name = x.name.as_str();
        let rank = x.shape.len();
        let dtype = x.dtype;
        let last = x.shape.last().copied().unwrap_or(1);
        let axis = if rank > 0 { p % rank } else { 0 };
        // Axes are written either way.
        let spelled = |axis: usize| axis as i64 - if q % 2 == 0 { rank as i64 } else { 0 };
        match step.op % KINDS {
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
            23 | 24 if rank > 0 => {
                let op = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMean"][r % 4];
                let axes = match r % 8 {
                    7 if rank > 1 => vec![spelled(axis), spelled((axis + 1) % rank)],
                    _ => vec![spelled(axis)],
                };
                self.reduce(op, x, &axes, p / 8 % 2 == 0);
            }
            _ => {}
        }
    }
}

//! What models spell out: activations, normalizations, attention.

use super::*;

impl Builder {
    pub(super) fn blocks(&mut self, x: &Value, step: &Step) {
        let [p, q, r] = step.p.map(usize::from);
        let name = x.name.as_str();
        let rank = x.shape.len();
        let dtype = x.dtype;
        match step.op % KINDS {
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
            29 | 30 if rank > 0 && dtype == "float" => self.norm(x, p, q, r),
            31..=33 if rank == 3 && dtype == "float" => self.attention(x, step),
            _ => {}
        }
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

//! Operators element by element.

use super::*;

impl Builder {
    pub(super) fn arithmetic(&mut self, x: &Value, step: &Step) {
        let [p, q, r] = step.p.map(usize::from);
        let name = x.name.as_str();
        let rank = x.shape.len();
        let dtype = x.dtype;
        let last = x.shape.last().copied().unwrap_or(1);
        match step.op % KINDS {
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
            _ => {}
        }
    }
}

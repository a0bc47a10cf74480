//! Which dtypes ONNX requires at the edges of an operator.
//!
//! The table claims only what every version from 7 to 24 of the operator requires (type variables and constraints in
//! `docs/Changelog.md`); positions that a version does not have are no claim on it.

use crate::ops::{Cast, ConstantOfShape};
use crate::{Attr, DType, Graph, Node, NodeId, ValueId};

/// A place at a node.
#[derive(Clone, Copy, Debug)]
enum At {
    In(usize),
    Out(usize),
    /// Every operand.
    Ins,
    /// Every result.
    Outs,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// All these have one dtype.
    Same(&'static [At]),
    /// This has one of these dtypes.
    Is(At, &'static [DType]),
    /// This is a floating-point number.
    Float(At),
}

use At::{In, Ins, Out, Outs};
use Rule::{Float, Is, Same};

const BOOL: &[DType] = &[DType::Bool];
const I64: &[DType] = &[DType::I64];
const INDEX: &[DType] = &[DType::I32, DType::I64];
const BYTES: &[DType] = &[DType::I8, DType::U8];

const TABLE: &[(&[&str], &[Rule])] = &[
    (
        &[
            "Add",
            "BitShift",
            "BitwiseAnd",
            "BitwiseOr",
            "BitwiseXor",
            "Div",
            "MatMul",
            "Mod",
            "Mul",
            "PRelu",
            "Sub",
        ],
        &[Same(&[In(0), In(1), Out(0)])],
    ),
    (
        &["Max", "Mean", "Min", "Sum", "Concat", "Einsum"],
        &[Same(&[Ins, Out(0)])],
    ),
    (&["Pow"], &[Same(&[In(0), Out(0)])]),
    (
        &["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"],
        &[Same(&[In(0), In(1)]), Is(Out(0), BOOL)],
    ),
    (
        &["And", "Or", "Xor"],
        &[Is(In(0), BOOL), Is(In(1), BOOL), Is(Out(0), BOOL)],
    ),
    (&["Not"], &[Is(In(0), BOOL), Is(Out(0), BOOL)]),
    (&["IsInf", "IsNaN"], &[Float(In(0)), Is(Out(0), BOOL)]),
    (
        &["Where"],
        &[Is(In(0), BOOL), Same(&[In(1), In(2), Out(0)])],
    ),
    (
        &[
            "Acos",
            "Acosh",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "Ceil",
            "Celu",
            "Cos",
            "Cosh",
            "Elu",
            "Exp",
            "Floor",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Hardmax",
            "LeakyRelu",
            "Log",
            "LogSoftmax",
            "LpNormalization",
            "Mish",
            "Reciprocal",
            "Round",
            "Selu",
            "Sigmoid",
            "Sin",
            "Sinh",
            "Softmax",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Swish",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "AveragePool",
        ],
        &[Float(In(0)), Same(&[In(0), Out(0)])],
    ),
    (
        &[
            "Abs",
            "BitwiseNot",
            "DepthToSpace",
            "Dropout",
            "Erf",
            "Flatten",
            "Identity",
            "MaxPool",
            "Neg",
            "Relu",
            "ReverseSequence",
            "Shrink",
            "Sign",
            "SpaceToDepth",
            "Transpose",
        ],
        &[Same(&[In(0), Out(0)])],
    ),
    (&["Gemm"], &[Same(&[In(0), In(1), In(2), Out(0)])]),
    (
        &[
            "Conv",
            "ConvTranspose",
            "GroupNormalization",
            "InstanceNormalization",
            "LayerNormalization",
        ],
        &[Float(In(0)), Same(&[In(0), In(1), In(2), Out(0)])],
    ),
    (
        &["RMSNormalization"],
        &[Float(In(0)), Same(&[In(1), Out(0)])],
    ),
    (
        &["BatchNormalization"],
        &[
            Float(In(0)),
            Same(&[In(0), Out(0)]),
            Same(&[In(1), In(2)]),
            Same(&[In(3), In(4)]),
        ],
    ),
    (
        &["Attention"],
        &[
            Float(In(0)),
            Float(In(2)),
            Same(&[In(0), In(1), In(4), Out(0), Out(1)]),
            Same(&[In(2), In(5), Out(2)]),
        ],
    ),
    (
        &["RotaryEmbedding"],
        &[
            Float(In(0)),
            Same(&[In(0), In(1), In(2), Out(0)]),
            Is(In(3), I64),
        ],
    ),
    (
        &["MatMulInteger"],
        &[
            Is(In(0), BYTES),
            Is(In(1), BYTES),
            Same(&[In(0), In(2)]),
            Same(&[In(1), In(3)]),
            Is(Out(0), &[DType::I32]),
        ],
    ),
    (
        &["DynamicQuantizeLinear"],
        &[
            Is(In(0), &[DType::F32]),
            Is(Out(0), &[DType::U8]),
            Is(Out(1), &[DType::F32]),
            Is(Out(2), &[DType::U8]),
        ],
    ),
    (&["QuantizeLinear"], &[Same(&[In(2), Out(0)])]),
    (
        &["DequantizeLinear"],
        &[Same(&[In(0), In(2)]), Float(In(1)), Float(Out(0))],
    ),
    (&["CastLike"], &[Same(&[In(1), Out(0)])]),
    (
        &["Expand", "Reshape", "Squeeze", "Tile", "Trilu", "Unsqueeze"],
        &[Same(&[In(0), Out(0)]), Is(In(1), I64)],
    ),
    (&["Split"], &[Same(&[In(0), Outs]), Is(In(1), I64)]),
    (&["Pad"], &[Same(&[In(0), In(2), Out(0)]), Is(In(1), I64)]),
    (&["Clip"], &[Same(&[In(0), In(1), In(2), Out(0)])]),
    (
        &["Slice"],
        &[
            Same(&[In(0), Out(0)]),
            Is(In(1), INDEX),
            Same(&[In(1), In(2), In(3), In(4)]),
        ],
    ),
    (
        &["CumSum", "Gather", "GatherElements"],
        &[Same(&[In(0), Out(0)]), Is(In(1), INDEX)],
    ),
    (&["GatherND"], &[Same(&[In(0), Out(0)]), Is(In(1), I64)]),
    (
        &["Scatter", "ScatterElements"],
        &[Same(&[In(0), In(2), Out(0)]), Is(In(1), INDEX)],
    ),
    (
        &["ScatterND"],
        &[Same(&[In(0), In(2), Out(0)]), Is(In(1), I64)],
    ),
    (
        &["TopK"],
        &[Same(&[In(0), Out(0)]), Is(In(1), I64), Is(Out(1), I64)],
    ),
    (
        &[
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ],
        &[Same(&[In(0), Out(0)]), Is(In(1), I64)],
    ),
    (
        &["ArgMax", "ArgMin", "NonZero", "Shape", "Size"],
        &[Is(Out(0), I64)],
    ),
    (&["ConstantOfShape"], &[Is(In(0), I64)]),
    (&["OneHot"], &[Same(&[In(2), Out(0)])]),
    (&["Range"], &[Same(&[In(0), In(1), In(2), Out(0)])]),
    (&["Resize"], &[Same(&[In(0), Out(0)])]),
    (&["If"], &[Is(In(0), BOOL)]),
    (&["Loop"], &[Is(In(0), I64), Is(In(1), BOOL)]),
];

/// What is wrong with the dtypes around a node.
pub(super) fn check(graph: &Graph, id: NodeId) -> Vec<String> {
    let Some(node) = graph.get(id).filter(|n| n.op().domain().is_empty()) else {
        return Vec::new();
    };
    let mut wrong = Vec::new();
    let rows = TABLE.iter().filter(|(ops, _)| node.op().is_any(ops));
    for rule in rows.flat_map(|(_, rules)| rules.iter()) {
        apply(graph, node, rule, &mut wrong);
    }
    if node.op().is("Cast") && graph.opset() >= 6 {
        cast(graph, id, &mut wrong);
    }
    if let Some(fill) = ConstantOfShape::of(graph, id) {
        result_is(graph, node, fill.to(), &mut wrong);
    }
    wrong
}

fn cast(graph: &Graph, id: NodeId, wrong: &mut Vec<String>) {
    let node = graph.node(id);
    if matches!(node.attrs().get("to"), Some(Attr::Ref { .. })) {
        return;
    }
    match Cast::of(graph, id).and_then(|c| c.to()) {
        Some(to) => result_is(graph, node, to, wrong),
        None => wrong.push("its attribute 'to' names no dtype".into()),
    }
}

fn result_is(graph: &Graph, node: &Node, dtype: DType, wrong: &mut Vec<String>) {
    if let Some(found) = node.output(0).and_then(|v| dtype_of(graph, v))
        && found != dtype
    {
        wrong.push(format!("result 0 is {found}, but must be {dtype}"));
    }
}

fn dtype_of(graph: &Graph, v: ValueId) -> Option<DType> {
    (v.index() < graph.value_bound()).then(|| graph.value(v).ty().dtype())?
}

/// The dtypes known at a place, with what messages call it.
fn places(graph: &Graph, node: &Node, at: At) -> Vec<(String, DType)> {
    let one = |what: &str, k: usize, v: Option<ValueId>| {
        Some((format!("{what} {k}"), dtype_of(graph, v?)?))
    };
    match at {
        In(k) => one("operand", k, node.input(k)).into_iter().collect(),
        Out(k) => one("result", k, node.output(k)).into_iter().collect(),
        Ins => {
            let all = node.inputs().iter().enumerate();
            all.filter_map(|(k, v)| one("operand", k, *v)).collect()
        }
        Outs => {
            let all = node.outputs().iter().enumerate();
            all.filter_map(|(k, v)| one("result", k, *v)).collect()
        }
    }
}

fn apply(graph: &Graph, node: &Node, rule: &Rule, wrong: &mut Vec<String>) {
    match rule {
        Same(group) => {
            let known = group.iter().flat_map(|at| places(graph, node, *at));
            let known: Vec<_> = known.collect();
            let Some((first, dtype)) = known.first() else {
                return;
            };
            if let Some((other, found)) = known.iter().find(|(_, d)| d != dtype) {
                wrong.push(format!("{first} is {dtype}, but {other} is {found}"));
            }
        }
        Is(at, allowed) => {
            for (place, found) in places(graph, node, *at) {
                if !allowed.contains(&found) {
                    let names: Vec<_> = allowed.iter().map(|d| d.name()).collect();
                    wrong.push(format!(
                        "{place} is {found}, but must be {}",
                        names.join(" or ")
                    ));
                }
            }
        }
        Float(at) => {
            for (place, found) in places(graph, node, *at) {
                if !found.is_float() {
                    wrong.push(format!("{place} is {found}, but must be a float"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::graph;
    use crate::{Attrs, Op, Type};

    fn found(
        op: &str,
        attrs: Attrs,
        inputs: &[Option<DType>],
        output: Option<DType>,
    ) -> Vec<String> {
        let mut g = graph(21);
        let inputs: Vec<_> = (inputs.iter())
            .map(|d| Some(g.add_input("x", d.map_or(Type::Unknown, |d| Type::tensor(d, None)))))
            .collect();
        let n = g.add_node(Op::onnx(op), "n", inputs, 1, attrs);
        if let (Some(v), Some(d)) = (g.node(n).sole_output(), output) {
            g.set_type(v, Type::tensor(d, None));
        }
        check(&g, n)
    }

    const F: Option<DType> = Some(DType::F32);
    const H: Option<DType> = Some(DType::F16);
    const B: Option<DType> = Some(DType::Bool);
    const I: Option<DType> = Some(DType::I64);

    #[test]
    fn sound_nodes_pass_and_unknown_types_are_no_fault() {
        for (op, inputs, output) in [
            ("Add", &[F, F][..], F),
            ("Add", &[F, None], None),
            ("Where", &[B, H, H], H),
            ("LayerNormalization", &[H, H, H], H),
            ("RMSNormalization", &[H, F], F),
            ("Concat", &[I, I, I], I),
            ("Reshape", &[B, I], B),
            ("Pow", &[F, I], F),
            ("Whatever", &[F, H], B),
        ] {
            assert_eq!(
                found(op, Attrs::new(), inputs, output),
                Vec::<String>::new(),
                "{op}"
            );
        }
    }

    #[test]
    fn mixed_dtypes_are_named() {
        for (op, inputs, output, want) in [
            (
                "Mul",
                &[F, H][..],
                None,
                "operand 0 is float, but operand 1 is float16",
            ),
            (
                "MatMul",
                &[F, F],
                H,
                "operand 0 is float, but result 0 is float16",
            ),
            (
                "Where",
                &[F, H, H],
                None,
                "operand 0 is float, but must be bool",
            ),
            (
                "LayerNormalization",
                &[H, F, F],
                None,
                "operand 0 is float16, but operand 1 is float",
            ),
            (
                "Concat",
                &[I, I, F],
                None,
                "operand 0 is int64, but operand 2 is float",
            ),
            (
                "Softmax",
                &[I],
                None,
                "operand 0 is int64, but must be a float",
            ),
            (
                "Gather",
                &[F, F],
                None,
                "operand 1 is float, but must be int32 or int64",
            ),
            ("Less", &[F, F], F, "result 0 is float, but must be bool"),
        ] {
            assert_eq!(found(op, Attrs::new(), inputs, output), [want], "{op}");
        }
    }

    #[test]
    fn casts() {
        let to = |n: i64| Attrs::new().with("to", n);
        assert!(found("Cast", to(10), &[F], H).is_empty());
        assert_eq!(
            found("Cast", to(1), &[F], H),
            ["result 0 is float16, but must be float"]
        );
        for broken in [
            to(99),
            to(0),
            Attrs::new(),
            Attrs::new().with("to", "FLOAT"),
        ] {
            assert_eq!(
                found("Cast", broken, &[F], None),
                ["its attribute 'to' names no dtype"]
            );
        }
        assert_eq!(found("ConstantOfShape", Attrs::new(), &[I], I).len(), 1);
    }
}

//! Whether the dtypes around a node are what ONNX requires.

use super::table::At::{self, In, Ins, Out, Outs};
use super::table::Rule::{self, Float, Is, Same};
use super::table::{INTERNAL, TABLE};
use crate::ops::{Cast, ConstantOfShape};
use crate::{Attr, DType, Graph, INTERNAL_DOMAIN, Node, NodeId, ValueId};

/// What is wrong with the dtypes around a node.
pub(super) fn check(graph: &Graph, id: NodeId) -> Vec<String> {
    let Some(node) = graph.get(id) else {
        return Vec::new();
    };
    let mut wrong = Vec::new();
    if node.op().domain() == INTERNAL_DOMAIN {
        let rows = INTERNAL.iter().filter(|(op, _)| *op == node.op().name());
        for rule in rows.flat_map(|(_, rules)| rules.iter()) {
            apply(graph, node, rule, &mut wrong);
        }
    }
    if !node.op().domain().is_empty() {
        return wrong;
    }
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

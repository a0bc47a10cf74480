//! Whether the dtypes around a node are what ONNX requires, by the operators' schemas.

use std::fmt;

use crate::ops::schema::{self, Port, Schema, Types};
use crate::ops::{Cast, ConstantOfShape};
use crate::{Attr, DType, Graph, INTERNAL_DOMAIN, Node, NodeId, Op, ValueId};

/// What is wrong with the dtypes around a node.
pub(super) fn check(graph: &Graph, id: NodeId) -> Vec<String> {
    let Some(node) = graph.get(id) else {
        return Vec::new();
    };
    let mut wrong = Vec::new();
    if !matches!(node.op().domain(), "" | INTERNAL_DOMAIN) {
        return wrong;
    }
    if let Some(schema) = schema::schema(node.op(), graph.opset()) {
        let places = places(graph, node, schema);
        check_alike(&places, &mut wrong);
        check_allowed(node.op(), &places, &mut wrong);
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

/// A place at a node: what messages call it, what ONNX says of it, and its dtype where that is known.
struct Place {
    side: &'static str,
    k: usize,
    port: Port,
    dtype: DType,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.side, self.k)
    }
}

/// The places whose dtypes are known.
fn places(graph: &Graph, node: &Node, schema: &Schema) -> Vec<Place> {
    let place = |side, k, v: Option<ValueId>, port: Option<Port>| {
        let dtype = dtype_of(graph, v?)?;
        port.map(|port| Place {
            side,
            k,
            port,
            dtype,
        })
    };
    let inputs = node.inputs().iter().enumerate();
    let inputs = inputs.filter_map(|(k, v)| place("operand", k, *v, schema.input(k)));
    let outputs = node.outputs().iter().enumerate();
    let outputs = outputs.filter_map(|(k, v)| place("result", k, *v, schema.output(k)));
    inputs.chain(outputs).collect()
}

/// Places of one type variable have one dtype.
fn check_alike(places: &[Place], wrong: &mut Vec<String>) {
    for (at, place) in places.iter().enumerate() {
        let alike = |other: &&Place| other.port.is_like(&place.port);
        if places[..at].iter().any(|earlier| alike(&earlier)) {
            continue;
        }
        let differs = |other: &&Place| alike(other) && other.dtype != place.dtype;
        if let Some(other) = places[at + 1..].iter().find(differs) {
            let (dtype, found) = (place.dtype, other.dtype);
            wrong.push(format!("{place} is {dtype}, but {other} is {found}"));
        }
    }
}

/// What no version of the operator takes or gives. Which version takes what is left to the runtimes, which know more than
/// the standard.
fn check_allowed(op: Op, places: &[Place], wrong: &mut Vec<String>) {
    for place in places {
        let of = |s: &'static Schema| match place.side {
            "operand" => s.input(place.k),
            _ => s.output(place.k),
        };
        let all = schema::versions(op).iter().filter_map(of);
        let allowed = all.fold(Types::default(), |types, port| types.union(port.types()));
        if allowed.are_tensors() && !allowed.has(place.dtype) {
            let names: Vec<_> = allowed.iter().map(DType::name).collect();
            let must = match allowed.are_floats() {
                true => "a float".into(),
                false => names.join(" or "),
            };
            wrong.push(format!("{place} is {}, but must be {must}", place.dtype));
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

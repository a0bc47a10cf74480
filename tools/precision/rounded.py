"""A model in FP16 or BF16 as a GPU computes it: in FP32 inside an operator, rounded behind it.

ONNX Runtime's CPU provider has few FP16 kernels and none in BF16. It casts to FP32 and back and then drops casts between
neighbours, so that the roundings are lost. Here every value of such a type becomes FP32, and a Cast to the type and back
stands behind each operator that computes. `check` proves that ONNX Runtime leaves those casts alone."""

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

LOW = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, *LOW}
# Their results are elements of their inputs, which are rounded already.
MOVES = {
    "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
    "Pad", "Relu", "Reshape", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
NAMES = {name.lower(): number for name, number in TensorProto.DataType.items()}
# onnx spells types of schemas as C++ does.
NAMES.update({"float": TensorProto.FLOAT, "bool": TensorProto.BOOL, "string": TensorProto.STRING})


def parse(text):
    """The element type of `tensor(float16)`; None of anything else."""
    return NAMES.get(text[7:-1]) if text.startswith("tensor(") else None


def attribute(node, name, default=None):
    for a in node.attribute:
        if a.name == name:
            return helper.get_attribute_value(a)
    return default


def bodies(node):
    """The graphs that a node runs."""
    return [g for a in node.attribute for g in ([a.g] if a.type == AttributeProto.GRAPH else a.graphs)]


def types(model):
    """The element type of each value outside of bodies. onnx's own inference stops at operators that it does not know."""
    return scope(model.graph, {}, {o.domain or "": o.version for o in model.opset_import})


def scope(graph, outer, opsets, given=()):
    """The element type of each value that a graph sees: `outer` has those around it, `given` those of a body's inputs."""
    known = dict(outer)
    known.update({t.name: t.data_type for t in graph.initializer})
    for i, port in enumerate(graph.input):
        known[port.name] = port.type.tensor_type.elem_type or (given[i] if i < len(given) else 0)
    for node in graph.node:
        outputs = carried(node, known, opsets) if bodies(node) else None
        for index, output in enumerate(node.output):
            if output:
                known[output] = outputs[index] if outputs else result(node, index, known, opsets)
    return known


def entered(node, known):
    """The element types that a body's inputs have, by the node's."""
    of = [known.get(i, 0) for i in node.input]
    return [TensorProto.INT64, TensorProto.BOOL, *of[2:]] if node.op_type == "Loop" else of


def carried(node, known, opsets):
    """The element types of the outputs of If, Loop and Scan: those of a body's outputs."""
    body = bodies(node)[0]
    inner = scope(body, known, opsets, entered(node, known))
    found = [inner.get(o.name, 0) for o in body.output]
    return found[1:] if node.op_type == "Loop" else found


def result(node, index, known, opsets):
    of = [known.get(i, 0) for i in node.input]
    op = node.op_type
    if op == "Cast":
        return attribute(node, "to")
    if op in ("Constant", "ConstantOfShape"):
        value = attribute(node, "value")
        if value is not None:
            return value.data_type
        if op == "ConstantOfShape" or any(a.name.startswith("value_float") for a in node.attribute):
            return TensorProto.FLOAT
        return TensorProto.INT64
    if op == "QuantizeLinear":
        return (of[2] if len(of) > 2 and of[2] else 0) or attribute(node, "output_dtype") or TensorProto.UINT8
    if op == "DequantizeLinear":
        return attribute(node, "output_dtype") or of[1]
    if node.domain in ("", "ai.onnx"):
        schema = onnx.defs.get_schema(op, opsets[""], "")
        formal = schema.outputs[min(index, len(schema.outputs) - 1)]
        if parse(formal.type_str):
            return parse(formal.type_str)
        for i, type_ in enumerate(of):
            if type_ and schema.inputs[min(i, len(schema.inputs) - 1)].type_str == formal.type_str:
                return type_
        allowed = next(c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == formal.type_str)
        if len(allowed) == 1:
            return parse(allowed[0])
        return attribute(node, "dtype") or TensorProto.FLOAT
    # ONNX Runtime's own operators.
    if op.startswith("QLinear") or op == "QGemm" and len(of) > 8:
        return of[0]
    return next((t for t in of if t in FLOATS), of[0])


def used(model):
    """The low types among the values."""
    return {LOW[t] for t in lows(model.graph, {}, {o.domain or "": o.version for o in model.opset_import}) if t in LOW}


def lows(graph, outer, opsets, given=()):
    known = scope(graph, outer, opsets, given)
    found = set(known.values())
    for node in graph.node:
        for body in bodies(node):
            found |= lows(body, known, opsets, entered(node, known))
    return found


def widen(tensor):
    name = tensor.name
    values = numpy_helper.to_array(tensor).astype("float32")
    return numpy_helper.from_array(values, name)


def rounded(model):
    """The model in FP32 with roundings, and the types that its values had."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    opsets = {o.domain or "": o.version for o in out.opset_import}
    known = types(out)
    widen_graph(out.graph, known, opsets)
    return out, known


def widen_graph(graph, known, opsets):
    """Makes the low values of a graph and its bodies FP32 ones that are rounded. `known` has the types of what it sees."""
    for i, tensor in enumerate(graph.initializer):
        if tensor.data_type in LOW:
            graph.initializer[i].CopyFrom(widen(tensor))
    for port in (*graph.input, *graph.output):
        if port.type.tensor_type.elem_type in LOW:
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    nodes = []
    for node in graph.node:
        for body in bodies(node):
            widen_graph(body, scope(body, known, opsets, entered(node, known)), opsets)
        for a in node.attribute:
            if a.type == AttributeProto.TENSOR and a.t.data_type in LOW:
                a.t.CopyFrom(widen(a.t))
            if a.name in ("to", "dtype", "output_dtype", "softmax_precision", "stash_type") and a.i in LOW:
                a.i = TensorProto.FLOAT
        nodes.append(node)
        # What a body gives is rounded inside.
        if node.op_type not in MOVES and not bodies(node):
            nodes.extend(roundings(node, known))
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def roundings(node, known):
    """Casts to a low type and back behind a node, whose outputs get other names."""
    made = []
    for i, output in enumerate(node.output):
        low = known.get(output)
        if low not in LOW:
            continue
        node.output[i] = f"{output}/exact"
        made.append(helper.make_node("Cast", [f"{output}/exact"], [f"{output}/low"], to=low))
        made.append(helper.make_node("Cast", [f"{output}/low"], [output], to=TensorProto.FLOAT))
    return made


def check(run):
    """Stops if ONNX Runtime drops the roundings: a chain of products against NumPy. `run(model, feed)` gives the outputs."""
    import ml_dtypes
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 64)).astype(np.float32)
    weights = [(rng.normal(size=(64, 64)) / 8).astype(np.float32) for _ in range(3)]
    for low, dtype in ((TensorProto.FLOAT16, np.float16), (TensorProto.BFLOAT16, ml_dtypes.bfloat16)):
        narrow = [w.astype(dtype) for w in weights]
        nodes = [helper.make_node("Cast", ["x"], ["v0"], to=low)]
        nodes += [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(3)]
        nodes.append(helper.make_node("Cast", ["v3"], ["y"], to=TensorProto.FLOAT))
        graph = helper.make_graph(
            nodes, "chain",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
            [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(narrow)],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
        got = run(rounded(model)[0], {"x": x})[0]
        v = plain = x.astype(dtype).astype(np.float32)
        for w in narrow:
            plain = plain @ w.astype(np.float32)
            v = (v @ w.astype(np.float32)).astype(dtype).astype(np.float32)
        # Sums in another order round to the neighbour now and then; a dropped rounding is off almost everywhere.
        wrong = np.mean(got != v)
        if wrong > 0.05 or np.mean(got != plain) < 0.5:
            raise SystemExit(f"ONNX Runtime drops roundings to {LOW[low]}: {wrong:.0%} of the values differ")

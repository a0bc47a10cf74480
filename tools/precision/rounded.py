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


def types(model):
    """The element type of each value. onnx's own inference stops at operators that it does not know."""
    graph = model.graph
    known = {t.name: t.data_type for t in graph.initializer}
    known.update({i.name: i.type.tensor_type.elem_type for i in graph.input})
    opsets = {o.domain or "": o.version for o in model.opset_import}
    for node in graph.node:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise NotImplementedError(f"{node.op_type} has bodies")
        for index, output in enumerate(node.output):
            if output:
                known[output] = result(node, index, known, opsets)
    return known


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
    return {LOW[t] for t in types(model).values() if t in LOW}


def widen(tensor):
    name = tensor.name
    values = numpy_helper.to_array(tensor).astype("float32")
    return numpy_helper.from_array(values, name)


def rounded(model):
    """The model in FP32 with roundings, and the types that its values had."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    known = types(out)
    graph = out.graph
    for i, tensor in enumerate(graph.initializer):
        if tensor.data_type in LOW:
            graph.initializer[i].CopyFrom(widen(tensor))
    for port in (*graph.input, *graph.output):
        if port.type.tensor_type.elem_type in LOW:
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    nodes = []
    for node in graph.node:
        for a in node.attribute:
            if a.type == AttributeProto.TENSOR and a.t.data_type in LOW:
                a.t.CopyFrom(widen(a.t))
            if a.name in ("to", "dtype", "output_dtype", "softmax_precision", "stash_type") and a.i in LOW:
                a.i = TensorProto.FLOAT
        nodes.append(node)
        if node.op_type in MOVES:
            continue
        for i, output in enumerate(node.output):
            low = known.get(output)
            if low not in LOW:
                continue
            node.output[i] = f"{output}/exact"
            nodes.append(helper.make_node("Cast", [f"{output}/exact"], [f"{output}/low"], to=low))
            nodes.append(helper.make_node("Cast", [f"{output}/low"], [output], to=TensorProto.FLOAT))
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return out, known


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

"""The plain FP16 files that kiln's engines are held against: python tools/engines/plain.py MODEL OUT.converter OUT.plain

The first is what ONNX Runtime's float16 converter makes. The second is for models of which TensorRT does not take that: all floats
become FP16, and a Cast stands behind each input and before each output, which keep their types."""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
# Attributes that name a type of elements.
TYPES = {"to", "dtype"}


def narrowed(tensor):
    if tensor.data_type != FLOAT:
        return
    with np.errstate(over="ignore"):
        half = numpy_helper.to_array(tensor).astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))


def narrow(graph):
    """Everything inside a graph, bodies too."""
    del graph.value_info[:]
    for tensor in graph.initializer:
        narrowed(tensor)
    for node in graph.node:
        constants = []
        for attr in node.attribute:
            if attr.HasField("g"):
                narrow(attr.g)
            elif attr.HasField("t"):
                narrowed(attr.t)
            elif attr.name in TYPES and attr.i == FLOAT:
                attr.i = HALF
            elif node.op_type == "Constant" and attr.name in ("value_float", "value_floats"):
                value = attr.f if attr.name == "value_float" else list(attr.floats)
                constants.append((attr, numpy_helper.from_array(np.array(value, np.float16))))
        for attr, tensor in constants:
            node.attribute.remove(attr)
            node.attribute.append(helper.make_attribute("value", tensor))
        # Without a value it fills with FP32's zeros.
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))


def plain(model):
    graph = model.graph
    narrow(graph)
    constants = {tensor.name for tensor in graph.initializer}
    inside = {}
    for value in graph.input:
        if value.type.tensor_type.elem_type == FLOAT and value.name not in constants:
            inside[value.name] = value.name + "_half"
    casts = [helper.make_node("Cast", [a], [b], to=HALF) for a, b in inside.items()]
    outside = {v.name: v.name + "_half" for v in graph.output if v.type.tensor_type.elem_type == FLOAT}
    for node in graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = inside.get(name, outside.get(name, name))
        for k, name in enumerate(node.output):
            node.output[k] = outside.get(name, name)
    last = [helper.make_node("Cast", [b], [a], to=FLOAT) for a, b in outside.items()]
    nodes = [*casts, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def main():
    source, converter, nearest = sys.argv[1:]
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(plain(onnx.load(source)), nearest)
    try:
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), converter)
    except Exception as e:  # What it cannot convert is said; the nearest file stands in.
        print(f"{type(e).__name__}: {e}".splitlines()[0], file=sys.stderr)


if __name__ == "__main__":
    main()

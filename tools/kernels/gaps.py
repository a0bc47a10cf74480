#!/usr/bin/env python3
"""gaps.py: versions of standard operators that ONNX Runtime's CPU provider does not run, though it runs the version before.

Each operator of ONNX is given to ONNX Runtime as a model of one node, at each of its versions up to --newest and in each
dtype. Prints what `passes/core/kernels.rs` holds: operator, version, dtypes. Takes onnx and onnxruntime."""
import argparse
import collections

import onnx
import onnxruntime as ort
from onnx import defs, helper

DTYPES = {
    "float": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "string": 8, "bool": 9, "float16": 10, "double": 11,
}
# What a required attribute is, where 1 does not do.
ATTRS = {
    "kernel_shape": [1, 1], "shape": [2, 2], "pooled_shape": [1, 1], "hidden_size": 4, "direction": "LEFT", "equation": "i->i",
}


def model(name, version, dtype):
    """A model of one node whose operands are of this dtype where they may be; None where none of them may."""
    schema = defs.get_schema(name, version, "")
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    inputs, met = [], False
    for k, formal in enumerate(schema.inputs):
        if formal.option == defs.OpSchema.FormalParameterOption.Optional:
            break
        types = allowed.get(formal.type_str, [formal.type_str])
        wanted = f"tensor({dtype})"
        met |= wanted in types
        fitting = [t for t in [wanted, *map("tensor({})".format, DTYPES)] if t in types]
        if not fitting:
            return None
        inputs.append(helper.make_tensor_value_info(f"i{k}", DTYPES[fitting[0][7:-1]], None))
    if inputs and not met:
        return None
    single = defs.OpSchema.FormalParameterOption.Single
    outputs = [f"o{k}" for k, formal in enumerate(schema.outputs) if formal.option == single] or ["o0"]
    attrs = {a: ATTRS.get(a, 1) for a, d in schema.attributes.items() if d.required}
    if name in ("GRU", "LSTM", "RNN"):
        attrs["hidden_size"] = 4
    node = helper.make_node(name, [i.name for i in inputs], outputs, name="n", **attrs)
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name=o) for o in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)


def runs(name, version, dtype):
    """Whether it loads; None where the model itself is refused."""
    made = model(name, version, dtype)
    if made is None:
        return None
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return True
    except Exception as error:
        text = str(error)
        return False if "NOT_IMPLEMENTED" in text or "Could not find an implementation" in text else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--newest", type=int, default=24)
    newest = parser.parse_args().newest
    ort.set_default_logger_severity(4)
    versions = collections.defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        # If, Loop and Scan take bodies, and their kernels know all versions.
        if schema.domain == "" and not schema.deprecated and schema.name not in ("If", "Loop", "Scan"):
            versions[schema.name].append(schema.since_version)
    print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}")
    for name, all_versions in sorted(versions.items()):
        known = sorted(v for v in all_versions if v <= newest)
        for before, after in zip(known, known[1:]):
            lost = [d for d in DTYPES if runs(name, before, d) and runs(name, after, d) is False]
            if lost:
                print(f"{name}-{before} runs and {name}-{after} does not: {', '.join(lost)}")


if __name__ == "__main__":
    main()

"""What became of a model: python tools/peers/examine.py ORIGINAL CANDIDATE, prints JSON.

`nodes`: of the main graph. `attention`: nodes that are a whole attention. `error`: the largest relative L2 error of an output
against the original's on the same inputs (ONNX Runtime, graph optimizations disabled, seed 1), or `refused`: why it does not
run."""

import json
import sys

import numpy as np
import onnx
import onnxruntime as ort

ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention"}
SIZES = {"batch": 2, "seq": 24}


def session(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def inputs(of):
    rng = np.random.default_rng(1)
    feed = {}
    for spec in of.get_inputs():
        # Dimensions without a size are the batch and then the length of a text, whatever their names.
        free = iter(SIZES.values())
        shape = [d if isinstance(d, int) else next(free) for d in spec.shape]
        if spec.type == "tensor(float)":
            feed[spec.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            kind = "mask" if "mask" in spec.name else "type" if "type" in spec.name or "segment" in spec.name else "ids"
            feed[spec.name] = {"mask": np.ones, "type": np.zeros}.get(kind, lambda s: rng.integers(3, 150, s))(shape).astype(np.int64)
    return feed


def error(original, candidate):
    feed = inputs(original)
    worst = 0.0
    for a, b in zip(original.run(None, feed), candidate.run(None, feed)):
        a, b = a.astype(np.float64), b.astype(np.float64)
        worst = max(worst, float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-30)))
    return worst


if __name__ == "__main__":
    original, candidate = sys.argv[1:]
    graph = onnx.load(candidate, load_external_data=False).graph
    found = {"nodes": len(graph.node), "attention": sum(node.op_type in ATTENTION for node in graph.node)}
    try:
        found["error"] = error(session(original), session(candidate))
    except Exception as refused:
        found["refused"] = str(refused).splitlines()[0][:200]
    print(json.dumps(found))

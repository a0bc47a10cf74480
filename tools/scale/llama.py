"""A decoder of Llama's shape as the dynamo exporter spells it, with external data of any size:

    python tools/scale/llama.py FOLDER [--layers 32] [--hidden 4096] [--ffn 11008] [--heads 32] [--vocab 32000] [--dense 0,31]

The defaults have 6.7 billion parameters: 27 GB in FP32. Most of that is holes, so that it takes little room on a disk: a
weight has random numbers in its first page, which makes it unlike the others, and zeros behind it. The layers of --dense,
the embedding's first rows and the head are random throughout; a layer of zeros adds nothing to the residual stream, so
the outputs are those of the dense layers in their places."""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PAGE = 4096
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


class Writer:
    def __init__(self, folder, dense):
        self.data = open(folder / "model.onnx.data", "wb")
        self.dense, self.at = dense, 0
        self.nodes, self.initializers, self.count = [], [], 0
        self.rng = np.random.default_rng(1)
        self.constants = {}

    def node(self, op, *inputs, name=None, **attributes):
        self.count += 1
        output = name or f"val_{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"node_{op}_{self.count}", **attributes))
        return output

    def constant(self, values, dtype=np.int64):
        key = (str(values), dtype)
        if key not in self.constants:
            name = f"const_{len(self.constants)}"
            self.initializers.append(numpy_helper.from_array(np.array(values, dtype), name))
            self.constants[key] = name
        return self.constants[key]

    def weight(self, name, shape, dense, scale=None):
        """A weight in the data file. Its numbers are of a spread that keeps activations at theirs."""
        scale = scale or shape[0] ** -0.5
        length = int(np.prod(shape)) * 4
        self.at = -(-self.at // PAGE) * PAGE
        self.data.seek(self.at)
        left = length if dense else min(length, PAGE)
        while left:
            part = min(left, 64 << 20)
            # A page of a weight that is meant to be nothing stays small beside what is dense.
            spread = scale if dense else 1e-6
            self.data.write((self.rng.standard_normal(part // 4, np.float32) * np.float32(spread)).tobytes())
            left -= part
        tensor = TensorProto(name=name, data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.onnx.data"), ("offset", self.at), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        self.at += length
        return name

    def norm(self, x, name, width):
        weight = f"{name}.weight"
        self.initializers.append(numpy_helper.from_array(1 + 0.1 * self.rng.standard_normal(width, np.float32), weight))
        square = self.node("Pow", x, self.constant(2.0, np.float32))
        mean = self.node("ReduceMean", square, self.constant([-1]), keepdims=1)
        root = self.node("Sqrt", self.node("Add", mean, self.constant(1e-6, np.float32)))
        scaled = self.node("Mul", x, self.node("Reciprocal", root))
        return self.node("Mul", weight, scaled)

    def rotate(self, x, cos, sin, size):
        half, end = self.constant([size // 2]), self.constant([2**63 - 1])
        first = self.node("Slice", x, self.constant([0]), half, self.constant([3]), self.constant([1]))
        second = self.node("Slice", x, half, end, self.constant([3]), self.constant([1]))
        turned = self.node("Concat", self.node("Neg", second), first, axis=-1)
        return self.node("Add", self.node("Mul", x, cos), self.node("Mul", turned, sin))


def build(folder, layers, hidden, ffn, heads, vocab, dense):
    folder.mkdir(parents=True, exist_ok=True)
    w = Writer(folder, dense)
    size = hidden // heads
    shape = w.node("Shape", "input_ids")
    batch, seq = (w.node("Slice", shape, w.constant([k]), w.constant([k + 1])) for k in (0, 1))
    x = w.node("Gather", w.weight("embed_tokens.weight", [vocab, hidden], False, 1.0), "input_ids", axis=0)
    # The first page of the embedding is small; this makes tokens different without a dense table.
    lift = w.node("Cast", "input_ids", to=FLOAT)
    lift = w.node("Unsqueeze", lift, w.constant([2]))
    wave = w.rng.standard_normal(hidden).astype(np.float32)
    w.initializers.append(numpy_helper.from_array(wave, "wave"))
    x = w.node("Add", x, w.node("Sin", w.node("Mul", lift, "wave")))

    length = w.node("Squeeze", seq)
    steps = w.node("Range", w.constant(0), length, w.constant(1))
    row = w.node("Unsqueeze", steps, w.constant([1]))
    causal = w.node("LessOrEqual", w.node("Unsqueeze", steps, w.constant([0])), row)
    mask = w.node("Where", causal, w.constant(0.0, np.float32), w.constant(np.finfo(np.float32).min, np.float32))
    mask = w.node("Unsqueeze", mask, w.constant([0, 1]))
    w.initializers.append(numpy_helper.from_array((10000.0 ** -(np.arange(0, size, 2) / size)).astype(np.float32), "inv_freq"))
    angles = w.node("Mul", w.node("Cast", row, to=FLOAT), "inv_freq")
    angles = w.node("Concat", angles, angles, axis=-1)
    cos, sin = (w.node("Unsqueeze", w.node(f, angles), w.constant([0, 1])) for f in ("Cos", "Sin"))
    split = w.node("Concat", batch, seq, w.constant([heads]), w.constant([size]), axis=0)
    join = w.node("Concat", batch, seq, w.constant([hidden]), axis=0)

    for k in range(layers):
        name = f"layers.{k}"
        linear = lambda x, part, shape: w.node("MatMul", x, w.weight(f"{name}.{part}.weight", shape, k in dense))
        h = w.norm(x, f"{name}.input_layernorm", hidden)
        q, key, v = (
            w.node("Transpose", w.node("Reshape", linear(h, part, [hidden, hidden]), split), perm=[0, 2, 1, 3])
            for part in ("q_proj", "k_proj", "v_proj")
        )
        q, key = w.rotate(q, cos, sin, size), w.rotate(key, cos, sin, size)
        scores = w.node("MatMul", q, w.node("Transpose", key, perm=[0, 1, 3, 2]))
        scores = w.node("Add", w.node("Mul", scores, w.constant(size**-0.5, np.float32)), mask)
        attended = w.node("MatMul", w.node("Softmax", scores, axis=-1), v)
        attended = w.node("Reshape", w.node("Transpose", attended, perm=[0, 2, 1, 3]), join)
        x = w.node("Add", x, linear(attended, "o_proj", [hidden, hidden]))
        h = w.norm(x, f"{name}.post_attention_layernorm", hidden)
        gate = linear(h, "gate_proj", [hidden, ffn])
        gate = w.node("Mul", gate, w.node("Sigmoid", gate))
        up = linear(h, "up_proj", [hidden, ffn])
        x = w.node("Add", x, linear(w.node("Mul", gate, up), "down_proj", [ffn, hidden]))
    x = w.norm(x, "norm", hidden)
    w.node("MatMul", x, w.weight("lm_head.weight", [hidden, vocab], True), name="logits")
    w.data.truncate(w.at)

    ids = helper.make_tensor_value_info("input_ids", INT64, ["batch", "seq"])
    logits = helper.make_tensor_value_info("logits", FLOAT, ["batch", "seq", vocab])
    graph = helper.make_graph(w.nodes, "llama", [ids], [logits], w.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    print(f"{folder}: {w.at / 1e9:.1f} GB of weights, {w.at / 4e9:.2f} billion parameters, {len(w.nodes)} nodes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("layers", 32), ("hidden", 4096), ("ffn", 11008), ("heads", 32), ("vocab", 32000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dense", default="0", help="layers that are random throughout")
    a = parser.parse_args()
    build(a.folder, a.layers, a.hidden, a.ffn, a.heads, a.vocab, {int(k) for k in a.dense.split(",")})

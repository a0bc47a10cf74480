"""Runs models in ONNX Runtime and holds their outputs against the expected ones.

Reads lines of JSON {"model", "data", "optimized"} and answers each with {"status": "equal" | "differs" | "does not run", "why"}.
A process of its own, as the runtime may die of a model."""

import ctypes
import json
import pickle
import sys

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

# NumPy's types that ONNX Runtime's Python binding does not pass by themselves, as ONNX numbers them, with their bits.
FOREIGN = {
    np.dtype(getattr(ml_dtypes, name)): (number, bits)
    for name, number, bits in (
        ("bfloat16", onnx.TensorProto.BFLOAT16, 16), ("float8_e4m3fn", onnx.TensorProto.FLOAT8E4M3FN, 8),
        ("float8_e4m3fnuz", onnx.TensorProto.FLOAT8E4M3FNUZ, 8), ("float8_e5m2", onnx.TensorProto.FLOAT8E5M2, 8),
        ("float8_e5m2fnuz", onnx.TensorProto.FLOAT8E5M2FNUZ, 8), ("float8_e8m0fnu", onnx.TensorProto.FLOAT8E8M0, 8),
        ("float4_e2m1fn", onnx.TensorProto.FLOAT4E2M1, 4), ("int4", onnx.TensorProto.INT4, 4), ("uint4", onnx.TensorProto.UINT4, 4),
        ("int2", onnx.TensorProto.INT2, 2), ("uint2", onnx.TensorProto.UINT2, 2))
}
BY_NUMBER = {number: (dtype, bits) for dtype, (number, bits) in FOREIGN.items()}

# Two units in the last place, as onnx.backend.test.runner has it.
BFLOAT16_RTOL = 2**-6
LOW = {np.dtype(getattr(ml_dtypes, n)) for n in dir(ml_dtypes) if n.startswith(("float8", "float6", "float4", "bfloat", "int4", "uint4", "int2", "uint2"))}


def session(model, optimized):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def difference(expected, found, rtol, atol, at=""):
    """What is wrong with `found`; empty if nothing is."""
    if expected is None or found is None:
        return "" if expected is None and found is None else f"{at}: only one of them is there"
    if isinstance(expected, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(expected):
            return f"{at}: another number of elements"
        each = (difference(e, f, rtol, atol, f"{at}[{k}]") for k, (e, f) in enumerate(zip(expected, found)))
        return next((d for d in each if d), "")
    if isinstance(expected, dict):
        if not isinstance(found, dict) or expected.keys() != found.keys():
            return f"{at}: other keys"
        each = (difference(expected[k], found[k], rtol, atol, f"{at}[{k}]") for k in expected)
        return next((d for d in each if d), "")
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.shape != found.shape:
        return f"{at}: shape {list(found.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind in "OUS" or found.dtype.kind in "OUS":
        same = np.array_equal(expected.astype(object), found.astype(object))
        return "" if same else f"{at}: other strings"
    if expected.dtype != found.dtype:
        return f"{at}: {found.dtype} instead of {expected.dtype}"
    if expected.dtype in LOW:
        rtol = max(rtol, BFLOAT16_RTOL)
        expected, found = expected.astype(np.float32), found.astype(np.float32)
    if expected.dtype.kind in "fc":
        close = np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    else:
        close = np.asarray(found == expected)
    if close.all():
        return ""
    wrong = np.argwhere(~close)[0].tolist()
    where = tuple(wrong)
    return f"{at}: {int((~close).sum())} of {close.size} elements differ, at {wrong} {found[where]} instead of {expected[where]}"


def to_ort(value):
    if value.dtype not in FOREIGN:
        return ort.OrtValue.ortvalue_from_numpy(value)
    number, bits = FOREIGN[value.dtype]
    bytes_ = value.view(np.uint16 if bits == 16 else np.uint8)
    if bits < 8:
        # Elements share bytes from the lowest bit on. The binding reads the shape of the array, so it stays as long.
        flat = (bytes_ & (2**bits - 1)).reshape(-1)
        each = 8 // bits
        rows = np.concatenate([flat, np.zeros(-len(flat) % each, np.uint8)]).reshape(-1, each)
        packed = (rows << (np.arange(each, dtype=np.uint8) * bits)).sum(axis=1).astype(np.uint8)
        bytes_ = np.concatenate([packed, np.zeros(len(flat) - len(packed), np.uint8)]).reshape(value.shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(bytes_), number)


def from_ort(value):
    if not value.is_tensor() or value.element_type() not in BY_NUMBER:
        return value.numpy()
    dtype, bits = BY_NUMBER[value.element_type()]
    count = int(np.prod(value.shape()))
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), -(-count * bits // 8)), np.uint8) if count else np.zeros(0, np.uint8)
    if bits == 16:
        return raw.view(dtype).reshape(value.shape())
    if bits < 8:
        each = 8 // bits
        raw = ((raw[:, None] >> (np.arange(each, dtype=np.uint8) * bits)) & (2**bits - 1)).reshape(-1)[:count]
        if dtype.name.startswith("int"):
            raw = np.where(raw >= 2 ** (bits - 1), raw | (0xFF << bits & 0xFF), raw).astype(np.int8)
            return raw.astype(dtype).reshape(value.shape())
        if dtype.name.startswith("uint"):
            return raw.astype(dtype).reshape(value.shape())
    return np.ascontiguousarray(raw.astype(np.uint8)).view(dtype).reshape(value.shape())


def run(it, feed, expected):
    """The outputs, by the binding's own way wherever it has one."""
    arrays = [v for v in [*feed.values(), *expected] if isinstance(v, np.ndarray)]
    if not any(v.dtype in FOREIGN for v in arrays) or len(arrays) < len(feed) + len(expected):
        return it.run(None, feed)
    return [from_ort(v) for v in it.run_with_ort_values(None, {n: to_ort(v) for n, v in feed.items()})]


def judge(model, data, optimized):
    try:
        it = session(model, optimized)
        names = [i.name for i in it.get_inputs()]
        every = names + [i.name for i in it.get_overridable_initializers()]
        results = []
        for inputs, expected in data["sets"]:
            # Data for initializers that are inputs too may be there.
            order = names if len(inputs) <= len(names) else every
            feed = {n: v for n, v in zip(order, inputs) if v is not None or n in names}
            results.append((expected, run(it, feed, expected)))
    except Exception as e:  # noqa: BLE001: whatever it is, the model does not run
        return {"status": "does not run", "why": " ".join(str(e).split())[:400]}
    for expected, found in results:
        if why := difference(expected, found[: len(expected)], data["rtol"], data["atol"]):
            return {"status": "differs", "why": why}
    return {"status": "equal", "why": ""}


for line in sys.stdin:
    asked = json.loads(line)
    with open(asked["data"], "rb") as file:
        known = pickle.load(file)
    print(json.dumps(judge(asked["model"], known, asked["optimized"])), flush=True)

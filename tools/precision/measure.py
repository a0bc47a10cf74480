"""Measures candidates against their reference, on the test data.

    python tools/precision/measure.py [all | MODEL,...] [--methods all | METHOD,...] [--no-latency | --only-latency]

Candidates are the folders that peers.py and kiln.py wrote. Results go to benches/results/precision, one JSON object a
line for each model and method; a candidate that fails keeps its line, with the error. Numbers:

graph    accuracy of the graph's own arithmetic: ONNX Runtime without optimizations, so that Q/DQ pairs run in FP32, with
         each FP16 or BF16 value rounded (rounded.py). What a GPU computes, but for the order of sums.
runtime  accuracy as ONNX Runtime's CPU provider runs it, all optimizations; only of candidates without FP16 and BF16.
latency  medians of runs in turns in one process, over the reference's; batch 1 and 128 tokens, or one picture."""

import argparse
import datetime
import json
import os
import platform
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

import rounded
from common import RESULTS, WORK, chosen, read
from data import samples
from models import MODELS

THREADS = (1, 2)
WARM = 3
ROUNDS = 25
EIGHT = {TensorProto.INT8: "int8", TensorProto.UINT8: "int8"}
FP8 = {getattr(TensorProto, n): "fp8" for n in ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")}
FOUR = {TensorProto.INT4: "int4", TensorProto.UINT4: "int4"}
QUANTIZED = {**EIGHT, **FP8, **FOUR}
INTEGER = {"MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QAttention"}
PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "MatMulNBits", *INTEGER}
ATTENTION = {"Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention"}


def session(model, threads=2, optimize=True):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(session_, feed, outputs=None):
    return session_.run(outputs, {i.name: feed[i.name] for i in session_.get_inputs()})


class Accuracy:
    """Errors, added up over the samples."""

    def __init__(self, rows):
        self.rows = rows
        self.dot = self.aa = self.bb = self.error = 0.0
        self.worst = 1.0
        self.agree = self.all = self.nonfinite = 0

    def add(self, a, b):
        top = [v.reshape(1, -1) if self.rows == "map" else v.reshape(-1, v.shape[-1]) for v in (a, b)]
        self.agree += int(np.sum(top[0].argmax(1) == top[1].argmax(1)))
        self.all += len(top[0])
        self.nonfinite += int(np.sum(~np.isfinite(b)))
        a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
        dot, aa, bb = a @ b, a @ a, b @ b
        self.worst = min(self.worst, dot / np.sqrt(aa * bb)) if np.isfinite(bb) and bb > 0 else float("nan")
        self.dot, self.aa, self.bb = self.dot + dot, self.aa + aa, self.bb + bb
        self.error += float(((a - b) ** 2).sum())

    def facts(self):
        if self.nonfinite:
            return {"nonfinite": self.nonfinite}
        return {
            "cosine": round(float(self.dot / np.sqrt(self.aa * self.bb)), 8),
            "worst_cosine": round(float(self.worst), 8),
            "sqnr_db": round(float(10 * np.log10(self.aa / self.error)), 2) if self.error else None,
            "argmax": round(self.agree / self.all, 5),
        }


def accuracy(session_, reference, feeds, facts):
    sums = Accuracy(facts["rows"])
    for feed, expected in zip(feeds, reference):
        sums.add(expected, run(session_, feed, [facts["main"]])[0])
    return sums.facts()


def sizes(model):
    """Bytes of the matrices that are quantized, with scales and zero points where an operator reads them beside the matrix."""
    weights = {t.name: t for t in model.graph.initializer}
    size = {n: nbytes(t) for n, t in weights.items()}
    count = {n: int(np.prod(t.dims)) for n, t in weights.items()}
    seen = set()
    total = elements = 0
    for node in model.graph.node:
        op, of = node.op_type, list(node.input)
        if op == "DequantizeLinear":
            matrix, beside = of[0], of[1:]
        elif op == "MatMulNBits":
            matrix, beside = of[1], of[2:4]
        elif op in INTEGER:
            matrix, beside = next(((i, []) for i in of if i in weights and len(weights[i].dims) > 1), (None, []))
        else:
            continue
        if matrix not in weights or matrix in seen or len(weights[matrix].dims) < 2:
            continue
        if weights[matrix].data_type not in QUANTIZED:
            continue
        seen.add(matrix)
        total += size[matrix] + sum(size.get(i, 0) for i in beside)
        bits = rounded.attribute(node, "bits", 4)
        elements += count[matrix] * 8 // bits if op == "MatMulNBits" else count[matrix]
    return {"quantized_bytes": total, "quantized_elements": elements}


def nbytes(tensor):
    bits = {**dict.fromkeys(FOUR, 4), **dict.fromkeys((*EIGHT, *FP8), 8)}.get(tensor.data_type)
    bits = bits or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return (int(np.prod(tensor.dims)) * bits + 7) // 8


def shares(model, known, plain, feed):
    """Of the multiplications of matrix products on one sample: the parts by type of the factors. Shapes are those of a run."""
    graph = model.graph
    nodes = [n for n in graph.node if n.op_type in PRODUCTS | ATTENTION]
    made = {o: n for n in graph.node for o in n.output}
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    wanted = {v for n in nodes for v in (*n.input, *n.output) if v and v not in shapes}
    out = onnx.ModelProto()
    out.CopyFrom(plain)
    have = {o.name for o in graph.output}
    made_plain = {o for n in plain.graph.node for o in n.output}
    inputs = {i.name for i in graph.input}
    for name in sorted(wanted - have - inputs):
        if name in made_plain:
            low = known[name] in rounded.LOW
            out.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT if low else known[name], None))
    s = session(out, optimize=False)
    names = [o.name for o in s.get_outputs()]
    shapes.update({n: list(v.shape) for n, v in zip(names, run(s, feed))})
    shapes.update({n: list(v.shape) for n, v in feed.items()})

    def factor(value):
        """The type that the factor is stored or computed in."""
        while value in made and made[value].op_type in (*rounded.MOVES - {"Constant"}, "Cast"):
            value = made[value].input[0]
        if value in made and made[value].op_type == "DequantizeLinear":
            return QUANTIZED.get(known[made[value].input[0]], "other")
        return rounded.LOW.get(known.get(value), "fp32")

    parts = {}

    def add(kind, products):
        parts[kind] = parts.get(kind, 0) + products

    for node in nodes:
        op, of = node.op_type, node.input
        y = shapes[node.output[0]]
        if op in PRODUCTS and op != "QAttention":
            a = shapes[of[0]]
            inner = a[0] if rounded.attribute(node, "transA", 0) else a[-1]
            if op in INTEGER:
                kind = "int8"
            elif op == "MatMulNBits":
                kind = f"int{rounded.attribute(node, 'bits', 4)} weights"
            else:
                left, right = factor(of[0]), factor(of[1])
                if left == right:
                    kind = left
                elif right in ("int8", "int4", "fp8"):
                    kind = f"{right} weights"
                elif left in ("int8", "int4", "fp8"):
                    kind = "fp32" if right == "fp32" else right
                else:
                    kind = right if left == "fp32" else left
            add(kind, int(np.prod(y)) * inner)
            continue
        type_ = "int8" if op == "QAttention" else rounded.LOW.get(known[node.output[0]], "fp32")
        query = shapes[of[0]]
        if op in ("QAttention",) or node.domain == "com.microsoft" and op == "Attention":
            add(type_, query[0] * query[1] * int(np.prod(shapes[of[1]])))
            keys = query[1]
        else:
            keys = shapes[of[1]][-2] if len(of) > 1 and of[1] else query[1]
        add("fp32" if op == "QAttention" else type_, 2 * int(np.prod(y)) * keys)
    total = sum(parts.values())
    return {k: round(v / total, 4) for k, v in sorted(parts.items())} if total else {}


def disk(folder):
    return sum(p.stat().st_size for p in folder.glob("model.onnx*"))


def measure(model, method, folder, reference, feeds):
    facts = {"model": model, "method": method}
    stated = read(folder / "candidate.json")
    facts.update({k: v for k, v in stated.items() if k not in facts})
    if stated.get("error"):
        return facts
    try:
        path = folder / "model.onnx"
        loaded = onnx.load(path)
        low = rounded.used(loaded)
        facts.update(bytes=disk(folder), low_types=sorted(low), **sizes(loaded))
        plain, known = rounded.rounded(loaded)
        how = MODELS[model]
        facts["graph"] = accuracy(session(plain, optimize=False), reference, feeds, how)
        if not low:
            facts["runtime"] = accuracy(session(path), reference, feeds, how)
        try:
            facts["products"] = shares(loaded, known, plain, feeds[0])
        except Exception as error:
            facts["products_error"] = repr(error)[:300]
    except Exception as error:
        facts["error"] = f"measuring: {error!r}"[:300]
    return facts


def latency(model, folders):
    """Medians in ms and ratios to the reference, by threads, in turns; the error where a candidate does not run."""
    feed = samples(model, "long")[0] if MODELS[model]["kind"] == "image" else dict(np.load(WORK / model / "long.npz"))
    out = {method: {} for method in folders}
    for threads in THREADS:
        sessions = {}
        for method, path in {None: WORK / model / "model.onnx", **folders}.items():
            try:
                sessions[method] = session(path, threads)
                for _ in range(WARM):
                    run(sessions[method], feed)
            except Exception as error:
                sessions.pop(method, None)
                out[method]["error"] = str(error)[:200]
        times = {method: [] for method in sessions}
        for _ in range(ROUNDS):
            for method, s in sessions.items():
                begin = time.perf_counter()
                run(s, feed)
                times[method].append(time.perf_counter() - begin)
        base = np.median(times[None])
        for method in folders:
            if method in times:
                median = np.median(times[method])
                out[method][f"threads_{threads}"] = {
                    "ms": round(float(median) * 1e3, 2),
                    "reference_ms": round(float(base) * 1e3, 2),
                    "ratio": round(float(median / base), 3),
                }
    return out


def environment():
    cpu = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    flags = next((l.split() for l in open("/proc/cpuinfo") if l.startswith("flags")), [])
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "vnni": any("vnni" in f for f in flags),
        "load": round(os.getloadavg()[0], 1),
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
        "note": "the machine was shared with other work" if os.getloadavg()[0] > 3 else "",
    }


def again(model, found):
    rows = [r for r in saved("kiln") + saved("peers") if r["model"] == model and not r.get("error")]
    paths = {p.name: p / "model.onnx" for p in found}
    times = latency(model, {r["method"]: paths[r["method"]] for r in rows if r["method"] in paths})
    rows = [row for row in rows if row["method"] in times]
    for row in rows:
        row.update(latency=times[row["method"]], environment=environment())
    save(rows)


def saved(source):
    path = RESULTS / f"{source}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def save(rows):
    """Lines of the same model and method are replaced."""
    for row in rows:
        source = "kiln" if row["method"].startswith("kiln") else "peers"
        path = RESULTS / f"{source}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        old = saved(source)
        keys = [(r["model"], r["method"]) for r in old]
        key = (row["model"], row["method"])
        if key in keys:
            old[keys.index(key)] = row
        else:
            old.append(row)
        path.write_text("".join(json.dumps(r) + "\n" for r in old))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="?", default="all")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--only-latency", action="store_true", help="measured on a quiet machine, into the lines that are there")
    arguments = parser.parse_args()
    rounded.check(lambda model, feed: run(session(model, optimize=False), feed))
    for model in chosen(arguments.models, MODELS, "model"):
        found = sorted(p.parent for p in (WORK / model / "candidates").glob("*/candidate.json"))
        names = chosen(arguments.methods, [p.name for p in found], "candidate")
        found = [p for p in found if p.name in names]
        if arguments.only_latency:
            again(model, found)
            continue
        feeds = samples(model, "test")
        original = session(WORK / model / "model.onnx")
        reference = [run(original, feed, [MODELS[model]["main"]])[0] for feed in feeds]
        del original
        rows = []
        for folder in found:
            begin = time.monotonic()
            rows.append(measure(model, folder.name, folder, reference, feeds))
            row = rows[-1]
            print(model, folder.name, row.get("error") or row["graph"], f"{time.monotonic() - begin:.0f} s", flush=True)
        good = {r["method"]: p / "model.onnx" for r, p in zip(rows, found) if not r.get("error")}
        if good and not arguments.no_latency:
            times = latency(model, good)
            for row in rows:
                row["latency"] = times.get(row["method"])
        data = read(WORK / model / "data.json")
        for row in rows:
            row.update(test_sha256=data["sha256"]["test"], environment=environment())
        save(rows)


if __name__ == "__main__":
    main()

"""Real inputs, and what a model gives on them: python tools/real/judge.py record MODEL
or judge MODEL CANDIDATE.onnx OUT.json

`record` runs the package's code around the original and keeps inputs, outputs and decisions in target/real/inputs/MODEL. It also
measures the floor: how far the original is from itself with ONNX Runtime's optimizations. `judge` measures a candidate on the
same inputs, and lets the package's code decide with it. A candidate in FP16 runs as tools/precision/rounded.py writes it: each
node rounds. Optimizations are off, for both."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "precision")]
from adapter import Session, adapter  # noqa: E402
from catalog import WORK, model_path  # noqa: E402


def opened(model, optimized=False):
    """A function from inputs to outputs by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    takes = {i.name for i in session.get_inputs()}

    def run(feed):
        return dict(zip(names, session.run(names, {k: v for k, v in feed.items() if k in takes})))

    return run


def twin(path):
    """A candidate as a GPU computes it, and the short formats that it rounds to."""
    import rounded

    model = onnx.load(path)
    formats = sorted(rounded.used(model))
    return (rounded.rounded(model)[0] if formats else model), formats


def folder(name):
    return WORK / "inputs" / name


def load_samples(name):
    with np.load(folder(name) / "samples.npz") as data:
        arrays = {key: data[key] for key in data.files}
    samples = {}
    for key, value in arrays.items():
        index, side, tensor = key.split("/", 2)
        samples.setdefault(int(index), {"in": {}, "out": {}})[side][tensor] = value
    return [samples[i] for i in sorted(samples)]


def differ(expected, got):
    """Relative L2, largest error over the largest value, and for integers the share that is not equal."""
    if expected.dtype.kind != "f":
        return {"unequal": float(np.mean(expected != got)) if expected.shape == got.shape else 1.0}
    if expected.shape != got.shape:
        return {"relative_l2": float("inf")}
    a, b = expected.astype(np.float64), got.astype(np.float64)
    error = b - a
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return {"relative_l2": float("inf")}
    norm, largest = np.sqrt(np.nansum(a * a)), np.nanmax(np.abs(a), initial=0)
    return {
        "relative_l2": float(np.sqrt(np.nansum(error * error)) / (norm or 1)),
        "max_abs": float(np.nanmax(np.abs(error), initial=0)),
        "max_scaled": float(np.nanmax(np.abs(error), initial=0) / (largest or 1)),
    }


def errors(run, samples):
    """The worst of each number over samples and outputs, and those of the first sample."""
    worst, first = {}, {}
    for i, sample in enumerate(samples):
        outputs = run(sample["in"])
        for name, expected in sample["out"].items():
            found = differ(expected, outputs[name])
            if i == 0:
                first[name] = found
            for key, value in found.items():
                worst[key] = max(worst.get(key, 0.0), value)
    return worst, first


def record(name):
    out = folder(name)
    out.mkdir(parents=True, exist_ok=True)
    run, kept = opened(model_path(name)), []
    decide = adapter(name)
    decisions = decide(Session(run, kept))
    arrays, samples = {}, []
    for i, feed in enumerate(kept):
        outputs = run(feed)
        samples.append({"in": feed, "out": outputs})
        arrays |= {f"{i:04}/in/{k}": v for k, v in feed.items()} | {f"{i:04}/out/{k}": v for k, v in outputs.items()}
    again = opened(model_path(name), optimized=True)
    floor, _ = errors(again, samples)
    changed = sum(a[0] != b[0] for a, b in zip(decisions, decide(Session(again))))
    np.savez(out / "first.npz", **kept[0])
    np.savez(out / "samples.npz", **arrays)
    facts = {"runs": len(kept), "decisions": decisions, "floor": floor, "floor_changed": changed}
    (out / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def judge(name, candidate, out):
    model, formats = twin(candidate)
    run = opened(model)
    began = time.monotonic()
    worst, first = errors(run, load_samples(name))
    expected = json.loads((folder(name) / "facts.json").read_text())["decisions"]
    decisions = adapter(name)(Session(run))
    changed = [[i, a, b] for i, (a, b) in enumerate(zip(expected, decisions)) if a[0] != b[0]]
    moved = [abs(a[1] - b[1]) for a, b in zip(expected, decisions) if a[1] is not None and b[1] is not None]
    facts = {
        "formats": formats, "errors": worst, "first": first, "decisions": len(decisions), "changed": len(changed),
        "examples": changed[:3], "moved": max(moved, default=None), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    Path(out).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def main():
    command, *rest = sys.argv[1:]
    {"record": record, "judge": judge}[command](*rest)


if __name__ == "__main__":
    main()

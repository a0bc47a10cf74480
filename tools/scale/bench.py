"""How kiln's cost grows: python tools/scale/bench.py [--layers 32] [--only llama,nodes,weights]

`llama`: a decoder of Llama 2 7B's shape (tools/scale/llama.py), compiled to FP16 without and with the proof. `nodes`: graphs of 1,000
to 100,000 nodes. `weights`: 2,000 initializers of 4 MB. Results go to benches/results/scale.json; tools/peers/table.py writes
docs/performance.md from them. A part whose files do not fit the disk is made smaller, and says so."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "peers"))
from measure import run  # noqa: E402

WORK = ROOT / "target" / "scale"
RESULTS = ROOT / "benches" / "results" / "scale.json"
KILN = Path(os.environ.get("KILN", ROOT / "target" / "release" / "kiln"))
PYTHON = Path(sys.executable)
LIMIT = 3000
# Room that stays free on the disk, in bytes.
SPARE = 25 << 30
# Parameters of a decoder layer, and of the embedding with the head.
LAYER, REST = 4 * 4096**2 + 3 * 4096 * 11008, 2 * 32000 * 4096


def compile(model, *flags):
    out = WORK / "out.kiln"
    command = [KILN, "compile", model, "--fp16", "--target", "sm_89", "--no-engine", "--quiet", "-o", out, *flags]
    cost = run(command, LIMIT, WORK / "log", anonymous=True)
    manifest = out / "manifest.json"
    if not cost["error"]:
        facts = json.loads(manifest.read_text())
        cost["stages"] = {s["name"]: round(s["seconds"], 2) for s in facts["stages"]}
        cost["nodes"] = [facts["before"]["nodes"], facts["after"]["nodes"]]
        cost["parity"] = facts["parity"]
        cost["bytes"] = sum(f.stat().st_size for f in out.glob("model.onnx*"))
    shutil.rmtree(out, ignore_errors=True)
    return cost


def small(cost):
    """Without what a table does not say: of the proof, the worst case."""
    proof = cost.pop("parity", None)
    if proof:
        cost["parity"] = worst(proof)
    return cost


def worst(proof):
    found = []
    for case in proof["cases"]:
        for output in case["outputs"]:
            metrics = output.get("metrics") or output
            floats = metrics.get("float") or {}
            found.append({"case": case["name"], "relative_l2": floats.get("relative_l2"), "cosine": floats.get("cosine")})
    return max(found, key=lambda f: f["relative_l2"] or 0, default=None)


def fitting(layers):
    """So many layers of the result that the disk keeps its spare room."""
    free = shutil.disk_usage(WORK).free - SPARE
    most = max(1, int((free / 2 - REST - LAYER) / LAYER))
    return min(layers, most)


def llama(layers, results):
    fit = fitting(layers)
    folder = WORK / "llama"
    shutil.rmtree(folder, ignore_errors=True)
    sampled = fit // 2
    run([PYTHON, HERE / "llama.py", folder, "--layers", fit, "--dense", sampled], LIMIT, WORK / "log")
    data = folder / "model.onnx.data"
    entry = {
        "layers": fit, "asked": layers, "dense": sampled, "parameters": fit * LAYER + REST, "bytes": data.stat().st_size,
        "on_disk": data.stat().st_blocks * 512,
    }  # fmt: skip
    entry["convert"] = small(compile(folder / "model.onnx", "--no-check"))
    # One short text: a proof at more sizes shows no more of the weights.
    sizes = ["--dim", "batch=1", "--dim", "seq=16"]
    entry["proof"] = small(compile(folder / "model.onnx", "--no-latency", *sizes))
    results["llama"] = entry
    shutil.rmtree(folder, ignore_errors=True)


def nodes(_, results):
    """Llama's graph with layers of width 64: what a node costs."""
    rows = []
    for layers in (16, 160, 500, 1640):
        folder = WORK / "nodes"
        shape = ["--layers", layers, "--hidden", 64, "--ffn", 128, "--heads", 2, "--vocab", 64]
        run([PYTHON, HERE / "llama.py", folder, *shape], LIMIT, WORK / "log")
        rows.append(small(compile(folder / "model.onnx", "--no-check")))
        shutil.rmtree(folder)
    results["nodes"] = rows


def weights(_, results):
    """2,000 matrices of 4 MB: 8 GB of holes, but for a page of each."""
    folder = WORK / "weights"
    # Seven matrices of 1024 x 1024 a layer.
    layers = min(286, max(1, int((shutil.disk_usage(WORK).free - SPARE) / (7 * (2 << 20)))))
    shape = ["--layers", layers, "--hidden", 1024, "--ffn", 1024, "--heads", 8, "--vocab", 1024]
    run([PYTHON, HERE / "llama.py", folder, *shape], LIMIT, WORK / "log")
    bytes_ = (folder / "model.onnx.data").stat().st_size
    results["weights"] = {"count": 7 * layers + 2, "bytes": bytes_, **small(compile(folder / "model.onnx", "--no-check"))}
    shutil.rmtree(folder)


PARTS = {"nodes": nodes, "weights": weights, "llama": llama}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--only", default=",".join(PARTS))
    chosen = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in chosen.only.split(","):
        PARTS[part](chosen.layers, results)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")

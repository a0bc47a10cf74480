"""How kiln's cost grows: python tools/scale/bench.py [--layers 32] [--only llama,nodes,weights]

`llama`: a decoder of Llama 2 7B's shape (tools/scale/llama.py), compiled to FP16 without the proof, held against the original piece by
piece, and compiled with the proof of the whole. `nodes`: graphs of 1,000
to 100,000 nodes. `weights`: 2,000 initializers of 4 MB. Results go to benches/results/scale.json; tools/peers/table.py writes
docs/performance.md from them. The models are mostly holes, and those of the results are made while they are written, so that 4 GB of
disk do."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "peers"))
from measure import run  # noqa: E402

WORK = ROOT / "target" / "scale"
RESULTS = ROOT / "benches" / "results" / "scale.json"
KILN = Path(os.environ.get("KILN", ROOT / "target" / "release" / "kiln"))
PYTHON = Path(sys.executable)
OUT = WORK / "out.kiln"
LIMIT = 3000
# Parameters of a decoder layer, and of the embedding with the head.
LAYER, REST = 4 * 4096**2 + 3 * 4096 * 11008, 2 * 32000 * 4096


class Digger(threading.Thread):
    """Gives zeros of the growing result back to the disk, behind the writer, which writes from front to end."""

    BEHIND = 64 << 20

    def __init__(self):
        super().__init__(daemon=True)
        self.over = threading.Event()

    def run(self):
        done = {}
        while not self.over.wait(0.5):
            for file in WORK.glob("out.kiln.*.part/model.onnx.data*"):
                try:
                    start, end = done.get(file, 0), file.stat().st_size - self.BEHIND
                except FileNotFoundError:
                    continue
                if end > start:
                    command = ["fallocate", "--dig-holes", "--offset", str(start), "--length", str(end - start), file]
                    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
                    done[file] = end


def compile(model, *flags, keep=False):
    digger = Digger()
    digger.start()
    try:
        return measured(model, *flags)
    finally:
        digger.over.set()
        digger.join()
        if not keep:
            shutil.rmtree(OUT, ignore_errors=True)


def measured(model, *flags):
    out = OUT
    shutil.rmtree(out, ignore_errors=True)
    command = [KILN, "compile", model, "--fp16", "--target", "sm_89", "--no-engine", "--quiet", "-o", out, *flags]
    cost = run(command, LIMIT, WORK / "log", anonymous=True)
    manifest = out / "manifest.json"
    if not cost["error"]:
        facts = json.loads(manifest.read_text())
        cost["stages"] = {s["name"]: round(s["seconds"], 2) for s in facts["stages"]}
        cost["nodes"] = [facts["before"]["nodes"], facts["after"]["nodes"]]
        cost["parity"] = facts["parity"]
        cost["bytes"] = sum(f.stat().st_size for f in out.glob("model.onnx*"))
    return cost


def pieces(model, dense, *sizes):
    """Holds the result against the original piece by piece. Of the numbers, the worst, and those of the piece with the dense layer."""
    report = WORK / "pieces.json"
    command = [KILN, "check", OUT, "--reference", model, "--pieces", "--quiet", "--report", report, *sizes]
    cost = run(command, LIMIT, WORK / "log", anonymous=True)
    if not cost["error"]:
        facts = json.loads(report.read_text())
        found = facts["pieces"]
        cost["pieces"] = len(found)
        cost["largest_bytes"] = max(p["bytes"] for p in found)
        cost["parity"] = worst(facts["parity"])
        at = next(k for k, p in enumerate(found) if p["weight"].startswith(f"layers.{dense}."))
        layer = {"cases": [c for c in facts["parity"]["cases"] if f"piece {at + 1} of" in c["name"]]}
        cost["layer"] = {**found[at], **worst(layer)}
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
            floats = (output["comparison"].get("metrics") or {}).get("float") or {}
            found.append({"case": case["name"], "relative_l2": floats.get("relative_l2"), "cosine": floats.get("cosine")})
    return max(found, key=lambda f: f["relative_l2"] or 0, default=None)


def llama(layers, results):
    folder = WORK / "llama"
    shutil.rmtree(folder, ignore_errors=True)
    sampled = layers // 2
    run([PYTHON, HERE / "llama.py", folder, "--layers", layers, "--dense", sampled], LIMIT, WORK / "log")
    data = folder / "model.onnx.data"
    entry = {
        "layers": layers, "dense": sampled, "parameters": layers * LAYER + REST, "bytes": data.stat().st_size,
        "on_disk": data.stat().st_blocks * 512,
    }  # fmt: skip
    results["llama"] = entry
    entry["convert"] = small(compile(folder / "model.onnx", "--no-check", keep=True))
    print(json.dumps(entry), flush=True)
    # One short text: a proof at more sizes shows no more of the weights.
    sizes = ["--dim", "batch=1", "--dim", "seq=16"]
    entry["pieces"] = pieces(folder / "model.onnx", sampled, *sizes)
    print(json.dumps(entry["pieces"]), flush=True)
    entry["proof"] = small(compile(folder / "model.onnx", "--no-latency", *sizes))
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
    layers = 286
    shape = ["--layers", layers, "--hidden", 1024, "--ffn", 1024, "--heads", 8, "--vocab", 1024]
    run([PYTHON, HERE / "llama.py", folder, *shape], LIMIT, WORK / "log")
    results["weights"] = {"count": 7 * layers + 2, **small(compile(folder / "model.onnx", "--no-check"))}
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

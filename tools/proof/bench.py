"""What a proof costs, by stages: python tools/proof/bench.py [--before KILN] [--models NAME,...] [--rounds N]

Each model is compiled with its proof, for a GPU that is not here and for this CPU. With --before, another kiln compiles the same, in turns.
Of the rounds the fastest is kept. Results go to benches/results/proof.json, and the table to docs/proof.md."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "peers"))
from measure import run  # noqa: E402

WORK = ROOT / "target" / "proof"
MODELS_AT = Path(os.environ.get("PROOF_MODELS", ROOT / "target" / "peers" / "models"))
RESULTS = ROOT / "benches" / "results" / "proof.json"
PAGE = ROOT / "docs" / "proof.md"
EXPORTER = Path(os.environ.get("PROOF_PYTHON", ROOT / ".venv-modelopt" / "bin" / "python"))
KILN = Path(os.environ.get("KILN", ROOT / "target" / "release" / "kiln"))
LIMIT = 900

# The file, what it is, and the recipe that exports it.
MODELS = {
    "minilm-l3": (None, "MiniLM-L3", None),
    "bert-base": ("bert-base.ts.eager.onnx", "BERT-base", "bert-base"),
    "gpt2-base": ("gpt2-base.ts.sdpa.onnx", "GPT-2 (124 M)", "gpt2-base"),
    "vit-base": ("vit-base.dynamo.sdpa.onnx", "ViT-base", "vit-base"),
    "splade-tiny": ("splade-tiny.ts.eager.onnx", "SPLADE-tiny, output as wide as the vocabulary", "splade-tiny"),
    "attention": ("bert-attention.ts.eager.onnx", "small BERT with its attention as outputs", "bert-attention"),
}  # fmt: skip
WAYS = {"--fp16 --target sm_89": None, "--int8 --target cpu": "calibrate"}
# Stages in which something runs or is built; the rest is summed up.
STAGES = ["sizes", "calibration", "search", "engine", "parity", "latency"]


def path(name):
    file = MODELS[name][0]
    if file:
        return MODELS_AT / file
    found = sorted((ROOT / ".venv").rglob("paraphrase-MiniLM-L3-v2.onnx"))
    return found[0] if found else sys.exit("the demo's model is missing: run `make setup`")


def data(name):
    """Inputs of the export, which calibrate; MiniLM's are made by kiln."""
    recipe = MODELS[name][2]
    return MODELS_AT / f"{recipe}.io.npz" if recipe else None


def export(names):
    missing = sorted({MODELS[n][2] for n in names if MODELS[n][2] and not (path(n).exists() and data(n).exists())})
    if missing:
        command = [EXPORTER, ROOT / "fixtures/models/export.py", "--out", MODELS_AT, "--only", ",".join(missing)]
        subprocess.run(command, check=True)


def measure(kiln, name, way):
    bundle = WORK / "bundle.kiln"
    shutil.rmtree(bundle, ignore_errors=True)
    command = [kiln, "compile", path(name), *way.split(), "--quiet", "-o", bundle]
    if WAYS[way] and data(name):
        command += ["--calibrate", data(name)]
    cost = run(command, LIMIT, WORK / "log", anonymous=True)
    try:
        manifest = json.loads((bundle / "manifest.json").read_text())
    except OSError:
        return cost
    spent = {}
    for stage in manifest["stages"]:
        key = stage["name"] if stage["name"] in STAGES else "rest"
        spent[key] = round(spent.get(key, 0) + stage["seconds"], 2)
    ran = {r["stage"]: [r["original"], r["result"]] for r in manifest.get("ran", [])}
    # A result that is not proved ends with another exit code.
    return {**cost, "error": None, "stages": spent, "ran": ran, "parted": manifest.get("parted"), "outcome": manifest["parity_outcome"]}


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def shown(key, results):
    name, way = key.split("|")
    rows = []
    for kiln, cost in results.items():
        stages = cost.get("stages", {})
        times = [f"{stages[s]:.1f}" if s in stages else "" for s in STAGES]
        ran = "; ".join(f"{stage} {a} + {b}" for stage, (a, b) in cost.get("ran", {}).items())
        size = path(name).stat().st_size / 2**20
        peak, own = (f"{cost[key] / size:.1f}" if key in cost else "" for key in ("peak_mb", "anonymous_mb"))
        end = [cost["error"]] if cost["error"] else [ran]
        rows.append([MODELS[name][1], f"`{way}`", kiln, *times, f"{cost['wall_s']:.1f}", f"{cost['cpu_s']:.1f}", peak, own, *end])
    return rows


def write_page(results):
    header = ["model", "compiled", "kiln", *STAGES, "wall", "CPU", "peak", "own", "runs"]
    rows = [row for key, costs in results["costs"].items() for row in shown(key, costs)]
    PAGE.write_text(
        "# What a proof costs\n\n"
        f"Written by `make bench-proof` on {results['machine']}, the fastest of {results['rounds']} rounds, in turns; *before* is an older kiln (`--before`). Seconds by stages of the "
        "compilation, then of all of it; peak memory as a multiple of the model's file: *peak* of the largest process, mapped files and TensorRT's libraries included, *own* of what is "
        "no mapped file, all processes together; and runs of the original + of "
        "results in each stage, timed runs aside.\n\n" + table(header, rows) + "\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another kiln, measured beside this one")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    names = chosen.models.split(",")
    export(names)
    WORK.mkdir(parents=True, exist_ok=True)
    kilns = {"before": chosen.before, "now": KILN} if chosen.before else {"now": KILN}
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "an unknown CPU")
    results = {"machine": f"{cpu}, {os.cpu_count()} threads", "rounds": chosen.rounds, "costs": {}}
    for name in names:
        for way in WAYS:
            costs = results["costs"].setdefault(f"{name}|{way}", {})
            for turn in range(chosen.rounds):
                for label, kiln in kilns.items():
                    print(f"{name} {way}: round {turn + 1}: {label}", file=sys.stderr, flush=True)
                    cost = measure(kiln, name, way)
                    if label not in costs or cost["wall_s"] < costs[label]["wall_s"]:
                        costs[label] = cost
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            write_page(results)
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()

"""kiln beside its peers on the same files, in turns: python tools/peers/bench.py [--models NAME,...] [--rounds N]

Each tool runs as a process of its own, once a round, all tools on a model before the next model. Of the rounds the least is
kept: what disturbs a machine only ever adds. Results go to benches/results/peers.json; tools/peers/table.py writes
docs/performance.md from them."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from measure import run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "peers"
RESULTS = ROOT / "benches" / "results" / "peers.json"
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
AUTOCAST = ROOT / ".venv-autocast" / "bin" / "python"
EXPORTER = ROOT / ".venv-modelopt" / "bin" / "python"
KILN = Path(os.environ.get("KILN", ROOT / "target" / "release" / "kiln"))
LIMIT = 600
TARGET = "sm_89"

# The file, what it is, and what ONNX Runtime's optimizer calls it.
MODELS = {
    "minilm-l3": (None, "MiniLM-L3, TorchScript", "bert"),
    "bert-base-ts": ("bert-base.ts.eager.onnx", "BERT-base, TorchScript", "bert"),
    "bert-base-dynamo": ("bert-base.dynamo.sdpa.onnx", "BERT-base, dynamo", "bert"),
    "gpt2-base": ("gpt2-base.ts.sdpa.onnx", "GPT-2 (124 M), TorchScript", "gpt2"),
    "vit-base": ("vit-base.dynamo.sdpa.onnx", "ViT-base, dynamo", "vit"),
}
EXPORTED = "bert-base,gpt2-base,vit-base"
# Which of them convert to FP16; autocast wants another ONNX Runtime.
FP16 = ["ort-float16", "ort-optimizer", "autocast"]
PEERS = [*FP16, "onnxslim", "onnxsim", "onnxscript", "load-save"]


def model_path(name):
    file = MODELS[name][0]
    if file:
        return WORK / "models" / file
    found = sorted((ROOT / ".venv").rglob("paraphrase-MiniLM-L3-v2.onnx"))
    return found[0] if found else sys.exit("the demo's model is missing: run `make setup`")


def export(names):
    files = [WORK / "models" / MODELS[name][0] for name in names if MODELS[name][0]]
    if not all(file.exists() for file in files):
        # PyTorch is 7 GB, for who has no exports.
        subprocess.run(["make", ".venv-modelopt/.ready"], cwd=ROOT, check=True)
        command = [EXPORTER, ROOT / "fixtures/models/export.py", "--out", WORK / "models", "--only", EXPORTED]
        subprocess.run(command, check=True)


def commands(name):
    """Each tool's command, and the file that it writes."""
    source, model_type = model_path(name), MODELS[name][2]
    out = WORK / name
    made = {}
    kiln = [KILN, "compile", source, "--fp16", "--target", TARGET, "--no-check", "--quiet", "-o"]
    made["kiln"] = ([*kiln, out / "kiln.kiln", "--no-engine"], out / "kiln.kiln" / "model.onnx")
    made["kiln+engine"] = ([*kiln, out / "engine.kiln"], out / "engine.kiln" / "model.onnx")
    for peer in PEERS:
        target = out / f"{peer}.onnx"
        command = [PYTHON, "-W", "ignore", HERE / "peer.py", peer, source, target, model_type]
        if peer == "autocast":
            command = [AUTOCAST, "-W", "ignore", ROOT / "tools/real/autocast.py", source, target]
        made[peer] = (command, target)
    return made


def copy(name):
    """`cp` of the input and of kiln's output."""
    out = WORK / name
    files = [model_path(name), out / "kiln.kiln" / "model.onnx"]
    script = " && ".join(f"cp '{file}' '{out}/copy'" for file in files)
    return run(["sh", "-c", script], LIMIT, out / "cp.log")


def least(old, new):
    """Of two measurements, the least of each number; an error stays."""
    if old is None:
        return new
    keep = lambda key: min(old[key], new[key])
    return {**old, **{key: keep(key) for key in ("wall_s", "cpu_s", "peak_mb")}, "error": old["error"] or new["error"]}


def libraries():
    """TensorRT's libraries, or None."""
    found = sorted((ROOT / ".venv").rglob("libtensorrt_rtx.so.1"))
    parser = sorted((ROOT / ".venv").rglob("libtensorrt_onnxparser_rtx.so.1"))
    return (found[0], parser[0]) if found and parser else None


def engine(original, candidate, out):
    """Whether TensorRT builds an engine of a file as it is: kiln's builder process, without kiln's passes."""
    found = libraries()
    if not found:
        return "not run: no TensorRT"
    probe = "import json,sys,onnx; g=onnx.load(sys.argv[1],load_external_data=False).graph; n={i.name for i in g.initializer}; " \
        "print(json.dumps([(i.name,[d.dim_value or -1 for d in i.type.tensor_type.shape.dim]) for i in g.input if i.name not in n]))"
    shapes = json.loads(subprocess.run([PYTHON, "-c", probe, candidate], check=True, capture_output=True).stdout)
    sizes = {"min": (1, 1), "opt": (1, 128), "max": (8, 512)}
    fill = lambda shape, free: [next(free) if d < 0 else d for d in shape]
    profile = [{"name": n, **{k: fill(s, iter(v)) for k, v in sizes.items()}} for n, s in shapes if -1 in s]
    raw = lambda path: list(os.fsencode(path))
    order = {
        "onnx": raw(candidate), "data_dir": raw(candidate.parent), "plan": raw(out / "plan"), "capabilities": [TARGET],
        "profiles": [{"inputs": profile}] if profile else [],
        "workspace": None, "optimization_level": None, "detailed": False, "tf32": True,
        "form": {
            "refittable": False, "weight_stripped": False, "version_compatible": False, "hardware": None, "timing_cache": None,
        },
    }  # fmt: skip
    command = [KILN, "build-engine", "--core", found[0], "--parser", found[1]]
    pipe = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    # The pipe stays open until the builder has ended: it stops when its parent closes it.
    pipe.stdin.write(json.dumps(order).encode() + b"\n")
    pipe.stdin.flush()
    said = [json.loads(line) for line in pipe.stdout if line.startswith(b"{")]
    status = pipe.wait()
    last = said[-1] if said else {}
    if "done" in last:
        return "built"
    if "failed" in last:
        (kind, what), = last["failed"].items() if isinstance(last["failed"], dict) else [(last["failed"], {})]
        failures = what.get("failures", []) if isinstance(what, dict) else []
        first = failures[0] if failures else {}
        where = first.get("op") or first.get("node")
        return "refused: " + (f"{where}: " if where else "") + first.get("reason", kind).splitlines()[0][:120]
    return f"TensorRT died (status {status})"


def version_of(python, packages):
    code = "import json,sys,importlib.metadata as m; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    return json.loads(subprocess.run([python, "-c", code, *packages], check=True, capture_output=True).stdout)


def machine():
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": cpu, "cores": os.cpu_count(), "commit": commit,
        "versions": {
            **version_of(PYTHON, ["onnx", "onnxruntime", "onnxslim", "onnxsim", "onnxscript"]),
            **version_of(AUTOCAST, ["nvidia-modelopt"]),
        },
    }  # fmt: skip


def measure(name, rounds):
    out = WORK / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    costs = {}
    for turn in range(rounds):
        for tool, (command, _) in commands(name).items():
            if costs.get(tool, {}).get("error"):
                continue
            print(f"{name}: round {turn + 1}: {tool}", file=sys.stderr, flush=True)
            costs[tool] = least(costs.get(tool), run(command, LIMIT, out / f"{tool}.log"))
            if tool == "kiln+engine" and not costs[tool]["error"]:
                facts = json.loads((out / "engine.kiln" / "manifest.json").read_text())["engine"]
                builder = facts["parse_seconds"] + facts["build_seconds"]
                costs[tool]["builder_s"] = min(builder, costs[tool].get("builder_s", builder))
        costs["cp"] = least(costs.get("cp"), copy(name))
    source = model_path(name)
    for tool, (_, target) in commands(name).items():
        if costs[tool]["error"] or tool == "load-save":
            continue
        print(f"{name}: {tool}: parity and engine", file=sys.stderr, flush=True)
        found = subprocess.run([PYTHON, HERE / "examine.py", source, target], capture_output=True, text=True)
        costs[tool]["result"] = json.loads(found.stdout) if found.returncode == 0 else {"refused": found.stderr[-200:]}
        costs[tool]["result"]["bytes"] = target.stat().st_size
        costs[tool]["result"]["engine"] = "built" if tool == "kiln+engine" else engine(source, target, out)
    return {"title": MODELS[name][1], "bytes": source.stat().st_size, "tools": costs}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    names = chosen.models.split(",")
    export(names)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    results.update(machine=machine(), rounds=chosen.rounds)
    for name in names:
        results["models"][name] = measure(name, chosen.rounds)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""kiln's own candidates: what `kiln compile` makes of the same models and calibration data.

    python tools/precision/kiln.py [all | MODEL,...] [--methods all | METHOD,...]

Each bundle becomes target/precision/MODEL/candidates/METHOD, with candidate.json beside model.onnx: wall time of the whole
command, peak memory, what the manifest says of the search, the layers that were kept, the engine and the stages, or the error.
Engines are built for all named targets in one, and not run. Nothing is timed here: measure.py does that."""

import argparse
import json
import shutil
import sys

from common import KILN, WORK, candidate, chosen, run, write
from models import MODELS

LIMIT = 600
CALIBRATE = "calibrate"
# Options, and whether calibration data goes with them.
METHODS = {
    "kiln-cpu-int8": (["--target", "cpu", "--int8"], CALIBRATE),
    "kiln-cpu-int8-dynamic": (["--target", "cpu", "--int8=dynamic"], CALIBRATE),
    "kiln-cpu-int4": (["--target", "cpu", "--int4"], CALIBRATE),
    "kiln-fp16": (["--target", "sm_75,sm_86,sm_89,sm_120", "--fp16"], None),
    "kiln-bf16": (["--target", "sm_80,sm_86,sm_89,sm_120", "--bf16"], None),
    "kiln-int8": (["--target", "sm_86,sm_89,sm_120", "--int8"], CALIBRATE),
    "kiln-int8-fp16": (["--target", "sm_86,sm_89,sm_120", "--int8", "--fp16"], CALIBRATE),
    "kiln-fp8-fp16": (["--target", "sm_89,sm_120", "--fp8", "--fp16"], CALIBRATE),
    "kiln-int4-fp16": (["--target", "sm_86,sm_89,sm_120", "--int4", "--fp16"], CALIBRATE),
}


def command(model, options, calibrate, bundle):
    folder = WORK / model
    out = [KILN, "compile", folder / "model.onnx", *options, "--no-latency", "--json", "-o", bundle]
    if calibrate and MODELS[model]["kind"] == "text":
        out += ["--calibrate", folder / "calibrate.txt", "--tokenizer", folder / "tokenizer.json"]
    elif calibrate:
        out += ["--calibrate", folder / "calibrate.npz"]
    return out


def stated(manifest):
    """Of the manifest, what the tables say; nothing is required of it."""
    search = manifest.get("search") or {}
    stages = manifest.get("stages") or []
    seconds = {s["name"]: round(s["seconds"], 2) for s in stages if "name" in s and "seconds" in s}
    engine = manifest.get("engine")
    return {
        "engine": engine and {
            "capabilities": engine.get("capabilities"),
            "bytes": engine.get("bytes"),
            "runtime": engine.get("runtime"),
        },
        "kiln": manifest.get("kiln"),
        "stages": seconds,
        "kept": len(manifest.get("kept") or []),
        "quantized": manifest.get("quantized"),
        "converted": manifest.get("converted"),
        "search": search and {
            "layers": search.get("layers"),
            "compared": search.get("compared"),
            "kept": len(search.get("kept") or []),
            "seconds": next((s for n, s in seconds.items() if "search" in n), None),
        },
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="?", default="all")
    parser.add_argument("--methods", default="all")
    arguments = parser.parse_args()
    if not KILN.exists():
        sys.exit(f"{KILN} is missing: cargo build --release")
    for model in chosen(arguments.models, MODELS, "model"):
        for name in chosen(arguments.methods, METHODS, "method"):
            options, calibrate = METHODS[name]
            out = candidate(model, name)
            shutil.rmtree(out, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            log = WORK / model / f"{name}.log"
            facts = run(command(model, options, calibrate, out), LIMIT, log)
            facts["options"] = " ".join(options + (["--calibrate"] if calibrate else []))
            if not facts["error"]:
                try:
                    facts.update(stated(json.loads((out / "manifest.json").read_text())))
                except Exception as error:
                    facts["error"] = f"no manifest: {error!r}"
            write(out / "candidate.json", {"model": model, "method": name, **facts})
            print(f"{model} {name}: {facts['seconds']} s, {facts['error'] or 'done'}", flush=True)


if __name__ == "__main__":
    main()

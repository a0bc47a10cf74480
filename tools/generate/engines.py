#!/usr/bin/env python3
"""Builds engines of decoders with heads of 64 elements, FP16, and writes a table of what their kernels say.

No GPU is needed. The table goes between the marks of docs/generation.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
PAGE = HERE / "docs/generation.md"
MARKS = "<!-- table of engines -->\n", "<!-- end of the engines -->\n"
DECODERS = ["gpt2", "llama", "qwen2", "qwen3", "gemma", "phi", "mistral", "opt"]
TARGETS = ["sm_75", "sm_86", "sm_89", "sm_120"]


def built(kiln, model, target, bundle):
    """One cell: attention of a prompt and of a step, and caches."""
    command = [kiln, "-q", "compile", model, "--fp16", "--target", target, "--max-length", "128", "--no-check", "--force", "-o", bundle]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if ran.returncode:
        return False, f"exit {ran.returncode}: {(ran.stderr.splitlines() or [''])[-1][:100]}".replace("|", "/")
    engine = json.loads((bundle / "manifest.json").read_text())["engine"]
    whole = lambda kernels: sum("mha" in k["name"] for k in kernels)
    prompt, step, aliased = whole(engine["kernels"]), whole(engine["steps"]), engine["aliased"]
    copies = len(aliased["copies_in_prompts"]), len(aliased["copies_in_steps"])
    said = f"{prompt} and {step}; {aliased['in_place']} of {aliased['caches']}"
    good = prompt == step == 2 and aliased["in_place"] == aliased["caches"] and copies[1] == 0
    return good, said + f"; {copies[0]} and {copies[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="what fixtures/generation/caches.py --wide --out wrote")
    parser.add_argument("--kiln", type=Path, default=HERE / "target/release/kiln")
    chosen = parser.parse_args()
    rows, good = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in DECODERS:
            model = chosen.models.resolve() / f"{name}.past.dynamo.sdpa.onnx"
            cells = [built(chosen.kiln, model, target, Path(scratch) / "m.kiln") for target in TARGETS]
            good += sum(holds for holds, _ in cells)
            rows.append(f"| {name} | " + " | ".join(said for _, said in cells) + " |\n")
            print(rows[-1], end="", flush=True)
    head = "| | " + " | ".join(TARGETS) + " |\n|" + "---|" * (len(TARGETS) + 1) + "\n"
    page = PAGE.read_text()
    before, rest = page.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    PAGE.write_text(before + MARKS[0] + head + "".join(rows) + MARKS[1] + after)
    print(f"{good} of {len(DECODERS) * len(TARGETS)}")
    sys.exit(good != len(DECODERS) * len(TARGETS))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compiles decoders, and pairs of encoder and decoder, as exporters write them, proves what they generate, and writes a table.

Nothing is said of sizes. Each is compiled at each precision for ONNX Runtime's CPU provider, and for an engine (without building it),
whose model has caches of one length; `kiln check --generate` then holds it against the exporter's file. The table goes between the
marks of docs/generation.md. Cells of the same binary and steps are kept beside the models (cells.json), so that a run that was stopped goes on;
cells that do not hold are run again.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
PAGE = HERE / "docs/generation.md"
MARKS = "<!-- table of exports -->\n", "<!-- end of the table -->\n"
DECODERS = ["gpt2", "llama", "qwen2", "qwen3", "gemma", "phi", "mistral", "opt"]
PAIRS = {"bart": 1, "t5": 0, "marian": 1, "whisper": 1}
FORMS = ["decoder.growing", "decoder.merged", "decoder.gqa", "decoder.scatter"]
WAYS = {"FP32, CPU": ["--target", "cpu"], "FP16, CPU": ["--target", "cpu", "--fp16"], "FP16, engine's form": ["--target", "sm_89", "--fp16", "--no-engine"]}


def kiln(binary, *arguments):
    return subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True)


def said(ran):
    """The last error of a run, in a cell."""
    lines = [line for line in ran.stderr.splitlines() if line.startswith("kiln:")]
    text = re.sub(r"/\S*/", "", (lines or [""])[-1][6:])
    return f"exit {ran.returncode}: {text[:120]}".replace("|", "/")


def proved(binary, original, options, steps, scratch):
    """One cell: tokens and scores, or why there are none."""
    bundle = scratch / "m.kiln"
    made = kiln(binary, "-q", "compile", original, *options, "--no-latency", "--force", "-o", bundle)
    if made.returncode not in (0, 6):
        return False, said(made)
    ran = kiln(binary, "-q", "check", bundle, "--reference", original, "--generate", steps, "--json")
    if not ran.stdout.strip():
        return False, said(ran)
    proof = json.loads(ran.stdout)
    failed = [c["name"] for c in proof["claims"] if c["outcome"] == "fails"]
    if failed:
        return False, "fails: " + ", ".join(failed)
    tokens, found = proof["tokens"], proof["result_tokens"]
    parted = next((k for k, (a, b) in enumerate(zip(tokens, found)) if a != b), None)
    worst = max(s["relative_l2"] for s in proof["steps"])
    return True, (f"{len(tokens)} equal" if parted is None else f"a tie at {parted}") + f", {worst:.0e}"


class Cells:
    """What was found by one binary, written after each cell."""

    def __init__(self, path, binary, steps):
        self.path, self.key = path, [hashlib.sha256(binary.read_bytes()).hexdigest(), steps]
        known = json.loads(path.read_text()) if path.exists() else {}
        self.cells = known["cells"] if known.get("key") == self.key else {}

    def get(self, name, run):
        if name not in self.cells:
            holds, text = run()
            if not holds:
                return holds, text
            self.cells[name] = text
            self.path.write_text(json.dumps({"key": self.key, "cells": self.cells}, indent=1))
        return True, self.cells[name]


def originals(folder, scratch):
    """Names, exporters and files; a pair is a generation.json beside its models."""
    for name in DECODERS:
        for exporter in ("ts", "dynamo"):
            yield name, exporter, folder / f"{name}.past.{exporter}.sdpa.onnx"
    for name, start in PAIRS.items():
        for exporter in ("ts", "dynamo"):
            parts = {role: str(folder / f"{name}.{role}.{exporter}.sdpa.onnx") for role in ("encoder", "first", "decoder")}
            roles = scratch / f"{name}.{exporter}.json"
            roles.write_text(json.dumps(parts | {"start": [start]}))
            yield name, exporter, roles
    for name in FORMS:
        yield name.removeprefix("decoder."), "by hand", HERE / f"fixtures/generation/{name}.onnx"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="what fixtures/generation/caches.py --out wrote")
    parser.add_argument("--kiln", type=Path, default=HERE / "target/release/kiln")
    parser.add_argument("--only", help="names, separated by commas; nothing is written then")
    parser.add_argument("--steps", type=int, default=64)
    chosen = parser.parse_args()
    rows, cells, good = [], 0, 0
    known = Cells(chosen.models / "cells.json", chosen.kiln, chosen.steps)
    with tempfile.TemporaryDirectory() as scratch:
        for name, exporter, original in originals(chosen.models.resolve(), Path(scratch)):
            if chosen.only and name not in chosen.only.split(","):
                continue
            row = []
            for way, options in WAYS.items():
                run = lambda: proved(chosen.kiln, original, options, chosen.steps, Path(scratch))
                holds, text = known.get(f"{name} {exporter} {way}", run)
                cells, good = cells + 1, good + holds
                row.append(text)
            rows.append(f"| {name} | {exporter} | " + " | ".join(row) + " |\n")
            print(rows[-1], end="", flush=True)
    print(f"{good} of {cells}")
    if not chosen.only:
        head = "| | exporter | " + " | ".join(WAYS) + " |\n|" + "---|" * (len(WAYS) + 2) + "\n"
        page = PAGE.read_text()
        before, rest = page.split(MARKS[0])
        _, after = rest.split(MARKS[1])
        PAGE.write_text(before + MARKS[0] + head + "".join(rows) + f"\n{good} of {cells} hold.\n" + MARKS[1] + after)
    sys.exit(good != cells)


if __name__ == "__main__":
    main()

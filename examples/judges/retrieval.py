#!/usr/bin/env python3
"""A judge for models that make embeddings: does a search still find what it found?

    kiln compile encoder.onnx --int8 --target cpu --calibrate lines.txt --tokenizer tokenizer.json \\
        --judge 'python3 examples/judges/retrieval.py --nearest 10 --at-least 0.95' \\
        --judge-data questions.txt --judge-tokenizer tokenizer.json

Every text is looked up among all others, by the cosine of their embeddings: once with the original's, once with the result's. The
number is the mean part of the original's nearest neighbours that the result finds, too. Needs NumPy."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def embeddings(folder, file, output):
    """One row a sample, of length 1."""
    rows = []
    for case in json.loads((folder / "cases.json").read_text()):
        with np.load(folder / case["folder"] / file) as arrays:
            names = [n for n in arrays.files if arrays[n].ndim == 2 and arrays[n].dtype.kind == "f"]
            if output is None and not names:
                sys.exit(f"no output has one row a sample; name one with --output: {', '.join(arrays.files)}")
            rows.append(np.asarray(arrays[output or names[0]], dtype=np.float64))
    rows = np.concatenate(rows)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest(rows, k):
    """The k nearest others of each row."""
    near = rows @ rows.T
    np.fill_diagonal(near, -np.inf)
    return np.argsort(-near, axis=1, kind="stable")[:, :k]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nearest", type=int, default=10, metavar="K")
    parser.add_argument("--at-least", type=float, default=0.95, metavar="PART")
    parser.add_argument("--output", help="the output with the embeddings [default: the first with one row a sample]")
    args = parser.parse_args()
    original, result = (embeddings(args.folder, f"{side}.npz", args.output) for side in ("original", "result"))
    if len(original) <= args.nearest:
        print(f"{len(original)} samples are too few for {args.nearest} neighbours; give more with --judge-data", file=sys.stderr)
        return 2
    pairs = zip(nearest(original, args.nearest), nearest(result, args.nearest))
    kept = float(np.mean([len(set(a) & set(b)) / args.nearest for a, b in pairs]))
    print(json.dumps({"metric": f"neighbours kept of {args.nearest}", "value": kept, "at least": args.at_least, "samples": len(original)}))
    return 0 if kept >= args.at_least else 1


if __name__ == "__main__":
    sys.exit(main())

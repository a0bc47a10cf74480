"""Holds `kiln bench` against a loop of ONNX Runtime in Python: the medians of both must agree.

    python tools/bench_check.py MODEL.onnx [--kiln target/release/kiln] [--rounds 6] [--seconds 1]

Both run in turns, at each size and with equal numbers of threads, so that whatever slows the machine for a while slows both. The
loop shares nothing with kiln but the model: it makes its own inputs and takes time by itself.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

BATCHES = (1, 8)
LENGTHS = (32, 128)
WARM_UP = 5
ALLOWED = 0.1


def session(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads spin while kiln runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def inputs(model: ort.InferenceSession, batch: int, length: int) -> dict:
    """Token ids, masks of ones, and types of zeros: the model's inputs of [batch, length]."""
    random = np.random.default_rng(0)
    made = {}
    for port in model.get_inputs():
        assert port.type == "tensor(int64)" and len(port.shape) == 2, f"{port.name}: {port.type}{port.shape}"
        if "mask" in port.name:
            made[port.name] = np.ones((batch, length), np.int64)
        elif "type" in port.name:
            made[port.name] = np.zeros((batch, length), np.int64)
        else:
            made[port.name] = random.integers(0, 30000, (batch, length), dtype=np.int64)
    return made


def python(model: ort.InferenceSession, batch: int, length: int, seconds: float) -> list[int]:
    feed = inputs(model, batch, length)
    for _ in range(WARM_UP):
        model.run(None, feed)
    samples = []
    while sum(samples) < seconds * 1e9:
        start = time.perf_counter_ns()
        model.run(None, feed)
        samples.append(time.perf_counter_ns() - start)
    return samples


def kiln(binary: Path, model: Path, sizes: dict[str, int], threads: int, seconds: float) -> list[int]:
    grid = [part for name, n in sizes.items() for part in ("--grid", f"{name}={n}")]
    command = [binary, "--quiet", "bench", model, *grid, "--threads", threads, "--json"]
    command += ["--duration", seconds, "--warmup", WARM_UP, "--runs", 5]
    done = subprocess.run([str(c) for c in command], capture_output=True, check=True)
    point, = json.loads(done.stdout)["points"]
    subject, = point["measured"]["subjects"]
    return subject["samples"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--kiln", type=Path, default=Path("target/release/kiln"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    loop = session(args.model, args.threads)
    batch_name, length_name = loop.get_inputs()[0].shape
    print(f"ONNX Runtime {ort.__version__}, {args.threads} threads, {args.rounds} rounds of {args.seconds} s each\n")
    print("| batch | length | runs of kiln, of the loop | kiln p50 ms | loop p50 ms | ratio | ratios of the rounds |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    for batch in BATCHES:
        for length in LENGTHS:
            sizes = {batch_name: batch, length_name: length}
            ours, theirs, ratios = [], [], []
            for turn in range(args.rounds):
                both = {}
                for who in ("kiln", "loop") if turn % 2 == 0 else ("loop", "kiln"):
                    both[who] = (kiln(args.kiln, args.model, sizes, args.threads, args.seconds) if who == "kiln"
                                 else python(loop, batch, length, args.seconds))
                ours += both["kiln"]
                theirs += both["loop"]
                ratios.append(statistics.median(both["kiln"]) / statistics.median(both["loop"]))
            a, b = (statistics.median(s) / 1e6 for s in (ours, theirs))
            worst = max(worst, abs(a / b - 1))
            rounds = f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.3f}"
            print(f"| {batch} | {length} | {len(ours)}, {len(theirs)} | {a:.2f} | {b:.2f} | {a / b:.3f} | {rounds} |", flush=True)
    print(f"\nThe medians differ by at most {100 * worst:.1f} %; {100 * ALLOWED:.0f} % are allowed.")
    raise SystemExit(worst > ALLOWED)


if __name__ == "__main__":
    main()

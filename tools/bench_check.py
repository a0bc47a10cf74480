"""Holds `kiln bench` against a loop of ONNX Runtime in Python: the medians of both must agree.

    python tools/bench_check.py MODEL.onnx [--kiln target/release/kiln] [--runs 100] [--slice 0.4]

Both run in turns of a fraction of a second, with equal numbers of threads, so that whatever slows the machine slows both: kiln is
stopped (SIGSTOP) while the loop runs. The one run of each turn that holds the pause is longer than the pause, and is left out. The
loop shares nothing with kiln but the model and the options of its session: it makes its own inputs and takes time by itself.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

BATCHES = (1, 8)
LENGTHS = (32, 128)
WARM_UP = 5
# Runs of a turn, at least.
TURN = 4
ALLOWED = 0.1
CORES = sorted(os.sched_getaffinity(0))


def session(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if threads > 1:
        # As kiln does: every thread on a core of its own. Processors are counted from 1.
        others = ";".join(str(core + 1) for core in CORES[1:threads])
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
        os.sched_setaffinity(0, CORES[:1])
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


def timed(model: ort.InferenceSession, feed: dict) -> int:
    start = time.perf_counter_ns()
    model.run(None, feed)
    return time.perf_counter_ns() - start


def in_turns(binary: Path, model: Path, loop: ort.InferenceSession, sizes: dict[str, int], args) -> tuple[list[int], list[int]]:
    """Nanoseconds of kiln's runs and of the loop's."""
    feed = inputs(loop, *sizes.values())
    for _ in range(WARM_UP):
        loop.run(None, feed)
    turn = max(args.slice, TURN * timed(loop, feed) / 1e9)
    grid = [part for name, n in sizes.items() for part in ("--grid", f"{name}={n}")]
    command = [binary, "--quiet", "bench", model, *grid, "--threads", args.threads, "--json"]
    command += ["--duration", 0, "--warmup", WARM_UP, "--runs", args.runs]
    theirs, shortest = [], float("inf")
    with tempfile.TemporaryFile() as out:
        free = lambda: os.sched_setaffinity(0, CORES)  # noqa: E731
        process = subprocess.Popen([str(c) for c in command], stdout=out, preexec_fn=free)
        while process.poll() is None:
            time.sleep(turn)
            process.send_signal(signal.SIGSTOP)
            paused = time.perf_counter_ns()
            while time.perf_counter_ns() - paused < turn * 1e9:
                theirs.append(timed(loop, feed))
            shortest = min(shortest, time.perf_counter_ns() - paused)
            process.send_signal(signal.SIGCONT)
        out.seek(0)
        point, = json.load(out)["points"]
    subject, = point["measured"]["subjects"]
    return [ns for ns in subject["samples"] if ns < shortest], theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--kiln", type=Path, default=Path("target/release/kiln"))
    parser.add_argument("--runs", type=int, default=100, help="runs of kiln at each size")
    parser.add_argument("--slice", type=float, default=0.4, help="seconds of a turn, at least")
    parser.add_argument("--threads", type=int, default=len(CORES))
    args = parser.parse_args()
    loop = session(args.model, args.threads)
    batch_name, length_name = loop.get_inputs()[0].shape
    print(f"ONNX Runtime {ort.__version__}, {args.threads} threads\n")
    print("| batch | length | runs of kiln, of the loop | kiln p50 ms | loop p50 ms | ratio |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    for batch in BATCHES:
        for length in LENGTHS:
            sizes = {batch_name: batch, length_name: length}
            ours, theirs = in_turns(args.kiln, args.model, loop, sizes, args)
            a, b = (statistics.median(s) / 1e6 for s in (ours, theirs))
            worst = max(worst, abs(a / b - 1))
            print(f"| {batch} | {length} | {len(ours)}, {len(theirs)} | {a:.2f} | {b:.2f} | {a / b:.3f} |", flush=True)
    print(f"\nThe medians differ by at most {100 * worst:.1f} %; {100 * ALLOWED:.0f} % are allowed.")
    raise SystemExit(worst > ALLOWED)


if __name__ == "__main__":
    main()

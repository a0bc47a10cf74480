#!/usr/bin/env python3
"""What each test costs: scripts/test-times.py [FILTER...] (`cargo test --test all --no-run` first).

Runs the integration tests one after another, each in a process of its own, and prints those that took the most CPU time, of their child
processes, too: wall time says little on a machine that does other things. Ctrl-C ends it with what ran so far."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 40


def binary():
    built = (Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "deps").glob("all-*")
    built = [p for p in built if not p.suffix and os.access(p, os.X_OK)]
    return max(built, key=lambda p: p.stat().st_mtime) if built else sys.exit("build it: cargo test --test all --no-run")


def spent():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    tests = binary()
    listed = subprocess.run([tests, "--list", *sys.argv[1:]], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    names = [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]
    costs = []
    try:
        for k, name in enumerate(names):
            print(f"\r{k + 1} of {len(names)}", end="", file=sys.stderr, flush=True)
            begun, used = time.monotonic(), spent()
            failed = subprocess.run([tests, "--exact", name], capture_output=True, cwd=ROOT).returncode
            costs.append((spent() - used, time.monotonic() - begun, name + (" FAILED" if failed else "")))
    except KeyboardInterrupt:
        pass
    print(file=sys.stderr)
    print(f"{sum(c for c, _, _ in costs):.1f} s of CPU in {len(costs)} tests\n  CPU s  wall s  test")
    for cpu, wall, name in sorted(costs, reverse=True)[:SHOWN]:
        print(f"{cpu:7.1f} {wall:7.1f}  {name}")


if __name__ == "__main__":
    main()

"""Where things are, and running a step as a process of its own. Nothing heavy is imported here: a child's peak memory starts
at what its parent holds, so the parent of measured steps must stay small."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = Path(os.environ.get("PRECISION_WORK", ROOT / "target" / "precision"))
RESULTS = ROOT / "benches" / "results" / "precision"
PYTHON = ROOT / ".venv-precision" / "bin" / "python"
MODELOPT = ROOT / ".venv-modelopt" / "bin" / "python"
KILN = Path(os.environ.get("KILN", ROOT / "target" / "release" / "kiln"))


def run(command, limit, log):
    """Runs a command. Gives its wall time, its peak memory, and its error: None, or the end of what it printed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT)
        timed_out = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - begin > limit and not timed_out:
                timed_out = True
                process.kill()
            time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    error = None
    if timed_out:
        error = f"stopped after {limit} s"
    elif process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        error = last_error(lines) or f"exit status {process.returncode}"
    return {
        "seconds": round(time.monotonic() - begin, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "status": process.returncode,
        "error": error,
    }


def last_error(lines):
    """The line that says what went wrong, of a log's lines; the last one if none does."""
    for line in reversed(lines):
        if any(word in line for word in ("Error", "error:", "Exception", "failed")):
            return line.strip()[:300]
    return lines[-1].strip()[:300] if lines else None


def candidate(model, method):
    return WORK / model / "candidates" / method


def write(path, facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n")


def read(path):
    return json.loads(path.read_text())


def chosen(names, known, what):
    """`all`, or a list with commas."""
    if names == "all":
        return list(known)
    names = names.split(",")
    for name in names:
        if name not in known:
            sys.exit(f"there is no {what} {name}; there are {', '.join(known)}")
    return names

"""Runs a command and says what it cost. Nothing heavy is imported here: a child's peak memory starts at what its parent
holds, so the parent of measured commands must stay small."""

import os
import subprocess
import threading
import time


def run(command, limit, log, anonymous=False):
    """Wall and CPU seconds (of the command and the children that it waited for), peak memory in MB, and the error: None, or
    the end of what was printed. With `anonymous`, also the peak of memory that is no mapped file, sampled every 20 ms over
    the command and its children."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        begin = time.monotonic()
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT)
        timer = threading.Timer(limit, process.kill)
        timer.start()
        sampler = Sampler(process.pid) if anonymous else None
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begin
        stopped = not timer.is_alive()
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    error = None
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        error = f"stopped after {limit} s" if stopped else last_error(lines) or f"exit status {process.returncode}"
    result = {
        "wall_s": round(wall, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "error": error,
    }
    if sampler:
        result["anonymous_mb"] = round(sampler.stop() / 1024, 1)
    return result


def last_error(lines):
    """The line that says what went wrong; the last one if none does."""
    for line in reversed(lines):
        if any(word in line for word in ("Error", "error:", "Exception", "failed", "kiln:")):
            return line.strip()[:200]
    return lines[-1].strip()[:200] if lines else None


class Sampler:
    """The peak of `RssAnon` of a process with its children, in kB."""

    def __init__(self, pid):
        self.pid, self.peak, self.over = pid, 0, False
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()

    def sample(self):
        while not self.over:
            pids = [self.pid, *children(self.pid)]
            self.peak = max(self.peak, sum(map(anonymous_kb, pids)))
            time.sleep(0.02)

    def stop(self):
        self.over = True
        self.thread.join()
        return self.peak


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def anonymous_kb(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("RssAnon")), 0)
    except OSError:
        return 0

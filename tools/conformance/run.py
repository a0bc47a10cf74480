"""ONNX's own test cases through kiln.

    python tools/conformance/run.py [--only PATTERN] [--compiler PATH] [--jobs N]

Each case is compiled in three ways: `--target cpu`, `--dialect standard`, and as it is handed to TensorRT's parser. The result
is run in ONNX Runtime, with and without its optimizations, and held against the expected outputs wherever ONNX Runtime gives these
for the original. Compiling and running are done by processes of their own, so that a crash is one case's. Results go to
benches/results/conformance.json and, without --only, into docs/trust.md."""

import argparse
import collections
import datetime
import fnmatch
import json
import pathlib
import re
import select
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "target/conformance"
CASES = WORK / "cases"
RESULTS = ROOT / "benches/results/conformance.json"
PAGE = ROOT / "docs/trust.md"
MODES = {"cpu": "--target cpu", "standard": "--target cpu --dialect standard", "tensorrt": "--target sm_89 --no-engine",
         "proved": "--target cpu, with its own proof"}
# Modes whose results are run here.
RUN = ("cpu", "standard", "tensorrt")
SECONDS = 120
BEGIN, END = "<!-- conformance: written by tools/conformance/run.py -->", "<!-- end of conformance -->"


class Worker:
    """A process that answers lines, started again when it dies."""

    def __init__(self, command):
        self.command, self.process = command, None

    def ask(self, line):
        """Its answer, or what became of it: {"status": "crashed"}."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, text=True, bufsize=1, cwd=ROOT)
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
            if not ready:
                self.process.kill()
                self.process.wait()
                return {"status": "crashed", "why": f"no answer within {SECONDS} s"}
            if answer := self.process.stdout.readline():
                return json.loads(answer)
        except BrokenPipeError:
            pass
        code = self.process.wait()
        return {"status": "crashed", "why": f"the process ended with {code}"}


def one(name, compiler, judge):
    case = CASES / name
    data, model = str(case / "data.pickle"), str(case / "model.onnx")
    ask = lambda path, optimized: judge.ask(json.dumps({"model": path, "data": data, "optimized": optimized}))
    alone = {o: ask(model, o) for o in (False, True)}
    row = {"name": name, "alone": alone[False], "alone_optimized": alone[True]}
    for mode in MODES:
        bundle = WORK / "bundles" / f"{name}.{mode}.kiln"
        bundle.parent.mkdir(exist_ok=True)
        answer = compiler.ask(f"{mode}\t{model}\t{bundle}")
        row[mode] = answer
        if answer["status"] != "compiled" or mode not in RUN:
            continue
        judged = {o: a for o, a in alone.items() if a["status"] == "equal"}
        if not judged:
            answer["status"] = "not judged"
        for optimized in judged:
            found = ask(str(bundle / "model.onnx"), optimized)
            if found["status"] != "equal":
                with_ = "with" if optimized else "without"
                row[mode] = {**answer, "status": "wrong", "why": f"{with_} optimizations: {found['status']}: {found['why']}"}
                break
        else:
            if judged:
                answer["status"] = "equal"
    return row


def rows(names, compiler, jobs):
    left, done, lock = collections.deque(names), [], threading.Lock()

    def work():
        compile_, judge = Worker([str(compiler)]), Worker([sys.executable, str(ROOT / "tools/conformance/judge.py")])
        while True:
            with lock:
                if not left:
                    break
                name = left.popleft()
            row = one(name, compile_, judge)
            with lock:
                done.append(row)
                if sys.stderr.isatty():
                    print(f"\r{len(done)}/{len(names)}", end="", file=sys.stderr)
        for worker in (compile_, judge):
            if worker.process:
                worker.process.stdin.close()
                worker.process.wait()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return sorted(done, key=lambda r: r["name"])


def reason(why):
    """An error without what differs from case to case: paths and quoted names."""
    why = re.sub(r"\S*/model\.onnx(: )?", "", why)
    why = re.sub(r"(node|value|input|output|tensor|the input|the output) '[^']*'", r"\1 '…'", why)
    return why


def counts(table, mode):
    return collections.Counter(r[mode]["status"] for r in table)


def summary(table, versions):
    """Counts, and what did not come out, by its reason: cases that are equal have nothing to tell."""
    modes = {}
    for mode, flags in MODES.items():
        left = collections.defaultdict(list)
        for r in table:
            if r[mode]["status"] in ("unsupported", "wrong", "crashed", "refused by the proof"):
                # Messages name files: by their place in the project, not on this machine.
                why = reason(r[mode]["why"]).replace(f"{ROOT}/", "")
                left[f"{r[mode]['status']}: {why}"].append(r["name"])
        left = sorted(left.items(), key=lambda w: (-len(w[1]), w[0]))
        modes[mode] = {"flags": flags, "counts": counts(table, mode), "left": [{"why": why, "cases": names} for why, names in left]}
    judged = [r["name"] for r in table if "equal" in (r["alone"]["status"], r["alone_optimized"]["status"])]
    return {
        "about": {"date": datetime.date.today().isoformat(), "versions": versions},
        "cases": len(table), "judged": len(judged), "modes": modes,
        # What ONNX Runtime does not give as expected for the original.
        "not_judged": sorted({r["name"] for r in table} - set(judged)),
    }  # fmt: skip


def page(found):
    cases, versions = found["cases"], found["about"]["versions"]
    lines = [BEGIN, "",
             f"{cases} cases of the wheel onnx {versions['onnx']}; ONNX Runtime {versions['onnxruntime']} gives the expected outputs "
             f"for the originals of {found['judged']}, and these are judged. The others are compiled only.", "",
             "| compiled as | run | equal | compiled, not judged | unsupported | wrong | crashed |", "|---|---|---|---|---|---|---|"]
    number = lambda mode, status: found["modes"][mode]["counts"].get(status, 0)
    for mode in RUN:
        numbers = [number(mode, s) for s in ("equal", "not judged", "unsupported", "wrong", "crashed")]
        lines.append(f"| `{found['modes'][mode]['flags']}` | {cases} | {' | '.join(map(str, numbers))} |")
    lines += ["", f"`kiln compile --target cpu` with its own proof, on inputs that it makes: {number('proved', 'compiled')} compiled and proved, "
              f"{number('proved', 'refused by the proof')} refused by the proof, {number('proved', 'unsupported')} not compiled, "
              f"{number('proved', 'crashed')} crashed.", ""]
    lines += reasons(found)
    return "\n".join([*lines, END])


def reasons(found):
    """What the passes did not compile, by reason; the names of the cases are in the results' JSON."""
    rows = {}
    for mode in RUN:
        for row in found["modes"][mode]["left"]:
            rows.setdefault(row["why"], {})[mode] = len(row["cases"])
    cell = lambda text: " ".join(text.replace("|", "/").split())
    lines = ["| not compiled | " + " | ".join(f"`{found['modes'][mode]['flags']}`" for mode in RUN) + " |", "|---|" + "---|" * len(RUN)]
    for why, counts in rows.items():
        lines.append(f"| {cell(why)} | " + " | ".join(str(counts.get(mode, 0)) for mode in RUN) + " |")
    place = RESULTS.relative_to(ROOT)
    return [*lines, "", f"[{place}](../{place}) has the names of the cases, and the reasons of those that the proof did not run.", ""]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="*")
    parser.add_argument("--compiler", default=str(ROOT / "target/release/examples/conformance"))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if not (CASES / "left-out.json").exists():
        subprocess.run([sys.executable, str(ROOT / "tools/conformance/cases.py"), str(CASES)], check=True)
    names = sorted(p.name for p in CASES.iterdir() if p.is_dir() and fnmatch.fnmatch(p.name, args.only))
    table = rows(names, args.compiler, args.jobs)
    for mode in MODES:
        print(mode, dict(counts(table, mode)))
    bad = [(r["name"], m, r[m]["why"]) for r in table for m in MODES if r[m]["status"] in ("wrong", "crashed")]
    for name, mode, why in bad:
        print(f"{name} ({mode}): {why}")
    if args.only == "*":
        import onnx
        import onnxruntime
        versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
        found = summary(table, versions)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        text = PAGE.read_text() if PAGE.exists() else ""
        section = page(found)
        if BEGIN in text:
            text = text[: text.index(BEGIN)] + section + text[text.index(END) + len(END):]
        else:
            text += "\n" + section + "\n"
        PAGE.write_text(text)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

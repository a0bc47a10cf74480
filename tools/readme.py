#!/usr/bin/env python3
"""Writes the table of measurements in README.md from what the commands that measure left in benches/results and docs.

    readme.py [--check]      --check compares instead, and exits with 1 where the table is an old one
    readme.py --gpus FOLDER  prints what stands there of the GPUs whose records are in a folder"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benches" / "results"
PAGE = ROOT / "README.md"
BEGIN, END = "<!-- measured: written by tools/readme.py -->", "<!-- end of measured -->"
MIB_IN_MB = 1024 * 1024 / 1e6


def one(pattern, text):
    found = re.search(pattern, text, re.S)
    assert found, f"nothing matches {pattern}"
    return found


def coverage():
    text = (ROOT / "docs" / "coverage.md").read_text()
    cpu = one(r"## `--target cpu`, FP32(.*?)\n## ", text)[1]
    models, failed, attention, all_attention = one(r"\*\*(\d+) models, (\d+) failed\*\* \| \| \*\*(\d+) / (\d+)\*\*", cpu).groups()
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in cpu.splitlines() if re.match(r"\| [a-z]", line)]
    numbers = [float(row[k]) for row in rows for k in (-2, -1) if re.fullmatch(r"\d.*e-?\d+", row[k])]
    passed = int(models) - int(failed)
    yield f"attention fused in {models} exports of 11 architectures (TorchScript, dynamo, eager, sdpa)", f"{attention} of {all_attention}", "coverage"
    yield "FP32 parity of these, batches of 1 to 4, padded masks", f"{passed} of {models}, max abs ≤ {max(numbers):.1e}", "coverage"
    head, gpu = one(r"## `--target ([\w,]+) --fp16`(.*)", text).groups()
    built = [row for row in gpu.splitlines() if re.match(r"\| [a-z].*\| [\d.]+ MB \|", row)]
    dedicated = sum(row.rstrip("| ").endswith("dedicated") for row in built)
    where = ", ".join(head.replace("sm_", "").split(",")[:-1]) + " and " + head.rsplit("sm_", 1)[1]
    yield f"one FP16 engine of each for sm_{where}", f"{len(built)} of {models}, {dedicated} with attention in TensorRT's dedicated kernels", "coverage"


def engines():
    text = (ROOT / "docs" / "engines.md").read_text()
    count, more, bytes_more = one(r"(\d+) models, \d+ compared\*\*: .*? in \*\*(\d+)\*\*, .*? in \*\*(\d+)\*\*", text).groups()
    median = one(r"Kernels, median: (\d+) %", text)[1]
    layers = {name: one(rf"{name}: every quantized layer multiplies in its type in (\d+ of \d+)", text)[1] for name in ("INT8", "FP8", "INT4")}
    yield (f"kernels of {count} FP16 engines, against plain FP16 files (ONNX Runtime's converter), read from the plan",
           f"median {median} %; more in {more}, more bytes in {bytes_more}", "engines")
    yield ("engines that multiply every quantized layer in its type",
           ", ".join(f"{name} {n}" for name, n in layers.items()), "engines")


def precision():
    rows = {}
    for name in ("peers", "kiln"):
        for line in (RESULTS / "precision" / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            rows[row["model"], row["method"]] = row
    model = next(m for m, _ in rows if "l6" in m.lower())
    cosine = lambda method, digits=4: f"{rows[model, method]['graph']['cosine']:.{digits}f}"
    static = [m for n, m in rows if n == model and m.startswith("ort-static")]
    best = max(static, key=lambda m: rows[model, m]["graph"]["cosine"])
    int8 = rows[model, "kiln-cpu-int8"]
    page = "precision"
    yield "FP16 of MiniLM-L6, all products converted", f"cosine {cosine('kiln-fp16', 6)} on text; `autocast` {cosine('autocast-fp16', 6)}", page
    yield "INT8 of MiniLM-L6 for the CPU, static", f"cosine {cosine('kiln-cpu-int8')}; ONNX Runtime's best static {cosine(best)}", page
    yield "its latency against FP32, one thread of a CPU with VNNI", f"{int8['latency']['threads_1']['ratio']:.2f}", page
    yield "INT8 of MiniLM-L6 for TensorRT, with FP16", f"cosine {cosine('kiln-int8-fp16')}; ModelOpt's INT8 {cosine('modelopt-int8')}", page
    int4 = rows[model, "kiln-cpu-int4"]
    size = int4["quantized_bytes"] / (4 * int4["quantized_elements"])
    yield "INT4 weights of MiniLM-L6, every linear layer", f"cosine {cosine('kiln-cpu-int4')} at {size:.3f} of their size", page


def performance():
    bert = json.loads((RESULTS / "peers.json").read_text())["models"]["bert-base-ts"]
    cost = lambda tool: (bert["tools"][tool]["cpu_s"], bert["tools"][tool]["peak_mb"] * MIB_IN_MB / 1e3)
    said = [f"{label} {cost(tool)[0]:.2g} s and {cost(tool)[1]:.2g} GB" for label, tool in
            (("kiln", "kiln"), ("ONNX Runtime's converter", "ort-float16"), ("`autocast`", "autocast"))]
    yield (f"CPU time and peak memory of compiling BERT-base ({bert['bytes'] / 1e6:.0f} MB) to FP16",
           "; ".join(said) + f"; `cp` {cost('cp')[0]:.2g} s", "performance")
    llama = json.loads((RESULTS / "scale.json").read_text())["llama"]
    convert, pieces = llama["convert"], llama["pieces"]
    yield (f"the same of a decoder of Llama 2 7B's shape ({llama['bytes'] / 1e9:.0f} GB of FP32)",
           f"{convert['wall_s']:.0f} s, {convert['anonymous_mb']:.0f} MB of its own memory; each of {pieces['pieces']} pieces in parity, "
           f"relative L2 {pieces['parity']['relative_l2']:.1e}", "performance")


def proof():
    costs = json.loads((RESULTS / "proof.json").read_text())["costs"]
    now = {name: costs[f"{name}|--fp16 --target sm_89"]["now"] for name in ("minilm-l3", "bert-base", "gpt2-base")}
    wall = {name: f"{cost['wall_s']:.1f} s" for name, cost in now.items()}
    yield ("FP16, engine and proof, all of it, wall",
           f"MiniLM-L3 {wall['minilm-l3']}, BERT-base {wall['bert-base']}, GPT-2 {wall['gpt2-base']}", "proof")


def conformance():
    found = json.loads((RESULTS / "conformance.json").read_text())
    modes = [mode["counts"] for name, mode in found["modes"].items() if name != "proved"]
    equal = " / ".join(sorted({str(c.get("equal", 0)) for c in modes}))
    wrong, crashed = (sum(c.get(k, 0) for c in modes) for k in ("wrong", "crashed"))
    yield (f"ONNX's own tests through every pass, {len(modes)} targets",
           f"{equal} of {found['judged']} equal each, the others unsupported; {wrong} wrong, {crashed} crashed", "trust")


def gpus(results=RESULTS):
    """What `kiln gpu-check` left of each GPU; nothing where none has been measured."""
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not found.get("gpu") or "forms" not in found or found["dry_run"]:
            continue
        rows = [row for row in found["rows"] if row["model"] == "bert-base" and row["p50_ms"]]
        row = lambda runner, precision: next((r for r in rows if runner in r["runner"] and r["precision"] == precision), None)
        own, full, compiled = row("kiln, ONNX Runtime", "fp16"), row("TF32 off", "fp32"), row("torch.compile", "fp16")
        if not own or not full:
            continue
        graphs = [f for f in found["forms"] if f["model"] == "bert-base" and f["form"] == "chosen" and f["graph"] and f["p50_ms"]]
        said = [f"FP32 {full['p50_ms']:.3f} ms", f"FP16 {own['p50_ms']:.3f} ms"]
        said += [f"with CUDA graphs {f['p50_ms']:.3f} ms" for f in graphs]
        said += [f"torch.compile {compiled['p50_ms']:.3f} ms"] if compiled else []
        yield (f"BERT-base on {found['gpu']}, {found['batch']} x {found['seq']} tokens, ONNX Runtime's CUDA provider, median",
               ", ".join(said), "gpu")
        cosines = [r["parity"]["cosine"] for r in found["rows"] if r["runner"].startswith("kiln, ONNX Runtime")
                   and r["precision"] == "fp16" and r["parity"] and r["parity"]["cosine"] is not None]
        if cosines:
            yield f"FP16 parity on {found['gpu']}, {len(cosines)} models", f"cosine at least {min(cosines):.6f}", "gpu"


def table():
    rows = [row for part in (gpus, coverage, engines, precision, performance, proof, conformance) for row in part()]
    lines = [f"| {what} | {number} | [{page}](docs/{page}.md) |" for what, number, page in rows]
    return "\n".join([BEGIN, "", "| | | |", "|---|---|---|", *lines, "", END])


def main():
    if "--gpus" in sys.argv[1:]:
        folder = pathlib.Path(sys.argv[sys.argv.index("--gpus") + 1])
        print("\n".join(f"| {what} | {number} |" for what, number, _ in gpus(folder)))
        return
    text = PAGE.read_text()
    made = text[: text.index(BEGIN)] + table() + text[text.index(END) + len(END) :]
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(made)
    elif made != text:
        sys.exit("README.md: the table of measurements is an old one: run tools/readme.py")


if __name__ == "__main__":
    main()

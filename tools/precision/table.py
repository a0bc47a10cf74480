"""Writes docs/precision.md from the measurements in benches/results/precision.

    python tools/precision/table.py

A number that was not measured is a dash, and a method that failed is a row with its error."""

import json

from common import RESULTS, ROOT
from kiln import METHODS as KILN_METHODS
from models import MODELS
from peers import METHODS as PEER_METHODS

GROUPS = {
    "16 bits": ["ort-fp16", "autocast-fp16", "kiln-fp16", "autocast-bf16", "kiln-bf16"],
    "INT8, for ONNX Runtime on the CPU": [
        "ort-dynamic", "ort-dynamic-7bit", "kiln-cpu-int8-dynamic", "ort-static-default", "ort-static-minmax",
        "ort-static-minmax-u8", "ort-static-minmax-u8-7bit", "ort-static-percentile", "ort-static-entropy", "kiln-cpu-int8",
    ],
    "INT8 and FP8, for GPUs": ["modelopt-int8", "kiln-int8", "kiln-int8-fp16", "modelopt-fp8", "kiln-fp8-fp16"],
    "INT4 weights": ["ort-int4", "kiln-cpu-int4", "modelopt-int4", "kiln-int4-fp16"],
}  # fmt: skip
NOTES = {
    "ort-fp16": "`onnxruntime.transformers.float16`",
    "ort-dynamic": "`quantize_dynamic`, per channel",
    "ort-dynamic-7bit": "the same with `reduce_range`",
    "ort-static-default": "`quantize_static`, QDQ, per channel, min-max, all operators",
    "ort-static-minmax": "the same, linear layers only",
    "ort-static-minmax-u8": "the same, activations in unsigned bytes",
    "ort-static-minmax-u8-7bit": "the same with `reduce_range`",
    "ort-static-percentile": "as minmax-u8, with percentiles; samples padded to 128 tokens",
    "ort-static-entropy": "as minmax-u8, by entropy; samples padded to 128 tokens",
    "ort-int4": "`MatMulNBitsQuantizer`, blocks of 32, symmetric",
    "autocast-fp16": "`modelopt.onnx.autocast`",
    "autocast-bf16": "`modelopt.onnx.autocast`",
    "modelopt-int8": "`modelopt.onnx.quantization`, the rest in FP16 (its default)",
    "modelopt-fp8": "`modelopt.onnx.quantization`, the rest in FP16 (its default)",
    "modelopt-int4": "`modelopt.onnx.quantization`, AWQ (its default), 16 calibration samples of 128 tokens",
}
HEAD = """# Precision: kiln and its peers

Made by `make precision`; the numbers behind it are in `benches/results/precision/*.jsonl`. Do not edit this page:
`tools/precision/table.py` writes it.

Every method gets the same model, the same calibration data, and is measured on the same test data, which no method sees.
Text: 128 paragraphs of Debian's licence texts calibrate, 128 others test. Pictures: 64 crops of photographs calibrate, 64 of other
photographs test. Each test sample runs alone, without padding.

- **SQNR graph**: signal to error of the main output in dB, over all test samples, of the graph's own arithmetic: Q/DQ in FP32,
  every FP16 and BF16 value rounded. This is what a GPU computes but for the order of sums. More is better; 6 dB are a bit.
- **SQNR ORT**: the same as ONNX Runtime's CPU provider runs it. A dash where the graph has FP16 or BF16, whose
  roundings that provider does not keep.
- **cosine, worst**: of the graph's arithmetic, over all samples, and of the worst sample.
- **argmax**: rows of the output whose largest element stays in place (maps of pictures: where the peak is).
- **low**: products of matrix factors (in multiplications) by type, read from the graph; "weights" after a type means that only the
  weights are stored so.
- **latency**: ONNX Runtime, CPU, median over the original's in the same process, batch 1 (128 tokens, or one picture), with 1 and
  2 threads. It says nothing about GPUs. `v`: on a processor with VNNI, which multiplies integers faster; compare rows of one kind.
  With 2 threads a dash stands where the original itself took longer than with 1: the second core was busy, and the ratio says nothing.
- **matrices**: size of the quantized matrices with their scales; **disk**: the whole model.
- **time**, **memory**: of the process that makes the model; a Python tool's includes its imports, kiln's includes its proof.
- **kept**: nodes that kiln left in higher precision, and candidates that its search compared, in how many seconds.
- **engine**: the GPUs that the TensorRT for RTX engine is for, as it says itself. It was built, not run: there was no GPU.
"""


def number(value, digits=1, unit=""):
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def at(row, *keys):
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return row


def cosine(value):
    return "–" if value is None else f"{value:.6f}"


def two_threads(row):
    """The ratio with two threads; a dash where the original itself took longer with two threads than with one."""
    one, two = (at(row, "latency", f"threads_{n}", "reference_ms") for n in (1, 2))
    if one is None or two is None or two > one:
        return "–"
    return number(at(row, "latency", "threads_2", "ratio"), 2)


def line(name, row):
    if row.get("error"):
        error = row["error"].replace("|", "/").replace("\n", " ")
        return f"| {name} | failed: {error} |" + " |" * 13
    graph = row.get("graph") or {}
    bad = graph.get("nonfinite")
    low = ", ".join(f"{v:.0%} {k}" for k, v in (row.get("products") or {}).items() if v >= 0.005 and k != "fp32")
    ratio = [number(at(row, "latency", "threads_1", "ratio"), 2), two_threads(row)]
    kept = "–"
    if row["method"].startswith("kiln"):
        kept = str(row.get("kept", "–"))
        if at(row, "search", "compared"):
            kept += f" ({row['search']['compared']} compared, {number(at(row, 'search', 'seconds'))} s)"
    cells = [
        name,
        f"{bad} NaN/Inf" if bad else number(graph.get("sqnr_db")),
        number(at(row, "runtime", "sqnr_db")),
        cosine(graph.get("cosine")),
        cosine(graph.get("worst_cosine")),
        number(100 * graph["argmax"], 1, " %") if "argmax" in graph else "–",
        low or "–",
        f"{ratio[0]} / {ratio[1]}" + (" v" if at(row, "environment", "vnni") and ratio != ["–", "–"] else ""),
        number(row["quantized_bytes"] / 1e6, 1, " MB") if row.get("quantized_bytes") else "–",
        number(row["bytes"] / 1e6, 1, " MB") if row.get("bytes") else "–",
        number(row.get("seconds"), 1, " s"),
        number(row.get("peak_mb"), 0, " MB"),
        kept,
        "+".join(at(row, "engine", "capabilities") or ["–"]).replace("+sm_", "+"),
    ]
    return "| " + " | ".join(cells) + " |"


def large():
    """Time and memory at BERT-base's size."""
    path = RESULTS / "large.json"
    if not path.exists():
        return ""
    facts = json.loads(path.read_text())
    size, when = facts["model_mb"], facts["environment"]
    out = [
        "## BERT-base, time and memory\n",
        f"Random weights, {size:.0f} MB, 128 paragraphs calibrate; {when['date']}, {when['cores']} cores"
        + (f"; {when['note']}" if when["note"] else "") + ". Memory is the largest resident set, mapped files included.\n",
        "| method | time | memory | memory ÷ model |\n|---|---|---|---|",
    ]  # fmt: skip
    for row in facts["rows"]:
        memory = row["peak_mb"] * 1024 * 1024 / 1e6
        cells = [row["method"], number(row["seconds"], 1, " s"), number(memory, 0, " MB"), number(memory / size, 2)]
        out.append("| " + " | ".join([row["method"], f"failed: {row['error']}", "–", "–"] if row["error"] else cells) + " |")
    return "\n".join(out) + "\n"


def main():
    rows = {}
    for source in ("peers", "kiln"):
        path = RESULTS / f"{source}.jsonl"
        for text in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(text)
            rows[row["model"], row["method"]] = row
    known = set(PEER_METHODS) | set(KILN_METHODS)
    missing = known - {m for group in GROUPS.values() for m in group}
    assert not missing, f"methods without a place in the tables: {missing}"
    out = [HEAD]
    machines = sorted({
        f"{e['date']}: {e['cpu']}, {e['cores']} cores, {'VNNI' if e['vnni'] else 'no VNNI'}, ONNX Runtime {e['onnxruntime']}"
        + (f"; {e['note']}" if e["note"] else "")
        for e in (r["environment"] for r in rows.values() if "environment" in r)
    })  # fmt: skip
    out.append("Measured on:\n\n" + "\n".join(f"- {m}" for m in machines) + "\n")
    for model, facts in MODELS.items():
        out.append(f"## {facts['title']}\n\nFrom `{facts['package']}`.\n")
        for title, methods in GROUPS.items():
            lines = [line(m, rows[model, m]) for m in methods if (model, m) in rows]
            if not lines:
                continue
            head = ["method", "SQNR graph", "SQNR ORT", "cosine", "worst", "argmax", "low", "latency 1 / 2", "matrices", "disk"]
            head += ["time", "memory", "kept", "engine"]
            out.append(f"### {title}\n")
            out.append("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
            out.append("\n".join(lines) + "\n")
    out.append(large())
    out.append("## Methods\n")
    out.append("\n".join(f"- `{m}`: {NOTES[m]}" for m in PEER_METHODS))
    out.append("\n".join(f"- `{m}`: `kiln compile {' '.join(o)}`" for m, (o, _) in KILN_METHODS.items()) + "\n")
    (ROOT / "docs" / "precision.md").write_text("\n".join(out))


if __name__ == "__main__":
    main()

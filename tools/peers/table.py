"""Writes the measured parts of docs/performance.md from benches/results/peers.json and scale.json."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benches" / "results"
PAGE = ROOT / "docs" / "performance.md"

NAMES = {
    "kiln": "**kiln**",
    "kiln+engine": "**kiln, with the engine**",
    "ort-float16": "ONNX Runtime float16",
    "ort-optimizer": "ONNX Runtime optimizer + float16",
    "autocast": "ModelOpt autocast",
    "onnxslim": "onnxslim (no FP16)",
    "onnxsim": "onnxsim (no FP16)",
    "onnxscript": "onnxscript (no FP16)",
    "load-save": "onnx, load and save",
    "cp": "`cp` of input and of kiln's output",
}
FP16 = ["ort-float16", "ort-optimizer", "autocast"]


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def size(bytes_):
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"


def megabytes(mb):
    return size(mb * 2**20)


def seconds(value):
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def row(name, cost):
    if cost["error"]:
        return [NAMES[name], seconds(cost["wall_s"]), seconds(cost["cpu_s"]), megabytes(cost["peak_mb"]), "", "", "", "failed: " + cost["error"]]
    found = cost.get("result", {})
    parity = found.get("refused") and f"does not run: {found['refused']}" or (f"{found['error']:.1e}" if "error" in found else "")
    return [
        NAMES[name], seconds(cost["wall_s"]), seconds(cost["cpu_s"]), megabytes(cost["peak_mb"]), found.get("nodes", ""),
        found.get("attention", ""), parity, found.get("engine", ""),
    ]  # fmt: skip


def ratios(models):
    """The aims, and what was reached. The wall time of one tool alone says little on a machine with other work; CPU time more."""
    rows = []
    for model in models.values():
        tools = model["tools"]
        kiln, engine = tools["kiln"], tools["kiln+engine"]
        fastest = min((t for t in FP16 if not tools[t]["error"]), key=lambda t: tools[t]["cpu_s"], default=None)
        rows.append([
            model["title"],
            f"{tools[fastest]['cpu_s'] / kiln['cpu_s']:.0f}× ({NAMES[fastest]})" if fastest else "",
            f"{kiln['peak_mb'] * 2**20 / model['bytes']:.2f}×",
            f"{kiln['wall_s'] / tools['cp']['wall_s']:.1f}×",
            f"{engine['wall_s'] / engine['builder_s']:.2f}×" if engine.get("builder_s") else "not run",
        ])  # fmt: skip
    header = ["model", "CPU of the fastest FP16 peer ÷ kiln's (aim: 20×)", "peak memory ÷ file (aim: 1.5×)", "wall ÷ `cp` (aim: 2×)", "wall with engine ÷ TensorRT's builder (aim: 1.3×)"]
    return table(header, rows)


def peers(results):
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    out = [
        f"Measured at commit {machine['commit']} on {machine['cores']} cores of {machine['cpu']}, the least of {results['rounds']} round(s). Peers: {versions}.",
        ratios(results["models"]),
    ]
    header = ["tool", "wall s", "CPU s", "peak", "nodes", "attention", "relative L2", "TensorRT engine"]
    for model in results["models"].values():
        rows = [row(name, model["tools"][name]) for name in NAMES if name in model["tools"]]
        out.append(f"### {model['title']}, {size(model['bytes'])}\n\n" + table(header, rows))
    return "\n\n".join(out)


def proof_row(name, cost):
    if not cost:
        return [name, "not run"] + [""] * 5
    if cost["error"]:
        return [name, seconds(cost["wall_s"]), seconds(cost["cpu_s"]), megabytes(cost["anonymous_mb"]), megabytes(cost["peak_mb"]), "", "failed: " + cost["error"]]
    parity = cost.get("parity") or {}
    error = parity.get("relative_l2")
    return [
        name, seconds(cost["wall_s"]), seconds(cost["cpu_s"]), megabytes(cost["anonymous_mb"]), megabytes(cost["peak_mb"]),
        size(cost["bytes"]) if "bytes" in cost else "", f"{error:.1e}" if error is not None else "not run",
    ]  # fmt: skip


def scale(results):
    out = []
    if "llama" in results:
        entry = results["llama"]
        out.append(
            f"**A decoder of Llama 2 7B's width**, {entry['layers']} of its 32 layers, {entry['parameters'] / 1e9:.1f} billion parameters, "
            f"{size(entry['bytes'])} of external data in FP32 ({size(entry['on_disk'])} on the disk, the rest holes). "
            f"Layer {entry['dense']} and the head have random weights throughout; of the others the first page is random."
        )
        kinds = {
            "convert": "converted to FP16 and written",
            "pieces": "the result held against the original in pieces, at 16 tokens",
            "proof": "converted, and proved whole at 16 tokens",
        }
        rows = [proof_row(name, entry.get(key)) for key, name in kinds.items()]
        out.append(table(["", "wall s", "CPU s", "memory of its own", "peak with mapped files", "written", "relative L2"], rows))
        layer = entry.get("pieces", {}).get("layer")
        if layer:
            found = entry["pieces"]
            out.append(
                f"`kiln check --pieces` ran {found['pieces']} pieces, the largest with {size(found['largest_bytes'])} of FP32 weights. "
                f"The one with layer {entry['dense']} ({size(layer['bytes'])}), on the hidden states that the original gives there: relative L2 "
                f"{layer['relative_l2']:.1e}, cosine {layer['cosine']:.7f}."
            )
    if "weights" in results:
        entry = results["weights"]
        out.append(
            f"**{entry['count']:,} weights of 4 MB**, {size(entry['bytes'])} written in FP16: {seconds(entry['wall_s'])} s, {seconds(entry['cpu_s'])} s of CPU, "
            f"{megabytes(entry['anonymous_mb'])} of its own memory, {megabytes(entry['peak_mb'])} with mapped files."
        )
    if "nodes" in results:
        rows = []
        for cost in results["nodes"]:
            before, after = cost["nodes"]
            stage = cost["stages"]
            rows.append([
                f"{before:,}", f"{after:,}", seconds(cost["cpu_s"]), f"{cost['cpu_s'] / before * 1e6:.0f}", seconds(stage.get("passes", 0)),
                seconds(stage.get("precision", 0)), megabytes(cost["peak_mb"]),
            ])  # fmt: skip
        out.append("**Nodes**: the same decoder with narrow layers.\n\n" + table(["nodes", "left", "CPU s", "µs a node", "fusing s", "precision and lowering s", "peak"], rows))
    return "\n\n".join(out)


def put(page, name, text):
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    assert pattern.search(page), name
    return pattern.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page)


if __name__ == "__main__":
    page = PAGE.read_text()
    for name, write in (("peers", peers), ("scale", scale)):
        file = RESULTS / f"{name}.json"
        if file.exists():
            page = put(page, name, write(json.loads(file.read_text())))
    PAGE.write_text(page)

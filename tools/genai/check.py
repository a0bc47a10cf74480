#!/usr/bin/env python3
"""Runs folders that `kiln export genai` wrote in onnxruntime-genai, and compares their tokens with those of `kiln generate`.

Each decoder is compiled for the CPU at each precision, exported and run as it is: one prompt, and two rows of unequal lengths where
`kiln generate` takes them. What the runtime cannot run must be refused by the export.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

HERE = Path(__file__).resolve().parents[2]
MODELS = HERE / "fixtures/generation"
DECODERS = ["decoder.growing", "decoder.gqa", "gpt2.past.ts.sdpa", "llama.past.dynamo.sdpa", "qwen3.past.ts.sdpa", "mistral.past.ts.sdpa", "opt.past.ts.sdpa"]
ROWS = [[5, 9, 33, 2, 11], [7, 3]]
STOP, NEW = 60, 24
TEXT = "the cat and a ring of"
# A model that is refused, and a part of the reason.
REFUSED = {"decoder.scatter": "write_indices", "decoder.merged": "use_cache_branch"}


def kiln(binary, *arguments):
    return subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True)


def own(binary, bundle, rows):
    """Tokens by `kiln generate`, without the one that ends a row; nothing where it does not take the rows."""
    ids = [a for row in rows for a in ("--ids", ",".join(map(str, row)))]
    ran = kiln(binary, "-q", "generate", bundle, *ids, "--new", NEW, "--stop", STOP, "--json")
    return [ended(row) for row in json.loads(ran.stdout)["tokens"]] if ran.returncode == 0 else None


def ended(row):
    return row[: row.index(STOP)] if STOP in row else row


def theirs(folder, rows):
    """Tokens by the runtime, up to the one that ends a row. Rows are padded behind, as its own tokenizer does."""
    model = og.Model(str(folder))
    width = max(map(len, rows))
    asked = og.GeneratorParams(model)
    asked.set_search_options(max_length=width + NEW, batch_size=len(rows))
    generator = og.Generator(model, asked)
    pad = json.loads((folder / "genai_config.json").read_text())["model"]["pad_token_id"]
    generator.append_tokens(np.array([row + [pad] * (width - len(row)) for row in rows], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [ended([int(t) for t in generator.get_sequence(k)][width:]) for k in range(len(rows))]


def compare(binary, model, precision, scratch):
    bundle, folder = scratch / "m.kiln", scratch / "m.genai"
    options = [] if precision == "fp32" else [f"--{precision}"]
    made = kiln(binary, "-q", "compile", model, *options, "--target", "cpu", "--no-latency", "--force", "-o", bundle)
    if made.returncode not in (0, 6):
        return [f"no bundle: kiln compile ended with {made.returncode}"]
    made = kiln(binary, "export", "genai", bundle, "-o", folder, "--stop", STOP, "--force")
    if made.returncode:
        return f"export {made.returncode}: {made.stderr.strip()[-200:]}"
    said, alike = [], "rows of one length" in made.stderr
    for name, rows in (("one row", ROWS[:1]), ("unequal rows", ROWS)):
        right = own(binary, bundle, rows)
        if right is None:
            said.append(f"{name}: kiln generate does not take them")
            continue
        if alike and len(rows) > 1:
            said.append(f"{name}: the export says that they see each other's padding")
            continue
        found = theirs(folder, rows)
        if found != right:
            return f"{name}: kiln {right}, genai {found}"
        said.append(f"{name}: {sum(map(len, found))} tokens equal")
    return said


def texts(binary, scratch):
    """A text through the runtime's tokenizer, which has the bundle's tokenizer.json alone."""
    bundle, folder, tokens = scratch / "t.kiln", scratch / "t.genai", HERE / "fixtures/tokenizers/bytes.json"
    kiln(binary, "-q", "compile", MODELS / "decoder.growing.onnx", "--target", "cpu", "--no-latency", "-o", bundle)
    made = kiln(binary, "-q", "export", "genai", bundle, "-o", folder, "--stop", STOP, "--tokenizer", tokens)
    if made.returncode:
        return f"export {made.returncode}: {made.stderr.strip()[-200:]}"
    ran = kiln(binary, "-q", "generate", bundle, "--text", TEXT, "--tokenizer", tokens, "--new", NEW, "--stop", STOP, "--json")
    right = json.loads(ran.stdout)["text"][0]
    tokenizer = og.Tokenizer(og.Model(str(folder)))
    found = tokenizer.decode(np.array(theirs(folder, [[int(t) for t in tokenizer.encode(TEXT)]])[0], np.int32))
    return ["text: the same"] if found.strip() == right else f"text: kiln {right!r}, genai {found!r}"


def refusal(binary, name, reason, scratch):
    """A bundle that the runtime cannot run, and what the export says of it."""
    bundle = scratch / "r.kiln"
    made = kiln(binary, "-q", "compile", MODELS / f"{name}.onnx", "--target", "cpu", "--no-latency", "--no-check", "--force", "-o", bundle)
    if made.returncode:
        return f"compile {made.returncode}: {made.stderr.strip()[-200:]}"
    ran = kiln(binary, "export", "genai", bundle, "-o", scratch / "r.genai", "--stop", STOP, "--force")
    wrong = ran.returncode == 0 or reason not in ran.stderr
    return f"export {ran.returncode}: {ran.stderr.strip()[-200:]}" if wrong else ["refused: " + ran.stderr.strip().splitlines()[-1][:120]]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kiln", type=Path, default=HERE / "target/release/kiln")
    parser.add_argument("--models", type=Path, nargs="*", help="other decoders than the project's own")
    parser.add_argument("--precisions", default="fp32,fp16,int8,int4")
    chosen = parser.parse_args()
    models = chosen.models or [MODELS / f"{name}.onnx" for name in DECODERS]
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for model in models:
            for precision in chosen.precisions.split(","):
                said = compare(chosen.kiln, model, precision, scratch)
                failed += isinstance(said, str)
                print(f"{model.stem:28} {precision:5} " + ("FAILED " + said if isinstance(said, str) else "; ".join(said)), flush=True)
        said = texts(chosen.kiln, scratch)
        failed += isinstance(said, str)
        print(f"{'decoder.growing':28} text  " + ("FAILED " + said if isinstance(said, str) else said[0]), flush=True)
        for name, reason in {} if chosen.models else REFUSED.items():
            said = refusal(chosen.kiln, name, reason, scratch)
            failed += isinstance(said, str)
            print(f"{name:28}       " + ("FAILED " + said if isinstance(said, str) else said[0]), flush=True)
    print(f"onnxruntime-genai {og.__version__}: {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

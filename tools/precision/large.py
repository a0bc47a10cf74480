"""Time and memory of quantizing a model of BERT-base's size: kiln, and ONNX Runtime's static quantization.

    python tools/precision/large.py

The model has random weights (fixtures/models/export.py; `make bench-peers` exports the same), so accuracy is not asked for. The
calibration data are MiniLM-L6's 128 paragraphs in its tokenizer's words, which are BERT's. Results go to
benches/results/precision/large.json; table.py puts them into docs/precision.md."""

import argparse
import shutil
import sys

from common import HERE, KILN, MODELOPT, PYTHON, RESULTS, ROOT, WORK, run, write

MODEL = ROOT / "target" / "peers" / "models" / "bert-base.ts.eager.onnx"
DATA = WORK / "minilm-l6"
FOLDER = WORK / "bert-base"
LIMIT = 900
TEXT = ["--calibrate", DATA / "calibrate.txt", "--tokenizer", DATA / "tokenizer.json"]
KILN_METHODS = {
    "kiln-cpu-int8, not proved": ["--target", "cpu", "--int8", "--no-check"],
    "kiln-cpu-int8": ["--target", "cpu", "--int8", "--no-latency"],
    "kiln-cpu-int4, not proved": ["--target", "cpu", "--int4", "--no-check"],
}
ORT = "ort-static-minmax-u8"


def ort_static():
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    from peers import LINEAR, Reader

    CalibrationDataReader.register(Reader)
    quantize_static(
        MODEL, FOLDER / "ort.onnx", Reader("minilm-l6"), per_channel=True, activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax, **LINEAR,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", action="store_true", help="do ONNX Runtime's part in this process")
    if parser.parse_args().step:
        return ort_static()
    FOLDER.mkdir(parents=True, exist_ok=True)
    export = [MODELOPT, ROOT / "fixtures/models/export.py", "--out", MODEL.parent, "--only", "bert-base"]
    steps = [(MODEL, export)]
    steps += [(DATA / done, [PYTHON, HERE / step, "minilm-l6"]) for done, step in [("model.onnx", "models.py"), ("data.json", "data.py")]]
    for made, command in steps:
        error = None if made.exists() else run(command, LIMIT, FOLDER / "prepare.log")["error"]
        if error:
            sys.exit(f"{made} cannot be made: {error}")
    rows = []
    for name, options in KILN_METHODS.items():
        out = FOLDER / "out.kiln"
        command = [KILN, "compile", MODEL, *options, *TEXT, "--quiet", "-o", out]
        rows.append({"method": name, **run(command, LIMIT, FOLDER / "kiln.log")})
        shutil.rmtree(out, ignore_errors=True)
        print(rows[-1], flush=True)
    rows.append({"method": ORT, **run([PYTHON, __file__, "--step"], LIMIT, FOLDER / "ort.log")})
    print(rows[-1], flush=True)
    from measure import environment  # Heavy: after what it would count into.

    facts = {"model_mb": round(MODEL.stat().st_size / 1e6, 1), "environment": environment(), "rows": rows}
    write(RESULTS / "large.json", facts)


if __name__ == "__main__":
    sys.exit(main())

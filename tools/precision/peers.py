"""The peers: what ONNX Runtime's and NVIDIA's own tools make of the same models and calibration data.

    python tools/precision/peers.py [all | MODEL,...] [--methods all | METHOD,...]

Each method runs as a process of its own and writes target/precision/MODEL/candidates/METHOD: model.onnx, and
candidate.json with wall time (imports included), peak memory, or the error."""

import argparse
import shutil
import sys
from pathlib import Path

from common import MODELOPT, PYTHON, WORK, candidate, chosen, run, write
from models import MODELS

LIMIT = 420


class Reader:
    """Calibration samples as ONNX Runtime's calibrator and ModelOpt read them."""

    def __init__(self, model, length=None, most=None):
        import numpy as np

        from data import samples

        self.samples = samples(model, "calibrate")[:most]
        if length and MODELS[model]["kind"] == "text":
            # Zeros are padding, and masked.
            fit = lambda v: np.pad(v, ((0, 0), (0, length - v.shape[1])))
            self.samples = [{name: fit(v) for name, v in sample.items()} for sample in self.samples]
        self.rewind()

    def get_next(self):
        return next(self.left, None)

    def get_first(self):
        return self.samples[0]

    def __iter__(self):
        return iter(self.samples)

    def rewind(self):
        self.left = iter(self.samples)

    def __len__(self):
        return len(self.samples)


def prepared(model, out):
    """What ONNX Runtime's documentation asks for before quantization."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = out / "prepared.onnx"
    try:
        quant_pre_process(WORK / model / "model.onnx", path)
    except Exception as error:  # Symbolic shape inference knows fewer graphs than the rest.
        print(f"without symbolic shapes: {error!r}")
        quant_pre_process(WORK / model / "model.onnx", path, skip_symbolic_shape=True)
    return path


def ort_dynamic(model, out, **options):
    from onnxruntime.quantization import quantize_dynamic

    path = prepared(model, out)
    quantize_dynamic(path, out / "model.onnx", per_channel=True, **options)


def ort_static(model, out, method="MinMax", length=None, unsigned=False, **options):
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    CalibrationDataReader.register(Reader)
    if unsigned:
        options["activation_type"] = QuantType.QUInt8
    path = prepared(model, out)
    quantize_static(
        path, out / "model.onnx", Reader(model, length), per_channel=True,
        calibrate_method=CalibrationMethod[method], **options,
    )  # fmt: skip


def ort_int4(model, out):
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tool = MatMulNBitsQuantizer(onnx.load(WORK / model / "model.onnx"), block_size=32, is_symmetric=True)
    tool.process()
    tool.model.save_model_to_file(str(out / "model.onnx"))


def ort_fp16(model, out):
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    result = convert_float_to_float16(onnx.load(WORK / model / "model.onnx"), keep_io_types=True)
    onnx.save(result, out / "model.onnx")


def autocast(model, out, type_):
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    result = convert_to_mixed_precision(
        str(WORK / model / "model.onnx"), low_precision_type=type_, keep_io_types=True,
        calibration_data=str(WORK / model / "padded.npz"),
    )  # fmt: skip
    onnx.save(result, out / "model.onnx")


def modelopt(model, out, mode, length=None, most=None, **options):
    from modelopt.onnx.quantization import quantize
    from onnxruntime.quantization import CalibrationDataReader

    CalibrationDataReader.register(Reader)
    # It writes beside its input.
    path = out / "input.onnx"
    shutil.copy(WORK / model / "model.onnx", path)
    quantize(
        str(path), quantize_mode=mode, calibration_data_reader=Reader(model, length, most), calibration_eps=["cpu"],
        output_path=str(out / "model.onnx"), **options,
    )  # fmt: skip


# ONNX Runtime's static default quantizes all operators that it can, and loses much with it. So the others are asked for
# linear layers only, and for activations in unsigned bytes with a zero point, which its documentation prefers on x86.
LINEAR = {"op_types_to_quantize": ["MatMul", "Gemm"], "extra_options": {"MatMulConstBOnly": True}}
# Histograms are kept for a few samples at a time, and want samples of one length.
HISTOGRAM = {
    "length": 128,
    "op_types_to_quantize": LINEAR["op_types_to_quantize"],
    "extra_options": {"MatMulConstBOnly": True, "CalibMaxIntermediateOutputs": 8},
}
# 7-bit weights: without VNNI, ONNX Runtime's 8-bit products saturate in 16 bits.
METHODS = {
    "ort-fp16": (PYTHON, ort_fp16, {}),
    "ort-dynamic": (PYTHON, ort_dynamic, {}),
    "ort-dynamic-7bit": (PYTHON, ort_dynamic, {"reduce_range": True}),
    "ort-static-default": (PYTHON, ort_static, {}),
    "ort-static-minmax": (PYTHON, ort_static, LINEAR),
    "ort-static-minmax-u8": (PYTHON, ort_static, {"unsigned": True, **LINEAR}),
    "ort-static-minmax-u8-7bit": (PYTHON, ort_static, {"unsigned": True, "reduce_range": True, **LINEAR}),
    "ort-static-percentile": (PYTHON, ort_static, {"unsigned": True, "method": "Percentile", **HISTOGRAM}),
    "ort-static-entropy": (PYTHON, ort_static, {"unsigned": True, "method": "Entropy", **HISTOGRAM}),
    "ort-int4": (PYTHON, ort_int4, {}),
    "autocast-fp16": (MODELOPT, autocast, {"type_": "fp16"}),
    "autocast-bf16": (MODELOPT, autocast, {"type_": "bf16"}),
    "modelopt-int8": (MODELOPT, modelopt, {"mode": "int8"}),
    "modelopt-fp8": (MODELOPT, modelopt, {"mode": "fp8"}),
    # AWQ on a CPU takes minutes even with so few samples.
    "modelopt-int4": (MODELOPT, modelopt, {"mode": "int4", "length": 128, "most": 16}),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="?", default="all")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--step", action="store_true", help="do it in this process")
    arguments = parser.parse_args()
    for model in chosen(arguments.models, MODELS, "model"):
        for name in chosen(arguments.methods, METHODS, "method"):
            python, do, options = METHODS[name]
            out = candidate(model, name)
            if arguments.step:
                do(model, out, **options)
                continue
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            if python.exists():
                facts = run([python, Path(__file__), model, "--methods", name, "--step"], LIMIT, out / "log.txt")
            else:
                facts = {"error": f"{python.parent.parent.name} is missing"}
            for left in ("prepared.onnx", "input.onnx"):
                (out / left).unlink(missing_ok=True)
            if not facts["error"] and not (out / "model.onnx").exists():
                facts["error"] = "no model was written"
            write(out / "candidate.json", {"model": model, "method": name, **facts})
            print(f"{model} {name}: {facts.get('seconds')} s, {facts['error'] or 'done'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

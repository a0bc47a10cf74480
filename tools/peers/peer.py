"""One peer on one model, as a process of its own: python tools/peers/peer.py PEER INPUT OUTPUT [MODEL TYPE]"""

import sys


def load_save(source, target, _):
    import onnx

    onnx.save(onnx.load(source), target)


def ort_float16(source, target, _):
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def ort_optimizer(source, target, model_type):
    from onnxruntime.transformers.optimizer import optimize_model

    optimized = optimize_model(source, model_type=model_type, num_heads=0, hidden_size=0, opt_level=0)
    optimized.convert_float_to_float16(keep_io_types=True)
    optimized.save_model_to_file(target)


def onnxslim(source, target, _):
    import onnxslim

    onnxslim.slim(source, target)


def onnxsim(source, target, _):
    import onnx
    import onnxsim

    simplified, same = onnxsim.simplify(onnx.load(source))
    if not same:
        sys.exit("Error: its own check of the result failed")
    onnx.save(simplified, target)


def onnxscript(source, target, _):
    import onnx
    from onnxscript import optimizer, rewriter

    onnx.save(rewriter.rewrite(optimizer.optimize(onnx.load(source))), target)


PEERS = {
    "load-save": load_save,
    "ort-float16": ort_float16,
    "ort-optimizer": ort_optimizer,
    "onnxslim": onnxslim,
    "onnxsim": onnxsim,
    "onnxscript": onnxscript,
}

if __name__ == "__main__":
    peer, source, target, model_type = sys.argv[1:]
    PEERS[peer](source, target, model_type)

"""ModelOpt's autocast on one model: python tools/real/autocast.py INPUT OUTPUT [CALIBRATION.npz]

ModelOpt imports PyTorch at its top, and autocast uses nothing of it. An empty module stands in its place, so that the peer takes
0.6 GB and not 7."""

import importlib.machinery
import sys
import types


class Absent(types.ModuleType):
    """A module in which every name is there and does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else Absent(name)

    def __call__(self, *_, **__):
        return self

    def __or__(self, _):
        return self

    __ror__ = __or__


def main(source, target, calibration=None):
    torch = Absent("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    sys.modules["torch"] = torch
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    options = {"low_precision_type": "fp16", "keep_io_types": True, "calibration_data": calibration}
    onnx.save(convert_to_mixed_precision(source, **options), target)


if __name__ == "__main__":
    main(*sys.argv[1:])

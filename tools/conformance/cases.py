"""Writes ONNX's own test cases into a folder: the node and model tests, which the wheel `onnx` makes in memory, and the
converted models that it holds as files.

    python tools/conformance/cases.py FOLDER

A case is FOLDER/NAME/model.onnx and data.pickle: {"rtol", "atol", "sets": [(inputs, outputs)]}, where a value is an array, a
list (a sequence), a dict (a map) or None. Cases without a model or without data are listed in FOLDER/left-out.json.

The tests give shapes, axes and indices as inputs, which leaves a compiler nothing to know. So a case that has such inputs beside
others is written a second time, NAME.baked, with its integers as initializers. A case of an operator set that the runtime does not
have is written under the last that it has, too: NAME.opset26."""

import json
import pathlib
import pickle
import sys
import warnings

import numpy as np
import onnx
from onnx import numpy_helper

warnings.filterwarnings("ignore")

# Not the types that ml_dtypes adds.
NATIVE = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"}

# onnx.backend.test.loader's: what the project itself compares by, unless a case says otherwise.
RTOL, ATOL = 1e-3, 1e-7
# The newest that ONNX Runtime 1.31 reads.
IR_VERSION, OPSET = 13, 26


def in_memory():
    from onnx.backend.test.case.model import collect_testcases as models
    from onnx.backend.test.case.node import collect_testcases as nodes

    for case in [*nodes(None), *models()]:
        if case.model is None:
            # The large networks come without weights in the wheel; their files are in `on_disk`.
            continue
        yield case.name, case.model, case.data_sets, case.rtol, case.atol


def value(path, value_type):
    """A serialized TensorProto, SequenceProto or OptionalProto of the given type."""
    data = path.read_bytes()
    kind = value_type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def on_disk():
    root = pathlib.Path(onnx.__file__).parent / "backend/test/data"
    for path in sorted(root.glob("*/*/model.onnx")):
        model = onnx.load(path)
        given = {t.name for t in model.graph.initializer}
        inputs = [i.type for i in model.graph.input if i.name not in given]
        sets = []
        for folder in sorted(path.parent.glob("test_data_set_*")):
            read = lambda what, types: [value(folder / f"{what}_{k}.pb", t) for k, t in enumerate(types)]
            try:
                sets.append((read("input", inputs), read("output", [o.type for o in model.graph.output])))
            except FileNotFoundError:
                # Some models of low IR versions list their weights as inputs and give data for them.
                every = [i.type for i in model.graph.input]
                sets.append((read("input", every), read("output", [o.type for o in model.graph.output])))
        yield f"{path.parts[-3]}.{path.parent.name}", model, sets, RTOL, ATOL


def light():
    """Networks of which the wheel has the graph, with ConstantOfShape for the weights, and the expected output."""
    root = pathlib.Path(onnx.__file__).parent / "backend/test/data/light"
    for path in sorted(root.glob("*.onnx")):
        model = onnx.load(path)
        expected = [numpy_helper.to_array(onnx.TensorProto.FromString(p.read_bytes()))
                    for p in sorted(path.parent.glob(f"{path.stem}_output_*.pb"))]
        given = {t.name for t in model.graph.initializer}
        inputs = []
        for i in model.graph.input:
            if i.name not in given:
                shape = [d.dim_value for d in i.type.tensor_type.shape.dim]
                size = int(np.prod(shape))
                # As onnx.backend.test.runner makes the input of these.
                inputs.append(np.arange(size, dtype=np.float32).reshape(shape) / size)
        yield f"light.{path.stem}", model, [(inputs, expected)], 2e-3, 1e-4


def baked(model, sets):
    """The model with its inputs of integers and bools as initializers, and the data that is left; None if that is no other."""
    if len(sets) != 1 or len(sets[0][0]) != len(model.graph.input) or model.graph.initializer:
        return None
    known = [isinstance(v, np.ndarray) and v.dtype.kind in "iub" and v.dtype.name in NATIVE for v in sets[0][0]]
    if all(known) or not any(known):
        return None
    inputs = list(model.graph.input)
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.input[:]
    left = []
    for given, fixed, v in zip(inputs, known, sets[0][0]):
        if fixed:
            model.graph.initializer.append(numpy_helper.from_array(v, given.name))
        else:
            model.graph.input.append(given)
            left.append(v)
    return model, [(left, sets[0][1])]


def older(model):
    """The model under the operator set before, if it is of one that the runtime does not have; None if it has. Most tests of a new
    operator set differ in the types that an operator takes, and what cannot be said in the older one does not load."""
    versions = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0].version <= OPSET:
        return None
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    return model


def forms(name, model, sets):
    yield name, model, sets
    if (before := older(model)) is not None:
        name, model = f"{name}.opset{OPSET}", before
        yield name, model, sets
    if known := baked(model, sets):
        yield f"{name}.baked", *known


def plain(v):
    if isinstance(v, onnx.TensorProto):
        return np.asarray(numpy_helper.to_array(v))
    if isinstance(v, (list, tuple)):
        return [plain(e) for e in v]
    return np.asarray(v) if isinstance(v, (np.generic, int, float, bool)) else v


def readable(model):
    """The model under the newest version of the format that the runtime takes. What was added since stands in no test."""
    if model.ir_version > IR_VERSION:
        model.ir_version = IR_VERSION
    return model


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    written, left_out = 0, {}
    seen = {}
    for source in (in_memory, on_disk, light):
        for name, model, sets, rtol, atol in source():
            if not sets:
                left_out[name] = "it has no data"
                continue
            if name in seen:
                seen[name] += 1
                name = f"{name}.{seen[name]}"
            seen.setdefault(name, 1)
            sets = [([plain(v) for v in i], [plain(v) for v in o]) for i, o in sets]
            for form, made, data in forms(name, model, sets):
                here = folder / form
                here.mkdir(exist_ok=True)
                onnx.save(readable(made), here / "model.onnx")
                kept = {"rtol": rtol or RTOL, "atol": ATOL if atol is None else atol, "sets": data}
                (here / "data.pickle").write_bytes(pickle.dumps(kept))
                written += 1
    (folder / "left-out.json").write_text(json.dumps(left_out, indent=1))
    print(f"{written} cases written, {len(left_out)} left out", file=sys.stderr)


if __name__ == "__main__":
    main()

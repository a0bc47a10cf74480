#!/usr/bin/env python3
"""Writes the tables of operators that kiln-graph reads: graph/ops/schema/onnx.txt from the schemas of the onnx wheel, and
graph/ops/schema/microsoft.txt from those that the onnxruntime wheel adds.

    generate.py           writes both tables
    generate.py --check   compares instead: exit 1 where a table differs, 3 where a wheel is not installed

graph/ops/schema/mod.rs says how a line is read."""
import argparse
import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "graph" / "ops" / "schema"
# Names of types that the tables shorten. All others keep their ONNX name.
GROUPS = {
    "uints": ["uint8", "uint16", "uint32", "uint64"],
    "ints": ["int8", "int16", "int32", "int64"],
    "floats": ["float16", "float", "double"],
    "complex": ["complex64", "complex128"],
    "float8s": ["float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"],
}
# Operators of the default domain that ONNX Runtime has and ONNX has not.
EXTRA = ["SimplifiedLayerNormalization"]


def types(allowed):
    """Types in words: groups whose members are all there, then the others; 'other' is what is no tensor."""
    found = set()
    for text in allowed:
        tensor = re.fullmatch(r"tensor\((\w+)\)", text)
        found.add(tensor[1] if tensor else "other")
    words = []
    for name, members in GROUPS.items():
        if found.issuperset(members):
            words.append(name)
            found.difference_update(members)
    return words + sorted(found)


def ports(formals, variables):
    out = []
    for formal in formals:
        text = getattr(formal, "type_str", None) or getattr(formal, "typeStr", None)
        homogeneous = getattr(formal, "is_homogeneous", getattr(formal, "isHomogeneous", True))
        mark = {"Single": "", "Optional": "?"}.get(formal.option.name, "*" if homogeneous else "**")
        out.append((text if text in variables else "=" + types([text])[0]) + mark)
    return " ".join(out)


def attribute(name, declared):
    """name:kind, '!' if it is required, '=' and the default if that is a number or a text."""
    import numpy
    import onnx

    proto = getattr(declared, "default_value", None)
    if proto is None:
        proto = onnx.AttributeProto.FromString(declared._default_value)
    values = {
        onnx.AttributeProto.INT: lambda: str(proto.i),
        onnx.AttributeProto.FLOAT: lambda: str(numpy.float32(proto.f)),
        onnx.AttributeProto.STRING: lambda: proto.s.decode(),
    }
    text = f"{name}:{declared.type.name.lower()}" + ("!" if declared.required else "")
    if proto.type in values:
        text += "=" + values[proto.type]()
    assert not re.search(r"[\s|]", text), text
    return text


def line(schema):
    variables = [c.type_param_str for c in schema.type_constraints]
    flags = [f"{schema.name} {schema.since_version}"]
    flags += ["deprecated"] if schema.deprecated else []
    constraints = [
        c.type_param_str + "=" + ",".join(types(c.allowed_type_strs)) for c in schema.type_constraints
    ]
    attributes = [attribute(name, a) for name, a in sorted(schema.attributes.items())]
    signature = f"{ports(schema.inputs, variables)} -> {ports(schema.outputs, variables)}".strip()
    return " | ".join([" ".join(flags), signature, " ".join(constraints), " ".join(attributes)]).rstrip(" |")


def table(title, schemas):
    lines = [line(s) for s in sorted(schemas, key=lambda s: (s.name, s.since_version))]
    return f"# {title}, by tools/schema/generate.py.\n" + "\n".join(lines) + "\n"


def tables():
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    standard = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""]
    known = {s.name for s in standard}
    own = runtime.get_all_operator_schema()
    assert not known.intersection(EXTRA)
    extra = [s for s in own if s.domain == "" and s.name in EXTRA]
    microsoft = [s for s in own if s.domain == "com.microsoft"]
    version = onnxruntime.__version__
    return {
        "onnx.txt": table(f"Operators of the default domain up to version {onnx.defs.onnx_opset_version()}", standard),
        "microsoft.txt": table(f"Operators of com.microsoft in ONNX Runtime {version}", microsoft),
        "extra.txt": table(f"Operators that ONNX Runtime {version} adds to the default domain", extra),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    try:
        made = tables()
    except ImportError as missing:
        print(f"not compared: {missing}", file=sys.stderr)
        return 3
    differ = []
    for name, text in made.items():
        path = FOLDER / name
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            differ.append(name)
    if differ:
        print(f"{', '.join(differ)}: not what the wheels say; run tools/schema/generate.py", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())

